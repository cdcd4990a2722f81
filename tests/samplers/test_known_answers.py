"""Samplers against closed forms: orders of convergence, exact coefficients and variances on Gaussians, classical equivalences.

Variances are exact, not estimated: each noise the sampler draws is a new basis vector, so that on Gaussian data the squared norm of the
result is the variance of the sample.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from gaussians import Gaussian, Mixture, column

from diffx import rng
from diffx.samplers import LMS, Ancestral, DPMpp2M, DPMpp2MSDE, Euler, Heun
from diffx.schedules import DDPM, Karras


@pytest.fixture
def variance(monkeypatch):
    """``variance(sampler, data)``: variance of the samples over that of the data, for a Gaussian of mean 0."""

    def measure(sampler, data=Gaussian(0, 0.5)):
        drawn = iter(range(1, sampler.steps + 1))
        basis = torch.eye(1, sampler.steps + 1, dtype=torch.float64)
        monkeypatch.setattr(rng, "randn", lambda *_, **__: torch.zeros_like(basis).index_fill_(1, torch.tensor(next(drawn)), 1))
        return sampler(data, basis).square().sum().item() / data.std**2

    return measure


def errors(make, data, x, exact, steps):
    """Largest error at the last non-zero level of Karras grids."""
    samplers = [make(n, Karras()) for n in steps]
    return [(s.walk(data, x, s.sigmas()[:-1]) - exact).abs().max().item() for s in samplers]


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


ORDERS = [  # sampler, range of the slopes, error with 65 levels
    (Euler, (0.9, 1.05), 2.820e-2),
    (Heun, (1.9, 2.15), 2.308e-3),
    (DPMpp2M, (1.9, 2.2), 2.395e-3),
    (LMS, (3.3, 4.1), 4.533e-4),
]


@pytest.mark.parametrize(("make", "bounds", "error"), ORDERS)
def test_order_on_a_gaussian(make, bounds, error):
    data = Gaussian(0.1, 0.5)
    found = errors(make, data, column(104.0), data.flow(104, 80, 0.002), (33, 65, 129, 257))
    assert found[1] == pytest.approx(error, rel=1e-3)
    assert all(bounds[0] < slope < bounds[1] for slope in slopes(found))


def transported(data, x, sigma, sigma_next):
    """Exact end of the probability-flow ODE in one dimension: it keeps every point's quantile."""

    def cdf(y, level):
        weights, means, stds = (torch.tensor(t, dtype=torch.float64) for t in (data.weights, data.means, data.stds))
        return (weights * torch.special.ndtr((y - means) / (stds**2 + level**2).sqrt())).sum(-1, keepdim=True)

    low, high = torch.full_like(x, -3), torch.full_like(x, 3)
    for _ in range(80):
        middle = (low + high) / 2
        below = cdf(middle, sigma_next) < cdf(x, sigma)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


@pytest.mark.parametrize(("make", "bounds"), [(Euler, (0.95, 1.05)), (Heun, (1.9, 2.1)), (DPMpp2M, (1.75, 2.1)), (LMS, (3.3, 4.2))])
def test_order_on_a_mixture(make, bounds):
    data, x = Mixture(), column(20.0, -35.0, 64.0)
    found = errors(make, data, x, transported(data, x, 80.0, 0.002), (65, 129, 257, 513))
    assert all(bounds[0] < slope < bounds[1] for slope in slopes(found))


