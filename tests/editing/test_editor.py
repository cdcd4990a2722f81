"""The editor: borders of pictures, latents, prompts; and the verb from outside."""

import numpy as np
import pytest
import torch

from diffx import EDM, Denoiser, UNet, cli, edit, media
from diffx.codecs import Identity
from diffx.editing import Editor, PromptToPrompt, img2img, inpaint
from diffx.edits import METHODS
from diffx.guidance import PaintWithWords
from diffx.recipes.errors import RecipeError
from diffx.samplers import Ancestral, Euler, Heun
from diffx.schedules import Karras
from diffx.techniques import InstructPix2Pix, MaskedTokens
from diffx.text import Words

SAMPLER = Euler(4, Karras(0.05, 5.0))


class Halved(Identity):
    """Latents of half the side: means of 2x2 pixels."""

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2.0)

    def shape(self, data_shape):
        return (data_shape[0], *(side // 2 for side in data_shape[1:]))


def model(codec=None, **net):
    torch.manual_seed(0)
    options = {"tokens": {"text": 8}, **net}
    text = Words(["a", "and", "blue", "cat", "dog", "red"], 8, 1, 2) if "text" in options["tokens"] else None
    module = EDM(Denoiser(UNet(3, width=8, mults=(1, 2), blocks=1, **options)), shape=(3, 8, 8), text=text, codec=codec)
    with torch.no_grad():
        for parameter in module.denoiser.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return module


def pictures(n=2):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def mask():
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 3:7, 2:5] = 1
    return hole


TEXT = ["a red cat", "a blue dog"]


def test_it_is_the_functions_with_the_modules_own_noise():
    module = model()
    tool = Editor(module, guidance=2.0, sampler=SAMPLER, seed=5)
    cond, x = tool.told(text=TEXT), pictures()
    generators = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    with module.drawing():
        plain = img2img(tool.denoise(cond), x, 0.5, sampler=SAMPLER, generator=generators).clamp(-1, 1)
    assert torch.equal(tool.img2img(x, cond, strength=0.5), plain)
    assert not tool.img2img(x, cond, strength=0.5).requires_grad and module.training


def test_picture_i_depends_on_its_own_seed_alone():
    tool = Editor(model(), sampler=SAMPLER)
    both = tool.img2img(pictures(), tool.told(text=TEXT))
    tool.seed = 1
    second = tool.img2img(pictures()[1:], tool.told(text=TEXT[1:]))
    torch.testing.assert_close(second, both[1:], atol=1e-4, rtol=0)


def test_the_sampler_is_euler_on_the_modules_schedule():
    module = model()
    assert Editor(module).sampler == Euler(50, module.sampler.schedule)


@pytest.mark.parametrize("codec", [None, Halved()], ids=["pixels", "latents"])
def test_every_method_gives_pictures_and_keeps_what_is_to_be_kept(codec):
    tool = Editor(model(codec), guidance=2.0, sampler=SAMPLER)
    x, hole = pictures(), mask()
    source, target = tool.told(text=TEXT, words=True), tool.told(text=["a blue cat", "a blue cat"], words=True)
    path = tool.invert(x, source)
    nulls = tool.null_text(path, source, guidance=2.0, iterations=1)
    where = tool.difference(x, source, target, draws=2)
    assert where.shape[2:] == path.noise.shape[2:] and set(where.unique().tolist()) <= {0.0, 1.0}
    region = {"cat": torch.ones(8, 8)}
    phrases = tool.told(text=["a red cat", "a cat"], phrases=[["cat"], ["cat"]])
    pair = tool.prompt_to_prompt(source, target, PromptToPrompt(blend=("a", "a")), path=path, guidance=nulls)
    made = {
        "magic_mix": tool.magic_mix(x, source),
        "inpaint": tool.inpaint(x, hole, source),
        "repaint": tool.repaint(x, hole, source, jump=2, resamples=2),
        "diffedit": tool.diffedit(x, source, target, where),
        "sample": tool.sample(path, source),
        "prompt_to_prompt": pair.target,
        "paint": tool.paint(phrases, region, brush=PaintWithWords(1.0)),
    }
    for name, out in made.items():
        assert out.shape == x.shape and out.isfinite().all() and out.abs().max() <= 1, name
    for name in ("inpaint", "repaint"):
        kept = (hole == 0).expand_as(x)
        assert torch.equal(made[name][kept], x[kept]) and not torch.equal(made[name], x)
    assert pair.mask is not None and pair.mask.shape[2:] == path.noise.shape[2:]


def test_in_latents_the_hole_reaches_as_far_as_any_of_its_pixels():
    tool = Editor(model(Halved()), sampler=SAMPLER)
    _, _, z, hole = tool._masked(pictures(), mask())
    assert z.shape == (2, 3, 4, 4)
    expected = torch.zeros(4, 4)
    expected[1:4, 1:3] = 1
    assert torch.equal(hole[0, 0], expected)


def test_models_of_classes_and_of_nothing_are_edited_too():
    for net, columns in (({"tokens": {}, "classes": 3}, {"label": torch.tensor([0, 2])}), ({"tokens": {}}, {})):
        tool = Editor(model(**net), sampler=SAMPLER)
        x = pictures()
        out = tool.inpaint(x, mask(), tool.told(**columns))
        with tool.module.drawing():
            plain = inpaint(tool.denoise(tool.told(**columns)), x, mask(), sampler=SAMPLER, generator=tool._generators(2))
        torch.testing.assert_close(out, plain.clamp(-1, 1), atol=1e-5, rtol=0)


def test_painting_draws_other_noise_on_the_way_than_at_the_start():
    tool = Editor(model(), sampler=Ancestral(4, Karras(0.05, 5.0)))
    cond = tool.told(text=["a cat"], phrases=[["cat"]])
    plain = tool.module.sample(1, tool.told(text=["a cat"]), sampler=tool.sampler, seed=0)
    torch.testing.assert_close(tool.paint(cond, {"cat": torch.ones(8, 8)}, brush=PaintWithWords(0.0)), plain, atol=1e-4, rtol=0)


def test_what_cannot_be_edited():
    tool = Editor(model(), sampler=SAMPLER)
    cond = tool.told(text=TEXT)
    for x, said in (
        (pictures() * 3, "must lie in"),
        (pictures()[:, :1], r"must be float \(B, 3, 8, 8\)"),
        ((pictures() * 100).to(torch.uint8), "must be float"),
    ):
        with pytest.raises(ValueError, match=said):
            tool.img2img(x, cond)
    with pytest.raises(ValueError, match=r"a mask must be \(2 or 1, 1, 8, 8\)"):
        tool.inpaint(pictures(), torch.ones(1, 1, 4, 4), cond)
    with pytest.raises(ValueError, match="there is no 'dog' in 'a red cat'"):
        tool.told(text=["a red cat"], phrases=[["dog"]])
    with pytest.raises(ValueError, match="needs the sampler Euler"):
        Editor(model(), sampler=Heun(4)).null_text(tool.invert(pictures(), cond), cond, guidance=3.0)
    with pytest.raises(ValueError, match="reads text"):
        Editor(model(tokens={}, classes=3)).told(text=["a cat"])
    with pytest.raises(ValueError, match="needs conditions to guide towards"):
        Editor(model(tokens={}), guidance=3.0, sampler=SAMPLER).img2img(pictures(), Editor(model(tokens={})).told())
    with pytest.raises(ValueError, match="edits need a technique with a denoiser"):
        Editor(MaskedTokens.__new__(MaskedTokens))


# The verb -------------------------------------------------------------------------------------------------------------------------------


def saved(module, path):
    """Write a checkpoint."""
    from lightning import Trainer

    trainer = Trainer(max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A checkpoint, a picture, pictures as sample writes them, a mask."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    saved(model(), tmp_path / "last.ckpt")
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save("one.png")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save("tall.png")
    Image.fromarray((mask()[0, 0].numpy() * 255).astype(np.uint8)).save("mask.png")
    np.savez("two.npz", images=pictures().numpy())
    return tmp_path


BASE = ["checkpoint=last.ckpt", "steps=4", "weights_of=raw", "out=out.png"]


@pytest.mark.parametrize(
    ("arguments", "tiles"),
    [
        ("method=img2img image=two.npz text='a red cat' strength=0.5 guidance=2", (2, 2)),
        ("method=magic_mix image=one.png text='a red cat'", (2, 1)),
        ("method=reconstruct image=two.npz source='a red cat' guidance=2", (4, 2)),
        ("method=inpaint image=two.npz mask=mask.png text='[a cat, a dog]'", (3, 2)),
        ("method=repaint image=one.png mask=mask.png text='a cat' steps=6", (3, 1)),
        ("method=diffedit image=two.npz source='a cat' text='a dog'", (3, 2)),
        ("method=prompt_to_prompt source='a red cat' text='a blue cat' blend='[red, blue]'", (3, 1)),
        ("method=prompt_to_prompt image=two.npz source='a cat' text='a red cat' mode=refine weights='{red: 2}'", (3, 2)),
        ("method=prompt_to_prompt image=one.png source='a red cat' text='a blue cat' guidance=2 null_text=true", (3, 1)),
        ("method=paint_with_words text='[a red cat, a cat]' regions='{cat: [0, 0, 0.5, 0.5]}'", (3, 2)),
        ("method=attention text='[a red cat, a cat]'", (4, 2)),
    ],
)  # fmt: skip
def test_every_method_writes_a_picture(files, arguments, tiles):
    import shlex

    from PIL import Image

    assert edit.main([*BASE, *shlex.split(arguments)]) == 0
    with Image.open(files / "out.png") as sheet:
        assert (sheet.height, sheet.width) == tuple(50 * count - 2 for count in tiles)


def test_instructions_are_followed_by_a_model_that_was_trained_on_them(files, capsys):
    net = UNet(3, width=8, mults=(1, 2), blocks=1, tokens={"text": 8}, maps={"source": 3})
    module = InstructPix2Pix(Denoiser(net), shape=(3, 8, 8), text=Words(["make", "it", "red"], 8, 1, 2, reads="instruction"))
    saved(module, "last.ckpt")
    told = ["method=instruct", "image=two.npz", "text=make it red", "guidance=3", "picture_guidance=2"]
    assert edit.main([*BASE, *told]) == 0
    batch = {"source": pictures(), "instruction": ["make it red"] * 2}
    expected = module.sample(
        2, module.condition(batch), guidance=3.0, picture_guidance=2.0, sampler=Euler(4, module.sampler.schedule), seed=0
    )
    media.save(media.grid(torch.cat([pictures(), expected]), columns=2), "expected.png")
    assert (files / "out.png").read_bytes() == (files / "expected.png").read_bytes()
    saved(model(), "last.ckpt")
    assert edit.main([*BASE[:-1], *told]) == 1
    assert "needs an InstructPix2Pix with encoders of instructions, got EDM" in capsys.readouterr().err


def test_every_method_says_what_it_needs():
    assert set(METHODS) == set(edit.NEEDS) and all(f"\n  {name} " in edit.USAGE for name in METHODS)


def test_a_second_edit_leaves_the_first_one_alone(files, monkeypatch, capsys):
    base = [argument for argument in BASE if not argument.startswith("out=")]
    written = []
    for _ in range(2):
        assert edit.main([*base, "method=img2img", "image=one.png", "text=a cat"]) == 0
        written.append(capsys.readouterr().out.split()[-1])
    assert [name.rpartition("/")[2] for name in written] == ["img2img.png", "img2img-2.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=img2im"], "there is no method 'img2im'; did you mean 'img2img'?"),
        (["method=inpaint"], "method=inpaint needs image="),
        (["method=img2img", "image=two.npz", "strength=0"], "strength must be above 0 and at most 1, got 0"),
        (["method=img2img", "image=none.png"], "there is no such file"),
        (["method=img2img", "image=one.png", "out=one.png"], "out=one.png is there already; give another name"),
        (["method=prompt_to_prompt", "source=a", "text=b", "blend=[a]"], "blend must be"),
        (["method=paint_with_words", "text=a", "regions={a: [0.5, 0, 0.5, 1]}"], "the region of 'a' must be"),
    ],
)
def test_mistakes_are_answered_before_anything_is_loaded(files, arguments, said):
    with pytest.raises(RecipeError) as error:
        cli.options(cli.parse([*BASE, *arguments], edit.USAGE), edit.Options)
    assert any(said in problem for problem in error.value.problems), error.value.problems


def test_pictures_of_another_size_and_words_that_are_not_there(files, capsys):
    assert edit.main([*BASE, "method=img2img", "image=tall.png", "text=a cat"]) == 1
    assert "pictures of (3, 9, 8), the model makes (3, 8, 8)" in capsys.readouterr().err
    assert edit.main([*BASE, "method=paint_with_words", "text=a cat", "regions={dog: [0, 0, 1, 1]}"]) == 1
    assert "there is no 'dog' in 'a cat'" in capsys.readouterr().err
    assert edit.main([*BASE, "method=prompt_to_prompt", "source=a cat", "text=a red cat"]) == 1
    assert "got 2 (a cat) and 3 (a red cat); use mode='refine'" in capsys.readouterr().err
