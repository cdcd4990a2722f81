"""Sources of text in a technique: names, dropping, the null policy, and the way through module, checkpoint and command line."""

import copy
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from text_encoders import needs_transformers

import diffx
from diffx import EDM, Cond, Denoiser, sample
from diffx.data import Shapes
from diffx.data.shapes import VOCABULARY
from diffx.networks import UNet
from diffx.samplers import Heun
from diffx.text import T5, Bytes, CLIPImage, CLIPText, MiniLM, Sources, Words

TEXTS = ["a red circle", "a blue square and a green triangle", "a yellow square"]


def words(**options):
    return Words(VOCABULARY, 16, 1, 2, **options)


def unet(tokens=None, vectors=None, **options):
    net = UNet(3, width=16, mults=(1, 2), blocks=1, head_dim=8, tokens=tokens, vectors=vectors, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # a fresh network is silent
    return net


def model(text, net, **options):
    return EDM(Denoiser(net), shape=(3, 8, 8), text=text, sampler=Heun(3), **options).eval()


def output(module, cond):
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.3, 1.0, 5.0])
    with torch.no_grad():
        return module.denoiser(x, sigma, cond)


def batch(**columns):
    return {"x": torch.zeros(3, 3, 8, 8), "text": TEXTS, **columns}


# What a network is told -------------------------------------------------------------------------------------------------------------------


def test_a_source_gives_what_the_network_takes():
    everything = Sources({"a": words(), "b": Bytes(16, 1, 2)}).eval()
    cond = everything.cond(batch())
    assert set(cond.tokens) == set(cond.masks) == {"a", "b"} and set(cond.vectors) == {"a_pooled", "b_pooled"} and len(cond) == 3
    taken = everything.cond(batch(), {"a", "b_pooled"}.__contains__)
    assert set(taken.tokens) == {"a"} and set(taken.vectors) == {"b_pooled"}
    assert torch.equal(taken.tokens["a"], cond.tokens["a"])


def test_sources_read_their_own_columns():
    sources = Sources({"colour": words(reads="colour_text"), "shape": words(reads="shape_text")})
    cond = sources.cond({"colour_text": TEXTS, "shape_text": TEXTS[::-1]})
    assert not torch.equal(cond.tokens["colour"], cond.tokens["shape"])
    with pytest.raises(ValueError, match=r"the batch has no 'shape_text' for the text encoder that reads it; it holds \['colour_text'\]"):
        sources.train().cond({"colour_text": TEXTS})
    assert set(sources.eval().cond({"colour_text": TEXTS}).tokens) == {"colour"}  # the other one is hidden
    with pytest.raises(ValueError, match="the batch has no 'colour_text'"):
        sources.cond({"x": torch.zeros(3)})


def test_an_entry_without_text_is_hidden():
    cond = Sources({"a": words()}).cond({"text": ["a red circle", None, ""]})
    assert cond.keep["a"].tolist() == cond.keep["a_pooled"].tolist() == [True, False, True]


def test_spans_come_along():
    data = Shapes(8, val_items=0).train.fetch(np.arange(4), 0)
    cond = Sources({"a": words(), "b": Bytes(16, 1, 2)}).cond(data)
    for text, given, spans in zip(data["text"], data["spans"], cond.spans, strict=True):
        for source in ("a", "b"):
            assert [span.phrase for span in spans if span.source == source] == [span.phrase for span in given], text


def test_what_does_not_fit_the_network_is_refused():
    with pytest.raises(ValueError, match=r"takes neither tokens 'text' nor the vector 'text_pooled' .* give it tokens=\{text: 16\}"):
        model(words(), unet())
    with pytest.raises(ValueError, match="expects width 12 of the source 'text', but its encoder gives 16"):
        model(words(), unet({"text": 12}))
    with pytest.raises(ValueError, match="cannot be named"):
        Sources({"a": words(), "a_pooled": words()})
    with pytest.raises(ValueError, match="no sources"):
        Sources({})
    with pytest.raises(ValueError, match="must be an Encoder"):
        Sources({"a": torch.nn.Linear(1, 1)})


