"""RIN's training and sampling: who is told latents, what carries a gradient, warm starts, gamma, input scale."""

from itertools import pairwise

import pytest
import timm.optim
import torch
from technique_list import labels, pictures, rin
from torch import nn

from diffx import Cond, Denoiser
from diffx.denoiser import EpsPrecond, SignalShare
from diffx.networks import UNet
from diffx.recipes.build import build
from diffx.recipes.compose import compose
from diffx.samplers import Ancestral, Euler
from diffx.schedules import GammaCosine, Shifted, Sigmoid
from diffx.techniques import RINDiffusion


class Recorder(nn.Module):
    """A network with one weight that writes down what it is handed: it hands on its input's mean, and answers with weight times carry."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, noise, cond, carry=None):
        self.calls.append((x, noise, carry, torch.is_grad_enabled()))
        latents = self.weight * x.flatten(1).mean(1)[:, None, None].expand(-1, 2, 3)
        told = 0.0 if carry is None else carry.mean((1, 2))[:, None, None, None]
        return self.weight * (x + told), latents


def recorded(**options):
    net = Recorder()
    return net, RINDiffusion(net, shape=(1, 8, 8), drop=0.0, sampler=Euler(3, GammaCosine()), **options)


def test_a_share_of_the_samples_is_told_the_latents_of_a_first_call():
    net, module = recorded(rate=0.7)
    torch.manual_seed(0)
    module.loss({"x": torch.rand(2000, 1, 8, 8) * 2 - 1})
    (x, noise, none, grad), (again, same, carry, second) = net.calls
    assert none is None and not grad and second
    assert torch.equal(x, again) and torch.equal(noise, same)
    told = carry.flatten(1).any(1)
    assert told.float().mean().item() == pytest.approx(0.7, abs=0.04)
    torch.testing.assert_close(carry[told], x.flatten(1).mean(1)[told, None, None].expand(-1, 2, 3))


def test_the_gradient_flows_through_the_second_call_only():
    """With out = w (x + carry) and the carry w mean(x) of the first call held fixed, d loss / d w is that of the product alone."""
    net, module = recorded(rate=1.0)
    batch = {"x": torch.rand(16, 1, 8, 8) * 2 - 1}
    torch.manual_seed(0)
    module.loss(batch)["loss"].mean().backward()
    x, noise, carry, _ = net.calls[1]
    assert carry.grad_fn is None and not carry.requires_grad
    w = torch.ones((), requires_grad=True)
    sigma = (1000 / noise - 1).sqrt()
    out = w * (x + carry.mean((1, 2))[:, None, None, None])
    state = x * (1 + sigma**2).sqrt()[:, None, None, None]
    estimate = state - sigma[:, None, None, None] * out
    loss = ((estimate - batch["x"]).square().flatten(1).mean(1) / sigma**2).mean()
    loss.backward()
    torch.testing.assert_close(net.weight.grad, w.grad, rtol=1e-3, atol=1e-5)


def test_rate_0_never_makes_the_first_call():
    net, module = recorded(rate=0.0)
    module.loss({"x": torch.zeros(4, 1, 8, 8)})
    assert len(net.calls) == 1 and net.calls[0][2] is None


def test_a_walk_hands_on_the_latents_of_its_own_samples():
    """Every evaluation gets what the one before gave, in every chunk from nothing."""
    net, module = recorded()
    module.sample(5, seed=0, chunk=3)
    assert len(net.calls) == 6
    for start in (0, 3):
        assert net.calls[start][2] is None
        for before, after in zip(net.calls[start : start + 2], net.calls[start + 1 : start + 3], strict=True):
            assert torch.equal(after[2], net.weight * before[0].flatten(1).mean(1)[:, None, None].expand(-1, 2, 3))


def test_under_guidance_both_branches_read_the_latents_of_the_condition():
    module, seen = rin(), []
    module.denoiser.net.register_forward_hook(lambda net, inputs, kwargs, out: seen.append((kwargs.get("carry"), out[1])), with_kwargs=True)
    module.sample(3, labels(3), guidance=2.0, seed=0)
    assert seen[0][0] is None and len(seen) == 4
    for (_, given), (carry, _) in pairwise(seen):
        conditional = given[:3]
        assert torch.equal(carry, torch.cat([conditional, conditional]))


def test_warm_and_cold_sampling_differ_once_the_carry_is_learnt_and_are_finite():
    module = rin()
    for parameter in module.denoiser.net.parameters():
        nn.init.normal_(parameter, std=0.2)
    warm = module.sample(4, labels(4), seed=0)
    cold = module.sample(4, labels(4), seed=0, guidance=lambda denoiser, cond: lambda x, sigma: denoiser(x, sigma, cond))
    assert warm.isfinite().all() and cold.isfinite().all() and not torch.allclose(warm, cold)
    assert warm.abs().max() <= 1


def test_the_network_is_told_gamma():
    """Published levels: the sigmoid of temperature 0.9 in training, the cosine in sampling; 1000 gamma is what the network sees."""
    module = rin()
    assert module.schedule == Sigmoid(tau=0.9) and module.denoiser.precond == EpsPrecond(SignalShare())
    u = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    told = module.denoiser.precond(module.schedule.sigma(u)).noise / 1000
    torch.testing.assert_close(told, torch.tensor([0.967218, 0.866370, 0.5, 0.133630, 0.032782]), atol=1e-6, rtol=0)
    default = RINDiffusion(Recorder(), shape=(1, 8, 8))
    assert default.sampler == Ancestral(100, GammaCosine(), variance=1.0)


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_an_input_scale_is_a_move_of_the_levels(scale):
    """Sqrt(gamma) b x + sqrt(1 - gamma) n, brought to unit deviation, is what a network with standardised input sees, at the same gamma."""
    net = Recorder()
    module = RINDiffusion(net, shape=(1, 8, 8), scale=scale, rate=0.0)
    assert module.schedule == Shifted.input_scale(Sigmoid(tau=0.9), scale)
    assert module.sampler.schedule == Shifted.input_scale(GammaCosine(), scale)
    x, n, u = torch.rand(6, 1, 8, 8) * 2 - 1, torch.randn(6, 1, 8, 8), torch.linspace(0.1, 0.9, 6)
    sigma = module.schedule.sigma(u)
    gamma = 1 / (1 + Sigmoid(tau=0.9).sigma(u) ** 2)
    module.denoiser(x + sigma[:, None, None, None] * n, sigma)
    seen, noise = net.calls[0][:2]
    torch.testing.assert_close(noise, 1000 * gamma, rtol=1e-4, atol=1e-3)
    published = gamma.sqrt()[:, None, None, None] * scale * x + (1 - gamma).sqrt()[:, None, None, None] * n
    whiten = lambda t: t / t.flatten(1).std(1)[:, None, None, None]  # noqa: E731
    torch.testing.assert_close(whiten(seen), whiten(published), rtol=1e-4, atol=1e-4)


def test_estimates_are_clipped_in_sampling_unless_told_otherwise():
    for clip in (True, False):
        _, module = recorded(clip=clip)
        _, guide = module.guided(2, Cond(), 1.0)
        estimate = guide(module.denoiser, Cond())(torch.full((2, 1, 8, 8), 50.0), torch.full((2,), 1.0))
        assert (estimate.abs().max() <= 1) == clip


def test_lamb_descends():
    """The paper's optimizer, without a clipping of its own, on one batch."""
    torch.manual_seed(0)
    module = rin(optimizer=lambda groups: timm.optim.Lamb(groups, lr=5e-3, max_grad_norm=None))
    optimizer = module.configure_optimizers()["optimizer"]
    batch, losses = pictures(16), []
    for _ in range(150):
        torch.manual_seed(1)
        loss = module.loss(batch)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rin(rate=1.1), r"in \[0, 1\]; got 1.1"),
        (lambda: rin(rate=-0.1), r"in \[0, 1\]; got -0.1"),
        (lambda: rin(scale=0.0), "scale must be positive, got 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_that_hands_nothing_on():
    module = RINDiffusion(Denoiser(UNet(channels=1, width=16, mults=(1,), blocks=1)), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="UNet hands no latents on"):
        module.loss({"x": pictures(2)["x"]})


def test_guidance_of_a_module_trained_without_hidden_labels():
    with pytest.raises(ValueError, match="drop is 0"):
        rin(drop=0.0).sample(2, labels(2), guidance=2.0)


def test_the_experiment_on_imagenet_is_the_published_network():
    module = compose("imagenet/rin_256", ["data.root=pictures"]).tree["module"]
    with torch.device("meta"):
        made = build(module["denoiser"])
    assert sum(p.numel() for p in made.parameters()) == 395_928_256 and made.grid == (32, 32)
