"""Loss weightings: published values, identities between error spaces, the learned uncertainty."""

from __future__ import annotations

import math

import pytest
import torch
from gaussians import Gaussian
from numpy.polynomial.hermite_e import hermegauss

from diffx.weightings import EDM, SNR, Cosmap, LearnedUncertainty, MinSNR, SNRPlusOne, SoftMinSNR, TruncatedSNR, Uniform

LEVELS = torch.logspace(-3, 3, 25, dtype=torch.float64)


def errors(sigma):
    """Squared errors in x0, eps, v and flow space of one wrong estimate; each prediction is formed from its definition."""
    generator = torch.Generator().manual_seed(0)
    x0, n, guess = torch.randn(3, 16, dtype=torch.float64, generator=generator)
    alpha = 1 / math.sqrt(1 + sigma**2)
    state = x0 + sigma * n
    noise = (state - guess) / sigma  # the noise that goes with the guessed x0
    v = alpha * (n - sigma * x0) - alpha * (noise - sigma * guess)
    return [(e**2).mean() for e in (x0 - guess, n - noise, v, (n - x0) - (noise - guess))]


@pytest.mark.parametrize("sigma", [0.002, 0.5, 5.0, 80.0])
def test_weights_carry_errors_between_spaces(sigma):
    x0, eps, v, flow = errors(sigma)
    at = torch.tensor([sigma], dtype=torch.float64)
    assert (eps / x0).item() == pytest.approx(SNR()(at).item(), rel=1e-11)
    assert (v / x0).item() == pytest.approx(SNRPlusOne()(at).item(), rel=1e-11)
    assert (flow / x0).item() == pytest.approx(((1 + sigma) / sigma) ** 2, rel=1e-11)
    t = sigma / (1 + sigma)
    assert (Cosmap()(at) * x0).item() == pytest.approx((2 / (math.pi * (1 - 2 * t + 2 * t**2)) * flow).item(), rel=1e-11)


def test_published_values():
    half = torch.tensor([0.5])
    assert [w(half).item() for w in (Uniform(), SNR(), SNRPlusOne(), EDM(0.5), TruncatedSNR())] == [1, 4, 5, 8, 4]
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)  # SNR 100, 1, 0.01
    weight = MinSNR(5)(sigma)
    torch.testing.assert_close(weight, weight.new_tensor([5, 1, 0.01]))
    torch.testing.assert_close(weight / SNR()(sigma), weight.new_tensor([0.05, 1, 1]))
    torch.testing.assert_close(weight / SNRPlusOne()(sigma), weight.new_tensor([0.0495050, 0.5, 0.00990099]), rtol=1e-6, atol=0)
    torch.testing.assert_close(TruncatedSNR()(sigma), weight.new_tensor([100, 1, 1]))


def test_soft_min_snr_is_the_sigmoid_weighting():
    gamma, log_snr = 5.0, -2 * LEVELS.log()
    sigmoid = gamma * torch.sigmoid(log_snr - math.log(gamma))
    torch.testing.assert_close(SoftMinSNR(gamma)(LEVELS), sigmoid)
    snr = LEVELS**-2
    torch.testing.assert_close(SoftMinSNR(gamma)(LEVELS), gamma * snr / (snr + gamma))


def expected_loss(sigma, std, sigma_data=0.5):
    """EDM-weighted expected loss of the best denoiser of N(0, std^2): closed form of the residual variance times the weight."""
    return (sigma**2 + sigma_data**2) * std**2 / (sigma_data**2 * (sigma**2 + std**2))


@pytest.mark.parametrize("std", [0.5, 0.25])
def test_edm_loss_at_the_optimum(std):
    sigma = torch.tensor([0.01, 0.2, 0.5, 10.0], dtype=torch.float64)
    nodes, weights = (torch.tensor(t) for t in hermegauss(8))
    x0, n = std * nodes[:, None, None], nodes[None, :, None]  # Gauss-Hermite quadrature is exact for the quadratic error
    state = (x0 + sigma * n).flatten()
    best = Gaussian(0, std)(state, sigma.repeat(64)).view(8, 8, 4)
    expectation = torch.einsum("i,j,ijs->s", weights, weights, (best - x0) ** 2) / weights.sum() ** 2
    loss = EDM(0.5)(sigma) * expectation
    figures = [1.0] * 4 if std == 0.5 else [0.998802, 0.707317, 0.4, 0.250468]
    torch.testing.assert_close(loss, loss.new_tensor(figures), rtol=2e-6, atol=0)
    torch.testing.assert_close(loss, expected_loss(sigma, std), rtol=1e-12, atol=0)


def test_uncertainty_starts_as_identity_and_learns_the_log_of_the_loss():
    head = LearnedUncertainty()
    sigma = torch.logspace(-2.3, 1.3, 256)
    loss = expected_loss(sigma, 0.25)
    assert torch.equal(head(sigma, loss), loss)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = head(sigma, loss).mean()
        total.backward()
        return total

    optimizer.step(closure)
    asked = torch.tensor([0.01, 0.2, 0.5, 10.0])
    torch.testing.assert_close(head.uncertainty(asked), expected_loss(asked, 0.25).log(), rtol=0, atol=0.02)


def test_uncertainty_stays_in_full_precision_under_autocast():
    head = LearnedUncertainty()
    torch.nn.init.normal_(head.weight)
    sigma, loss = torch.rand(8) + 0.1, torch.rand(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(sigma, loss)
    assert torch.equal(mixed, head(sigma, loss))