def test_padding_does_not_reach_the_picture():
    """Padding to the maximum, and whatever stands in the padding, changes nothing."""
    module = model(words(), unet({"text": 16}, {"text_pooled": 16}))
    cond = module.condition(batch())
    junk = torch.where(cond.masks["text"][..., None], cond.tokens["text"], torch.randn(3, *cond.tokens["text"].shape[1:]) * 50)
    assert torch.equal(output(module, replace(cond, tokens={"text": junk})), output(module, cond))
    module.text["text"].pad = "max"
    longer = module.condition(batch())
    assert longer.tokens["text"].shape[1] == 32
    torch.testing.assert_close(output(module, longer), output(module, cond), atol=1e-5, rtol=0)
    nothing = replace(cond, masks={"text": torch.zeros_like(cond.masks["text"])})
    assert output(module, nothing).isfinite().all()


def test_the_order_of_sources_does_not_matter():
    widths = {"a": 16, "b": 16}
    torch.manual_seed(0)
    encoders = {"a": words(), "b": words()}
    one = model(Sources(encoders), unet(widths))
    two = model(Sources(dict(reversed(encoders.items()))), unet(dict(reversed(widths.items()))))
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in two.parameters())
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(output(two, two.condition(batch())), output(one, one.condition(batch())))


# Dropping ---------------------------------------------------------------------------------------------------------------------------------


def test_sources_are_dropped_independently_and_together():
    """Each by its own coin, all by the joint one, a source always as a whole."""
    n = 50_000
    names = {"a": 0.1, "b": 0.1, "c": 0.5}
    sources = Sources({name: words() for name in names})
    cond = Cond(
        tokens={name: torch.zeros(n, 1, 1) for name in ("a", "b")}, vectors={f"{name}_pooled": torch.zeros(n, 1) for name in ("a", "c")}
    )
    kept = sources.drop(cond, {**names, "*": 0.1}).keep
    assert torch.equal(kept["a"], kept["a_pooled"])
    for name, rate in (("a", 0.19), ("b", 0.19), ("c_pooled", 0.55)):
        assert 1 - kept[name].float().mean().item() == pytest.approx(rate, abs=0.01)
    nothing = ~(kept["a"] | kept["b"] | kept["c_pooled"])
    assert nothing.float().mean().item() == pytest.approx(0.1045, abs=0.005)
    assert not sources.drop(cond, 1.0).keep["c_pooled"].any()


def test_a_dropped_source_is_an_absent_source():
    module = model(Sources({"a": words(), "b": words()}), unet({"a": 16, "b": 16}, {"a_pooled": 16}))
    cond = module.condition(batch())
    without = Cond(tokens={"b": cond.tokens["b"]}, masks={"b": cond.masks["b"]})
    torch.testing.assert_close(output(module, module.text.drop(cond, {"a": 1.0})), output(module, without))
    assert (output(module, cond) - output(module, without)).abs().max() > 1e-3
    torch.testing.assert_close(output(module, cond.hidden()), output(module, Cond()))


@pytest.mark.parametrize("drop", [0.0, {"a": 0.1}, {"a": 0.1, "b": 0.0}, {}])
def test_guidance_needs_a_model_that_saw_everything_hidden(drop):
    module = model(Sources({"a": words(), "b": words()}), unet({"a": 16, "b": 16}, {"a_pooled": 16}), drop=drop)
    with pytest.raises(ValueError, match=r"trained with its conditions hidden at times, .* \['.*b'\] never were"):
        module.sample(3, module.condition(batch()), guidance=2.0)
    assert module.sample(3, module.condition(batch()), guidance=1.0).isfinite().all()


@pytest.mark.parametrize("drop", [0.1, {"*": 0.1}, {"a": 0.1, "b": 0.1}])
def test_guidance_works_where_it_was_trained_for(drop):
    module = model(Sources({"a": words(), "b": words()}), unet({"a": 16, "b": 16}, {"a_pooled": 16}), drop=drop)
    guided, plain = (module.sample(3, module.condition(batch()), guidance=scale, seed=1) for scale in (4.0, 1.0))
    assert guided.isfinite().all() and not torch.allclose(guided, plain)


