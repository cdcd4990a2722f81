from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from diffx import rng
from diffx.metrics import Moments, frechet
from diffx.metrics.frechet import gathered


def features(n: int, d: int, *key, rank: int | None = None, scale: float = 1.0):
    g = rng.generator("frechet", *key)
    mix = torch.randn(rank or d, d, generator=g, dtype=torch.float64)
    return scale * torch.randn(n, rank or d, generator=g, dtype=torch.float64) @ mix + torch.randn(d, generator=g, dtype=torch.float64)


def moments(mean, covariance, count=10**6) -> Moments:
    m = Moments()
    m.count, m.mean, m.scatter = count, torch.as_tensor(mean).double(), torch.as_tensor(covariance).double() * (count - 1)
    return m


def test_known_gaussians():
    """Commuting covariances: |m - n|^2 + sum (sqrt a_i - sqrt b_i)^2; in one dimension (m - n)^2 + (s - t)^2."""
    assert frechet(moments([1.0], [[4.0]]), moments([-2.0], [[0.25]])) == pytest.approx(9 + 1.5**2, rel=1e-12)
    a, b = torch.tensor([1.0, 4.0, 9.0, 0.0]), torch.tensor([4.0, 4.0, 0.0, 16.0])
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet(moments(torch.zeros(4), a.diag()), moments(torch.zeros(4), b.diag())) == pytest.approx(expected, rel=1e-12)


def test_known_gaussians_that_do_not_commute():
    """A projection onto e1 against one onto a line at 60 degrees: tr (A^1/2 B A^1/2)^1/2 = |cos 60| = 1/2, so the distance is 1."""
    e, f = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    assert frechet(moments([0, 0], torch.outer(e, e)), moments([0, 0], torch.outer(f, f))) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("rank", [None, 5])
def test_agrees_with_scipy(rank):
    a, b = features(200, 16, 1, rank=rank), features(150, 16, 2)
    ca, cb = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(ca @ cb)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(ca + cb - 2 * np.real(root))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_singular_covariances_lose_no_digits():
    """Fewer items than features: the same sets inside their own low-dimensional space give the same distance."""
    small_a, small_b = features(30, 6, 3), features(40, 6, 4)
    basis = torch.linalg.qr(features(64, 6, 5)).Q.T  # 6 orthonormal rows in 64 dimensions
    assert frechet(small_a @ basis, small_b @ basis) == pytest.approx(frechet(small_a, small_b), rel=1e-10)
    few = features(5, 64, 6)
    assert frechet(few, few) == pytest.approx(0.0, abs=1e-9)


def test_rotation_shift_scale_symmetry():
    a, b = features(300, 12, 7), features(250, 12, 8)
    rotation = torch.linalg.qr(features(12, 12, 9)).Q
    distance = frechet(a, b)
    assert frechet(a @ rotation + 3, b @ rotation + 3) == pytest.approx(distance, rel=1e-10)
    assert frechet(7 * a, 7 * b) == pytest.approx(49 * distance, rel=1e-10)
    assert frechet(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet(a, a + 2) == pytest.approx(12 * 4, rel=1e-9)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [500], [13, 13, 600, 601]])
def test_shards_merge_to_the_whole(cuts):
    x = features(1000, 9, 10) * 1e-2 + 1e3  # far from the origin, where sums of squares cancel
    whole, covariance = Moments(x), x.T.cov()
    shards = [Moments(part) if len(part) else Moments() for part in x.tensor_split(cuts)]
    merged = Moments().merge(*reversed(shards))
    streamed = Moments.of(part for part in x.tensor_split(cuts) if len(part))
    for found in (whole, merged, streamed):
        assert found.count == 1000
        torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(found.covariance, covariance, rtol=1e-10, atol=1e-10)
    assert frechet(merged, whole) < 1e-10


def test_merging_leaves_the_other_alone():
    a, b = Moments(features(20, 3, 11)), Moments(features(20, 3, 12))
    before = b.scatter.clone()
    Moments().merge(b).merge(a)
    assert torch.equal(b.scatter, before)
    assert b.count == 20


def test_errors():
    with pytest.raises(ValueError, match="one width, got 3 and 4"):
        frechet(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="3 and of 4 features"):
        Moments(torch.zeros(5, 3)).update(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least 2 items, got 1"):
        frechet(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="flatten images first"):
        frechet(torch.zeros(5, 1, 2, 2), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="1 of 5 items have features that are not finite"):
        Moments(torch.tensor([1.0, 2.0, 3.0, float("nan"), 5.0])[:, None])


@pytest.mark.parametrize("n", [2, 7, 39, 60])
def test_few_rows_take_the_short_road_to_the_same_number(n):
    few, many = torch.randn(n, 40).double() @ torch.randn(40, 40).double(), torch.randn(300, 40).double() + 0.3
    long = frechet(Moments(few), Moments(many))
    assert frechet(few, many) == pytest.approx(long, rel=1e-9)
    assert frechet(Moments(many), few) == pytest.approx(long, rel=1e-9)
    assert frechet(few, few) == pytest.approx(0, abs=1e-6 * few.square().sum().item())


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 30), (39, 25)])
def test_two_sets_of_few_rows_need_no_covariance(n, m):
    a, b = torch.randn(n, 40).double() @ torch.randn(40, 40).double(), torch.randn(m, 40).double() + 0.3
    assert gathered(a) is a and isinstance(gathered(torch.randn(40, 40)), Moments)
    assert frechet(a, b) == pytest.approx(frechet(Moments(a), Moments(b)), rel=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9 * a.square().sum().item())
    with pytest.raises(ValueError, match="a covariance needs at least 2 items, got 1"):
        frechet(a[:1], b)
    with pytest.raises(ValueError, match="features of one width, got 40 and 39"):
        frechet(a, b[:, 1:])


def test_pictures_of_many_pixels_need_no_covariance_either():
    """One of 100,000 pixels would take 75 GiB. Sets that differ in disjoint pixels have no overlap: what is left are plain variances."""
    a, b = torch.randn(20, 100_000), torch.randn(30, 100_000)
    a[:, 50_000:], b[:, :50_000] = 0, 0
    apart = (a.double().mean(0) - b.double().mean(0)).square().sum() + a.double().var(0).sum() + b.double().var(0).sum()
    assert frechet(a, gathered(b)) == pytest.approx(apart.item(), rel=1e-12)