def test_mixture_oracle():
    data, x = Mixture(), column(-1.0, 0.0, 1.0).requires_grad_()
    sigma = torch.full((3,), 0.5, dtype=torch.float64)
    found = data(x, sigma)
    torch.testing.assert_close(found, column(-0.5622617, 0.1705145, 0.5633810), rtol=0, atol=5e-8)
    (score,) = torch.autograd.grad(data.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(found, x + 0.25 * score, rtol=0, atol=1e-14)


def coefficient(sampler, data=Gaussian(0, 0.5)):
    """What a state of 1 at the first level becomes."""
    return sampler(data, column(1 / 80)).item()


def test_euler_coefficient_is_a_product():
    sigmas = Euler(18).sigmas()
    product = math.prod(1 + (b - a) * a / (a**2 + 0.25) for a, b in pairwise(sigmas))
    assert coefficient(Euler(18)) == pytest.approx(product, rel=1e-12)
    assert coefficient(Euler(18)) == pytest.approx(0.00528789295510, rel=1e-11)


def test_heun_coefficient():
    exact = Gaussian(0, 0.5).flow(1, 80, 0)
    assert exact == pytest.approx(0.00624987793, rel=1e-8)
    assert coefficient(Heun(18)) == pytest.approx(0.00659530796251, rel=1e-11)
    assert coefficient(Heun(18)) * 80 / 0.5 == pytest.approx(1.0552492, rel=1e-7)  # std of the samples over that of the data


@pytest.mark.parametrize(
    ("make", "figures"),
    [
        (Heun, (0.4875, 0.1136, 0.03164, 0.01964, 0.00734)),
        (Euler, (-0.4665, -0.2841, -0.1675, -0.1356, -0.0863)),
        (DPMpp2M, (0.3428, 0.1285, 0.0343, 0.0209, 0.00762)),
    ],
)
def test_variance_error_of_the_ode(make, figures):
    exact = Gaussian(0, 0.5).flow(1, 80, 0)
    for steps, figure in zip((10, 18, 32, 40, 64), figures, strict=True):
        assert (coefficient(make(steps)) / exact) ** 2 - 1 == pytest.approx(figure, rel=2e-3)


@pytest.mark.parametrize(("steps", "options", "figure"), [
    (256, {}, 1.00038),
    (256, {"churn": 40}, 1.00394),
    (256, {"churn": 40, "churn_noise": 1.003}, 1.00998),
    (18, {}, 1.11355),
])  # fmt: skip
def test_churn_variance(variance, steps, options, figure):
    sampler = Heun(steps, churn_min=0.05, churn_max=50, **options)
    assert variance(sampler) == pytest.approx(figure, abs=1e-5) == pytest.approx(churn_recursion(sampler), abs=1e-5)


def churn_recursion(sampler):
    """V <- (V + (h^2 - a^2) S^2) c^2 with c the coefficient of one Heun step on N(0, 0.25)."""
    slope = lambda s: s / (s**2 + 0.25)  # noqa: E731  dx/dsigma = slope * x
    sigmas, total = sampler.sigmas(), 6400.0
    for a, b in pairwise(sigmas):
        gamma = min(sampler.churn / sampler.steps, math.sqrt(2) - 1) if sampler.churn_min <= a <= sampler.churn_max else 0
        h = a * (1 + gamma)
        euler = 1 + (b - h) * slope(h)
        heun = 1 + (b - h) * (slope(h) + slope(b) * euler) / 2 if b > 0 else euler
        total = (total + (h**2 - a**2) * sampler.churn_noise**2) * heun**2
    return total / 0.25


def test_churn_variance_by_sampling():
    noise = 80 * rng.randn((20_000, 1), rng.generator(0), dtype=torch.float64) / 80
    x = Heun(64, churn=40, churn_min=0.05, churn_max=50)(Gaussian(0, 0.5), noise, generator=rng.generator(1))
    assert x.var().item() / 0.25 == pytest.approx(churn_recursion(Heun(64, churn=40, churn_min=0.05, churn_max=50)), rel=0.03)


def test_ancestral_step_is_the_posterior():
    a, b, x = 3.0, 1.2, column(2.0)
    mean = Ancestral(eta=1)
    noises = {}
    for name, sampler in (("small", mean), ("large", Ancestral(variance=1))):
        drawn = [sampler.step(Gaussian(), x, a, b, rng.generator(0)), rng.randn((1, 1), rng.generator(0), dtype=torch.float64)]
        posterior = (b / a) ** 2 * x + (1 - (b / a) ** 2) * Gaussian()(x, torch.full((1,), a, dtype=torch.float64))
        noises[name] = (((drawn[0] - posterior) / drawn[1]) ** 2).item()
    assert noises == pytest.approx({"small": 1.2096, "large": 1.84464}, rel=1e-12)


@pytest.mark.parametrize(("steps", "figure"), [(18, 0.54124), (64, 0.83091), (256, 0.95383), (1000, 0.98790), (4000, 0.99695)])
def test_ancestral_variance(variance, steps, figure):
    assert variance(Ancestral(steps)) == pytest.approx(figure, abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "figure"), [(18, 1.27976), (32, 1.09096), (64, 1.02047), (128, 1.00482), (256, 1.00116), (1024, 1.00006)]
)
def test_2m_sde_variance(variance, steps, figure):
    assert variance(DPMpp2MSDE(steps)) == pytest.approx(figure, abs=1e-5)