# The null policy --------------------------------------------------------------------------------------------------------------------------


def empty_model(null="empty", **options):
    torch.manual_seed(0)
    text = Sources({"t5": T5.tiny(**options), "clip": CLIPText.tiny(seed=1)}, null=null)
    return model(text, unet({"t5": 32, "clip": 32}, {"clip_pooled": 32}))


@needs_transformers
def test_hidden_means_the_empty_text():
    """Dropped for some, hidden for all, absent, no condition at all: each is the encoding of the empty string."""
    module = empty_model()
    cond = module.condition(batch())
    some = torch.tensor([True, False, True])
    mixed = module.condition({"text": [TEXTS[0], "", TEXTS[2]]})
    blank = output(module, module.condition({"text": [""] * 3}))
    hidden = replace(cond, keep=dict.fromkeys(cond.names, some))
    torch.testing.assert_close(output(module, hidden), output(module, mixed), atol=1e-5, rtol=0)
    torch.testing.assert_close(output(module, cond.hidden()), blank, atol=1e-5, rtol=0)
    torch.testing.assert_close(output(module, Cond()), blank, atol=1e-5, rtol=0)
    only = module.condition(
        {"text": ["", "", ""]},
    )
    half = replace(cond, tokens={"t5": cond.tokens["t5"]}, masks={"t5": cond.masks["t5"]}, vectors={})
    told = replace(only, tokens={**only.tokens, "t5": cond.tokens["t5"]}, masks={**only.masks, "t5": cond.masks["t5"]})
    torch.testing.assert_close(output(module, half), output(module, told), atol=1e-5, rtol=0)
    assert (output(module, cond) - blank).abs().max() > 1e-3
    assert module.text["t5"].counts["empty"] == 7  # what the policy encodes for itself is no text of the data

    learned = empty_model("learned")
    learned.load_state_dict({**module.state_dict(), "text.policy": learned.text.policy})
    assert (output(learned, Cond()) - blank).abs().max() > 1e-3


@needs_transformers
def test_guidance_contrasts_with_the_empty_text():
    """Scale 0 is unconditional sampling, hence sampling from the empty prompt."""
    module = empty_model()
    unconditional = module.sample(3, module.condition(batch()), guidance=0.0, seed=4)
    torch.testing.assert_close(unconditional, module.sample(3, module.condition({"text": [""] * 3}), seed=4), atol=1e-4, rtol=0)


@needs_transformers
def test_another_policy_than_the_checkpoints_is_refused():
    with pytest.raises(ValueError, match="trained with null = 'empty', but the sources say null = 'learned'"):
        empty_model("learned").load_state_dict(empty_model().state_dict())
    with pytest.raises(ValueError, match=r"needs frozen encoders, but \['a'\] are trained along"):
        Sources({"a": words()}, null="empty")
    with pytest.raises(ValueError, match="null must be one of"):
        Sources({"a": words()}, null="zero")


@needs_transformers
def test_a_copied_denoiser_keeps_the_policy_and_shares_the_encoders():
    module = empty_model()
    twin = copy.deepcopy(module.denoiser)
    x, sigma = torch.randn(3, 3, 8, 8), torch.ones(3)
    torch.testing.assert_close(twin(x, sigma), module.denoiser(x, sigma))
    assert len(list(twin.parameters())) == len(list(module.denoiser.parameters()))


# Through the module -----------------------------------------------------------------------------------------------------------------------


@needs_transformers
def test_pictures_are_a_source_too():
    module = model({"style": CLIPImage.tiny(reads="picture")}, unet({"style": 24}))
    cond = module.condition({"picture": torch.rand(3, 3, 16, 16)})
    assert cond.tokens["style"].shape == (3, 1, 24) and output(module, cond).isfinite().all()


