from __future__ import annotations

import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from diffx import rng
from diffx.metrics import kid, mmd


def gaussian(n: int, *key, d: int = 4):
    return torch.randn(n, d, generator=rng.generator("kid", *key), dtype=torch.float64)


def test_agrees_with_a_double_sum():
    a, b = gaussian(7, 1), gaussian(5, 2) + 1
    k = lambda s, t: polynomial_kernel(s, t, degree=3, gamma=1 / 4, coef0=1)  # noqa: E731
    kaa, kbb, kab = k(a, a), k(b, b), k(a, b)
    within = (
        sum(kaa[i, j] for i in range(7) for j in range(7) if i != j) / 42
        + sum(kbb[i, j] for i in range(5) for j in range(5) if i != j) / 20
    )
    assert mmd(a, b) == pytest.approx(within - 2 * kab.mean(), rel=1e-12)


@pytest.mark.parametrize("n", [4, 30])
def test_unbiased_on_equal_distributions(n):
    """The mean over many draws is 0 within four standard errors, however small the sets; the biased estimate is far outside."""
    values = torch.tensor([mmd(gaussian(n, n, i, "a"), gaussian(n + 3, n, i, "b")) for i in range(1000)])
    error = values.std() / 1000**0.5
    assert values.mean().abs() < 4 * error
    diagonal = ((gaussian(2000, "diagonal").square().sum(1) / 4 + 1) ** 3).mean() / n  # about what leaving the diagonal in would add
    assert diagonal > 10 * error


def test_unbiased_on_unequal_distributions():
    """One dimension, kernel (xy + 1)^3, N(0, 1) against N(m, 1): MMD^2 = sum over k of binom(3, k) (E x^k - E y^k)^2."""
    m = 0.7
    gaps = (m, m**2, m**3 + 3 * m)  # of the first three moments
    expected = 3 * gaps[0] ** 2 + 3 * gaps[1] ** 2 + gaps[2] ** 2
    values = torch.tensor([mmd(gaussian(40, i, "x", d=1), gaussian(40, i, "y", d=1) + m) for i in range(1000)])
    assert values.mean().item() == pytest.approx(expected, abs=4 * (values.std() / 1000**0.5).item())


def test_subsets():
    a, b = gaussian(120, 3), gaussian(90, 4) + 0.5
    assert kid(a, b, seed=1) == kid(a, b, seed=1)
    assert kid(a, b, size=50, seed=1) != kid(a, b, size=50, seed=2)
    mean, spread = kid(a, a + 0, size=120, subsets=3)  # the subsets are the whole sets: all draws agree
    assert mean == pytest.approx(mmd(a, a))
    assert spread == pytest.approx(0, abs=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="one width, got 4 and 3"):
        kid(gaussian(5, 5), gaussian(5, 6, d=3))
    with pytest.raises(ValueError, match="at least 2 items a side, got 5 and 1"):
        mmd(gaussian(5, 5), gaussian(1, 6))
    with pytest.raises(ValueError, match="at least 2 subsets"):
        kid(gaussian(5, 5), gaussian(5, 6), subsets=1)
