"""Longer samples window by window, with an oracle that draws exactly from an AR(1) process given what is known."""

import pytest
import torch

from diffx.continuation import extended, infilled

RHO, FRAMES = 0.8, 8


def oracle(windows, known, number):
    """Exact draws of a stationary AR(1) process of variance 1 given its known places."""
    place = torch.arange(windows.shape[2], dtype=torch.float64)
    covariance = RHO ** (place[:, None] - place).abs()
    flat = windows.double().flatten(0, 1)
    k = known.nonzero()[:, 0]
    u = (~known).nonzero()[:, 0]
    gain = covariance[u][:, k] @ torch.linalg.inv(covariance[k][:, k])
    spread = torch.linalg.cholesky(covariance[u][:, u] - gain @ covariance[k][:, u])
    generator = torch.Generator().manual_seed(number)
    drawn = flat.clone()
    drawn[:, u] = flat[:, k] @ gain.T + torch.randn(len(flat), len(u), generator=generator, dtype=torch.float64) @ spread.T
    return drawn.view(windows.shape).to(windows.dtype)


def series(n):
    return oracle(torch.zeros(n, 1, FRAMES), torch.zeros(FRAMES, dtype=torch.bool), 99)


@pytest.mark.parametrize("overlap", [1, 4, None])
def test_blocks_are_stitched_without_a_seam(overlap):
    m = 4 if overlap is None else overlap
    whole = extended(oracle, series(1000), 5, overlap)[:, 0].double()
    assert whole.shape == (1000, FRAMES + 4 * (FRAMES - m))
    correlation = (whole[:, 1:] * whole[:, :-1]).mean() / whole.square().mean()
    assert correlation == pytest.approx(RHO, abs=0.02)
    steps = whole.diff(dim=1)
    seams = torch.arange(FRAMES - 1, steps.shape[1], FRAMES - m)
    rest = torch.tensor([i for i in range(steps.shape[1]) if i not in seams])
    error = (steps[:, seams].mean(1).var() / 1000 + steps[:, rest].mean(1).var() / 1000).sqrt()
    assert (steps[:, seams].mean() - steps[:, rest].mean()).abs() < 3 * error
    assert (steps[:, seams].var() / steps[:, rest].var()).item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(("factor", "frames"), [(2, 8), (3, 8), (7, 8), (2, 3)])
def test_gaps_are_filled_and_coarse_frames_stay(factor, frames):
    coarse = torch.randn(1000, 1, 1, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 6)
    for i in range(1, 6):  # an AR(1) process seen at every factor-th place
        rho = RHO**factor
        coarse[:, :, i] = rho * coarse[:, :, i - 1] + (1 - rho**2) ** 0.5 * torch.randn(
            1000, 1, generator=torch.Generator().manual_seed(10 + i)
        )
    whole = infilled(oracle, coarse, factor, frames)
    assert whole.shape == (1000, 1, 5 * factor + 1) and torch.equal(whole[:, :, ::factor], coarse)
    whole = whole[:, 0].double()
    assert (whole[:, 1:] * whole[:, :-1]).mean() / whole.square().mean() == pytest.approx(RHO, abs=0.02)
    assert whole.square().mean() == pytest.approx(1, abs=0.05)


def test_windows_are_numbered_and_told_what_is_known():
    seen = []

    def complete(windows, known, number):
        seen.append((number, known.tolist()))
        return torch.where(known, windows, 9.0)

    whole = extended(complete, torch.arange(4.0).view(1, 1, 4), 3, 1)
    assert whole.flatten().tolist() == [0, 1, 2, 3, 9, 9, 9, 9, 9, 9]
    assert seen == [(1, [True, False, False, False]), (2, [True, False, False, False])]


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_an_overlap_that_cannot_be(overlap):
    with pytest.raises(ValueError, match=r"overlap lie in \[1, 8\)"):
        extended(oracle, series(2), 2, overlap)


@pytest.mark.parametrize(("held", "factor"), [(1, 2), (3, 1), (3, 8)])
def test_gaps_that_cannot_be(held, factor):
    with pytest.raises(ValueError, match="coarse frames"):
        infilled(oracle, torch.zeros(2, 1, held), factor, 8)