def trained(module, folder, steps=2, **columns):
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, max_epochs=-1, max_steps=steps, log_every_n_steps=1)  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch(**columns)] * steps, batch_size=None))
    trainer.save_checkpoint(folder / "end.ckpt")
    return trainer


@needs_transformers
def test_learned_encoders_train_and_frozen_ones_stay(tmp_path):
    module = model({"own": words(), "t5": T5.tiny()}, unet({"own": 16, "t5": 32}), drop={"*": 0.1})
    frozen = [p.clone() for p in module.text["t5"].parameters()]
    start = {name: p.detach().clone() for name, p in module.text["own"].named_parameters()}
    trainer = trained(module, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(frozen, module.text["t5"].parameters(), strict=True))
    assert all(not torch.equal(start[name], p) for name, p in module.text["own"].named_parameters())
    assert module.text.train()["own"].training and not module.text["t5"].model.training
    names = module.averaged_parameters()
    assert any(name.startswith("text.own.") for name in names) and not any(name.startswith("text.t5.") for name in names)
    assert trainer.logged_metrics["text/own_truncated"] == 0 and "text/t5_empty" in trainer.logged_metrics

    stored = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert [name for name in stored if name.startswith("text.t5.")] == ["text.t5.stamp"]
    loaded = diffx.load(tmp_path / "end.ckpt", weights="raw")
    cond, again = module.eval().condition(batch()), loaded.condition(batch())
    for name, tokens in cond.tokens.items():
        assert torch.equal(tokens, again.tokens[name]), name
    with pytest.raises(ValueError, match=r"trained with another encoder at text\.t5"):
        diffx.load(tmp_path / "end.ckpt", weights="raw", text={"own": words(), "t5": T5.tiny(seed=5)})


def test_the_sample_verb_takes_prompts(tmp_path, capsys):
    module = model({"a": words(reads="colour_text"), "b": words()}, unet({"a": 16, "b": 16}))
    trained(module, tmp_path, 1, colour_text=TEXTS)
    run = [f"checkpoint={tmp_path / 'end.ckpt'}", f"out={tmp_path / 'out'}", "save=npz"]

    def drawn(*options):
        assert sample.main([*run, *options]) == 0
        return torch.from_numpy(np.load(capsys.readouterr().out.splitlines()[-1])["images"])

    loaded = diffx.load(tmp_path / "end.ckpt")
    one = drawn("n=2", "text=a red circle", "guidance=2")
    assert torch.equal(one, loaded.sample(2, loaded.condition({"text": ["a red circle"] * 2}), guidance=2.0, seed=0))
    several = drawn("text=[a red circle, null, a blue square]")
    assert len(several) == 3
    torch.testing.assert_close(several, loaded.sample(3, loaded.condition({"text": ["a red circle", None, "a blue square"]}), seed=0))
    both = drawn("n=4", "text={colour_text: a red object, text: [a circle, a square]}")
    prompts = {"colour_text": ["a red object"] * 4, "text": ["a circle", "a square"] * 2}
    torch.testing.assert_close(both, loaded.sample(4, loaded.condition(prompts), seed=0))
    assert (tmp_path / "out" / "end-ema-n2-w2-seed0-a_red_circle.npz").is_file()

    for options, message in (
        (["text={caption: a red circle}"], "nothing in this model that reads 'caption'; it reads 'colour_text', 'text'"),
        (["text=[]"], "text must be a prompt"),
        (["text=a purple circle"], "'purple' in 'a purple circle' is not in the vocabulary"),
    ):
        assert sample.main([*run, *options]) != 0
        assert message in capsys.readouterr().err


def test_minilm_can_be_a_vector_only():
    pytest.importorskip("transformers")
    module = model({"m": MiniLM.tiny()}, unet(vectors={"m_pooled": 32}), drop={"m": 0.5})
    cond = module.condition(batch())
    assert not cond.tokens and set(cond.vectors) == {"m_pooled"}
    assert set(module.text.drop(cond, {"m": 0.5}).keep) == {"m_pooled"}
    assert module.sample(3, cond, guidance=2.0).isfinite().all()
