"""Editing by instruction: what is hidden how often, the two scales, the clean picture, and clear refusals."""

from dataclasses import replace

import pytest
import torch
from technique_list import edits, instructed, instructions, unet

from diffx import Cond, Denoiser
from diffx.codecs import Standardised
from diffx.data import Shapes
from diffx.guidance import PictureAndText, bind
from diffx.metrics.shapes_edits import edit_figures
from diffx.techniques import InstructPix2Pix


def awake(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module.eval()


def test_text_picture_or_both_are_hidden_from_a_twentieth_each():
    n = 100_000
    cond = Cond(tokens={"text": torch.zeros(n, 1, 1)}, vectors={"text_pooled": torch.zeros(n, 1)}, maps={"source": torch.zeros(n, 1, 1, 1)})
    torch.manual_seed(0)
    hidden = instructed().hide(cond)
    text, picture = ~hidden.visible("text"), ~hidden.visible("source")
    for case in (text & ~picture, picture & ~text, text & picture):
        assert case.float().mean().item() == pytest.approx(0.05, abs=0.003)
    assert torch.equal(hidden.visible("text"), hidden.visible("text_pooled"))


def test_the_two_scales_weigh_three_estimates():
    module, cond = awake(instructed()), instructions(3)
    x, sigma = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 1.0, 5.0])
    with torch.no_grad():
        both, picture, nothing = (
            bind(module.denoiser, told)(x, sigma) for told in (cond, cond.hidden(), cond.hidden().hidden("source"))
        )  # fmt: skip
        made = PictureAndText(7.5, 1.5)(module.denoiser, cond)(x, sigma)
        torch.testing.assert_close(made, nothing + 1.5 * (picture - nothing) + 7.5 * (both - picture), atol=1e-4, rtol=1e-4)
        assert torch.equal(PictureAndText(1.0, 1.0)(module.denoiser, cond)(x, sigma), both)
        torch.testing.assert_close(PictureAndText(0.0, 1.0)(module.denoiser, cond)(x, sigma), picture, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(both, picture, atol=1e-3) and not torch.allclose(picture, nothing, atol=1e-3)


def test_the_picture_is_shown_as_it_is():
    module, seen = instructed(hidden=0.0), []
    module.denoiser.net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    module.loss(edits(4))
    assert torch.equal(seen[0].maps["source"], edits(4)["source"])


def test_the_scales_of_sampling():
    module, cond = awake(instructed()), instructions(2)
    plain = module.sample(2, cond, guidance=1.0, picture_guidance=1.0, seed=0)
    kept, default = (module.sample(2, cond, guidance=1.0, seed=0, **options) for options in ({"picture_guidance": 1.5}, {}))
    assert torch.equal(kept, default) and not torch.equal(plain, default)
    assert torch.equal(module.sample(2, cond, guidance=PictureAndText(1.0, 1.5), seed=0), kept)


def test_works_on_latents():
    net = unet(classes=0, maps={"source": 1}, tokens={"text": 8}, vectors={"text_pooled": 8})
    plain = instructed()
    latent = InstructPix2Pix(Denoiser(net), shape=(1, 8, 8), text=plain.text, codec=Standardised(mean=0.5, std=0.25), hidden=0.0)
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    latent.loss(edits(2))
    latent.sample(2, replace(instructions(2), maps={"source": edits(2)["source"]}), guidance=1.0, picture_guidance=1.0)
    for cond in seen[:2]:
        torch.testing.assert_close(cond.maps["source"], (edits(2)["source"] - 0.5) / 0.25)


def test_figures_of_perfect_edits_and_of_none():
    data = Shapes(batch_size=64, size=32, edits="any")
    data.setup("fit")
    batch = data.train.fetch(torch.arange(64).numpy(), 0)
    target, source = (batch[name].float() / 127.5 - 1 for name in ("x", "source"))
    perfect, idle = edit_figures(target, batch), edit_figures(source, batch)
    assert perfect["edited"] == 1 and perfect["others_iou"] == 1 and perfect["background"] == 0
    assert idle["edited"] < 0.1 and idle["others_iou"] == 1 and idle["background"] == 0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: instructed(hidden=0.4), "share of three kinds"),
    (lambda: InstructPix2Pix(Denoiser(unet()), shape=(1, 8, 8)), "build it with maps={'source': 1}"),
    (lambda: instructed().loss({"x": torch.zeros(2, 1, 8, 8), "instruction": ["a", "b"]}), "pictures before their edit are missing"),
    (lambda: instructed().sample(2, replace(instructions(2), maps={})), "nothing to edit"),
    (lambda: PictureAndText(2.0, 2.0)(Denoiser(unet()), Cond()), "no map 'source'"),
])  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
