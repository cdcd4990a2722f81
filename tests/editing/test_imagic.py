"""Imagic: a text and a copy of the model that know one picture."""

import pytest
import torch
from test_editor import SAMPLER, TEXT, model, pictures

from diffx import Cond, Denoiser, UNet
from diffx.editing import Editor, Imagic, fit_imagic
from diffx.samplers import Euler
from diffx.schedules import Karras, LogNormal

LEVELS = LogNormal(-0.4, 1.0)


def error(denoiser, x, cond):
    """The training loss on noise that is always the same."""
    generator = torch.Generator().manual_seed(7)
    sigma = torch.linspace(0.1, 2.0, 32)
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(32, *x.shape[1:], generator=generator)
    with torch.no_grad():
        estimate = denoiser(noisy, sigma, cond.map(lambda t: t.expand(32, *t.shape[1:])))
    return (denoiser.weight(sigma) * (estimate - x).square().flatten(1).mean(1)).mean().item()


def test_text_and_weights_are_fitted_one_after_the_other_and_the_model_stays():
    module, x = model(), pictures(1)
    target = Editor(module).told(text=TEXT[:1])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    text_only = fit_imagic(module.denoiser, x, target, LEVELS, text_steps=30, text_lr=0.05, steps=0)
    both = fit_imagic(module.denoiser, x, target, LEVELS, text_steps=30, text_lr=0.05, steps=60, lr=3e-3)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(text_only.denoiser.parameters(), module.denoiser.parameters(), strict=True))
    assert torch.equal(text_only.tokens["text"], both.tokens["text"])
    losses = [
        error(module.denoiser, x, target),
        error(text_only.denoiser, x, text_only.cond(target, 0.0)),
        error(both.denoiser, x, both.cond(target, 0.0)),
    ]
    assert losses[0] > losses[1] > losses[2]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in both.tokens.values())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.denoiser.parameters())


def test_shares_lie_on_a_line():
    fitted = Imagic(model().denoiser, {"text": torch.zeros(1, 2, 4)}, {"text_pooled": torch.zeros(1, 4)})
    told = {"text_pooled": torch.ones(3, 4), "size": torch.ones(3, 2)}
    target = Cond(tokens={"text": torch.ones(3, 2, 4)}, masks={"text": torch.ones(3, 2, dtype=torch.bool)}, vectors=told)
    for share in (0.0, 0.7, 1.2):
        cond = fitted.cond(target, share)
        assert torch.equal(cond.tokens["text"], torch.full((3, 2, 4), share))
        assert torch.equal(cond.vectors["text_pooled"], torch.full((3, 4), share)) and torch.equal(cond.vectors["size"], told["size"])


def test_the_pooled_vector_is_fitted_with_the_tokens_and_no_other_vector():
    torch.manual_seed(0)
    net = UNet(3, width=8, mults=(1, 2), blocks=1, tokens={"text": 16}, vectors={"text_pooled": 16, "size": 2})
    target = Cond(tokens={"text": torch.randn(1, 2, 16)}, vectors={"text_pooled": torch.randn(1, 16), "size": torch.ones(1, 2)})
    for parameter in net.parameters():
        parameter.data.normal_(std=0.05)
    fitted = fit_imagic(Denoiser(net), pictures(1), target, LEVELS, text_steps=3, text_lr=0.05, steps=0)
    assert set(fitted.vectors) == {"text_pooled"} and not torch.equal(fitted.vectors["text_pooled"], target.vectors["text_pooled"])


def test_the_editor_goes_from_the_picture_to_the_text():
    torch.manual_seed(0)
    tool, x = Editor(model(), sampler=Euler(10, Karras(0.02, 5.0))), pictures(1)
    target = tool.told(text=TEXT[:1])
    fitted = tool.imagic(x, target, text_steps=10, text_lr=0.05, steps=150, lr=5e-3)
    assert (tool.blend(fitted, target, 0.0) - x).abs().mean() < 0.15  # noise comes back as the picture it was fitted to
    assert not torch.equal(tool.blend(fitted, target, 1.0), tool.blend(fitted, target, 0.0))


@pytest.mark.parametrize("n", [0, 2])
def test_it_fits_one_picture(n):
    tool = Editor(model(), sampler=SAMPLER)
    with pytest.raises(ValueError, match="fits one picture to one target"):
        fit_imagic(tool.module.denoiser, pictures(2)[:n], tool.told(text=TEXT[:1]), LEVELS)
