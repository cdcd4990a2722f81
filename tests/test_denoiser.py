"""Denoiser: every preconditioning against its definition, the border's checks, precision, and a tiny training run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffx import rng
from diffx.conditions import Cond
from diffx.denoiser import (
    Denoiser,
    EDMPrecond,
    EpsPrecond,
    FlowPrecond,
    FlowTime,
    LogSigma,
    Position,
    SignalShare,
    Timesteps,
    VPrecond,
    X0Precond,
)
from diffx.recipes import recipe_of
from diffx.schedules import DDPM, VP, LogNormal
from diffx.tensors import expand, mean_flat
from diffx.weightings import EDM

PRECONDS = {
    "edm": EDMPrecond(),
    "edm_1": EDMPrecond(1.0),
    "eps": EpsPrecond(),
    "v": VPrecond(),
    "x0": X0Precond(),
    "flow": FlowPrecond(),
}
every_precond = pytest.mark.parametrize("precond", PRECONDS.values(), ids=PRECONDS)
LEVELS = torch.tensor([0.002, 0.5, 5.0, 80.0], dtype=torch.float64)


class Recorder(nn.Module):
    """Returns a given output and remembers what it was given."""

    def __init__(self, out=None, extra=None):
        super().__init__()
        self.out, self.extra, self.seen = out, extra, None

    def forward(self, x, noise, cond, **inputs):
        self.seen = (x, noise, cond, inputs)
        out = torch.zeros_like(x) if self.out is None else self.out
        return out if self.extra is None else (out, self.extra)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator)


def predictions(x0, n, sigma):
    """What each kind of network is trained to return, from its definition."""
    sigma = expand(sigma, x0)
    alpha = (1 + sigma**2) ** -0.5
    sd = 0.5
    skip, out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    return {
        "edm": (x0 - skip * (x0 + sigma * n)) / out,
        "edm_1": -(alpha * n - alpha * sigma * x0),  # F = -v when sigma_data is 1
        "eps": n,
        "v": alpha * n - alpha * sigma * x0,
        "x0": x0,
        "flow": n - x0,
    }


@pytest.mark.parametrize("name", PRECONDS)
def test_x0_comes_back_from_what_the_network_should_say(name, pair):
    x0, n = pair
    x = x0 + expand(LEVELS, x0) * n
    out = predictions(x0, n, LEVELS)[name]
    denoiser = Denoiser(Recorder(out), PRECONDS[name])
    assert (denoiser(x, LEVELS) - x0).abs().max() < 1e-12
    torch.testing.assert_close(denoiser.target(x, LEVELS, x0), out, rtol=0, atol=2e-12 / 0.002)
    torch.testing.assert_close(denoiser.assemble(x, LEVELS, denoiser.target(x, LEVELS, x0)), x0, rtol=0, atol=1e-12)


def test_score_and_trigflow_are_the_same_estimate(pair):
    x0, n = pair
    sigma, sd = expand(LEVELS, x0), 0.5
    x, angle = x0 + sigma * n, torch.atan(sigma / sd)
    assert (x + sigma**2 * (-n / sigma) - x0).abs().max() < 1e-12
    trig = (angle.cos() * sd * n - angle.sin() * x0) / sd
    assert (angle.cos() * (angle.cos() * x) - angle.sin() * sd * trig - x0).abs().max() < 1e-12
    torch.testing.assert_close(Denoiser(Recorder()).target(x, LEVELS, x0), -trig, rtol=1e-9, atol=1e-9)


@every_precond
def test_the_input_has_the_scale_of_its_process(precond, pair):
    x0, n = pair
    x = x0 + expand(LEVELS, x0) * n
    denoiser = Denoiser(Recorder(), precond)
    denoiser(x, LEVELS)
    sigma = expand(LEVELS, x0)
    if isinstance(precond, FlowPrecond):
        t = sigma / (1 + sigma)
        native = (1 - t) * x0 + t * n
    else:
        sd = precond.sigma_data if isinstance(precond, EDMPrecond) else 1.0
        native = x / (sigma**2 + sd**2).sqrt()
    torch.testing.assert_close(denoiser.net.seen[0], native)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.2])
def test_edm_preconditioning_of_gaussian_data(sigma_data):
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    s = EDMPrecond(sigma_data)(sigma)
    total = sigma**2 + sigma_data**2
    one = torch.ones_like(sigma)
    torch.testing.assert_close(s.inp**2 * total, one)  # unit input
    target = ((1 - s.skip) ** 2 * sigma_data**2 + s.skip**2 * sigma**2) / s.out**2
    torch.testing.assert_close(target, one)  # unit target
    shared = (1 - s.skip) * sigma_data**2 - s.skip * sigma**2  # covariance of target and input
    assert (shared.abs() / total).max() < 1e-15
    torch.testing.assert_close(EDM(sigma_data)(sigma) * s.out**2, one, rtol=1e-12, atol=0)


@every_precond
def test_weight_makes_the_error_that_of_the_raw_output(precond, pair):
    x0, n = pair
    x, denoiser = x0 + expand(LEVELS, x0) * n, Denoiser(Recorder(n.flip(0)), precond)
    weighted = denoiser.weight(LEVELS) * mean_flat((denoiser(x, LEVELS) - x0) ** 2)
    raw = mean_flat((denoiser.raw(x, LEVELS)[0] - denoiser.target(x, LEVELS, x0)) ** 2)
    torch.testing.assert_close(weighted, raw)


def test_noise_coordinates():
    sigma = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(LogSigma()(sigma), sigma.log() / 4)
    torch.testing.assert_close(FlowTime()(sigma), 1000 * sigma / (1 + sigma))
    torch.testing.assert_close(SignalShare()(sigma), 1000 / (1 + sigma**2))
    torch.testing.assert_close(Position(VP(), 999)(VP().sigma(sigma / 100)), 999 * sigma / 100)
    table = DDPM().table
    torch.testing.assert_close(Timesteps()(table.float()), torch.arange(1000.0), rtol=0, atol=2e-3)


def test_what_the_network_is_given_and_gives(pair):
    x, cond = pair[0].float(), Cond(label=torch.arange(4))
    net = Recorder(torch.ones(4, 6, 5), extra="latents")
    denoiser = Denoiser(net, X0Precond())
    assert torch.equal(denoiser(x, LEVELS, cond), torch.ones(4, 3, 5))  # channels beyond those of x are dropped
    assert net.seen[2] is cond
    out, extra = denoiser.raw(x, LEVELS, cond, carry=1)
    assert out.shape == (4, 6, 5)
    assert extra == "latents"
    assert net.seen[3] == {"carry": 1}
    assert Denoiser(Recorder()).raw(x, LEVELS)[1] is None


@pytest.mark.parametrize("sigma", [0.5, torch.tensor(0.5), torch.ones(3), torch.ones(4, 1)])
def test_sigma_is_one_level_per_sample(sigma, pair):
    with pytest.raises(ValueError, match=r"sigma must be one level per sample, \(4,\), got"):
        Denoiser(Recorder())(pair[0], sigma)


def test_an_output_that_does_not_fit_is_refused(pair):
    with pytest.raises(ValueError, match="at least the channels"):
        Denoiser(Recorder(torch.zeros(4, 2, 5)))(pair[0], LEVELS)


def test_precision(pair):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.noise = nn.Linear(5, 5), None

        def forward(self, x, noise, cond):
            self.noise = noise
            return self.layer(x)

    x, sigma = pair[0], LEVELS
    denoiser = Denoiser(Linear())
    assert denoiser(x, sigma).dtype == torch.float64  # a float64 state passes a float32 network
    assert denoiser.net.noise.dtype == torch.float64
    assert denoiser(x.float(), sigma).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = denoiser(x.float(), sigma)
        assert denoiser.raw(x.float(), sigma)[0].dtype == torch.bfloat16
    assert out.dtype == torch.float32
    clean = out[0] - denoiser.precond(LEVELS.float()).skip[0] * x[0].float()
    assert clean.abs().max() < 0.01  # at sigma = 0.002 the network counts for little: D is not rounded to bfloat16
    half = Denoiser(Linear().bfloat16())
    assert half(x.bfloat16(), sigma).dtype == torch.float32
    assert half.net.noise.dtype == torch.float32


@every_precond
def test_preconditionings_are_values_with_a_recipe(precond):
    assert recipe_of(precond)["_target_"] == f"diffx.denoiser.{type(precond).__name__}"
    assert type(precond)() == type(precond)()


def test_training_reaches_the_optimal_loss_of_gaussian_data():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

        def forward(self, x, noise, cond):
            return self.layers(torch.cat([x, noise[:, None]], 1))

    denoiser, schedule, generator = Denoiser(Net()), LogNormal(), rng.generator("train")
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    losses = []
    for step in range(1000):
        x0, n = 0.5 * torch.randn(256, 1, generator=generator), torch.randn(256, 1, generator=generator)
        sigma = schedule.draw(256, generator=generator)
        error = mean_flat((denoiser(x0 + sigma[:, None] * n, sigma) - x0) ** 2)
        loss = (denoiser.weight(sigma) * error).mean()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 1000)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) / 50 == pytest.approx(1, abs=0.05)  # the best possible, whatever the level
    assert losses[0] > 1.05
    probe = torch.tensor([[1.0]])
    assert denoiser(probe, torch.tensor([0.5])).item() == pytest.approx(0.5, abs=0.05)  # sd^2 / (sd^2 + sigma^2)
    assert math.isfinite(losses[-1])