def test_stochastic_samplers_without_noise_are_their_odes():
    x = column(1.0, -0.5, 0.2)
    torch.testing.assert_close(Ancestral(20, eta=0)(Mixture(), x), Euler(20)(Mixture(), x), rtol=1e-12, atol=0)
    torch.testing.assert_close(DPMpp2MSDE(20, eta=0)(Mixture(), x), DPMpp2M(20)(Mixture(), x), rtol=1e-12, atol=0)
    torch.testing.assert_close(LMS(20, order=1)(Mixture(), x), Euler(20)(Mixture(), x), rtol=1e-11, atol=0)


def test_ddim_in_variance_preserving_coordinates_is_euler():
    data, sampler, x = Mixture(), Euler(40, DDPM()), column(1.0, -0.3, 0.05)
    sigmas = sampler.sigmas()
    z = x * sigmas[0] / math.sqrt(1 + sigmas[0] ** 2)
    for a, b in pairwise(sigmas):
        alpha, alpha_next = (1 / math.sqrt(1 + s**2) for s in (a, b))
        x0 = data(z / alpha, torch.full((3,), a, dtype=torch.float64))
        eps = (z - alpha * x0) / (a * alpha)
        z = alpha_next * x0 + b * alpha_next * eps
    torch.testing.assert_close(sampler(data, x), z, rtol=0, atol=1e-12)


def test_euler_in_flow_time_is_euler():
    data, times = Mixture(), torch.linspace(0.999, 0, 31, dtype=torch.float64).tolist()
    z = column(1.0, -0.3, 0.05)
    x = z / (1 - times[0])
    for t, t_next in pairwise(times):
        x0 = data(z / (1 - t), torch.full((3,), t / (1 - t), dtype=torch.float64))
        z = z + (t_next - t) * (z - x0) / t  # velocity n - x0
    torch.testing.assert_close(Euler(30).walk(data, x, [t / (1 - t) for t in times]), z, rtol=0, atol=1e-12)


def test_first_order_dpm_solver_is_euler():
    data, x, sigmas = Mixture(), column(80.0, -30.0, 4.0), Euler(30).sigmas()[:-1]
    expected = x
    for a, b in pairwise(sigmas):
        h = math.log(a / b)
        expected = b / a * expected - math.expm1(-h) * data(expected, torch.full((3,), a, dtype=torch.float64))
    torch.testing.assert_close(Euler(30).walk(data, x, sigmas), expected, rtol=0, atol=1e-12)


def test_encoding_walks_the_same_levels_upward():
    sigmas = Karras(0.02, 10).grid(256, dtype=torch.float64)[:-1].tolist()
    x = column(1.0)
    up = Euler().walk(Gaussian(0, 0.5), x, sigmas[::-1])
    assert Euler().walk(Gaussian(0, 0.5), up, sigmas).item() == pytest.approx(0.98763, abs=1e-5)
