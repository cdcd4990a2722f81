from __future__ import annotations

import pytest
import torch

from diffx import rng
from diffx.metrics import kth_distance, median_interval, nearest, precision_recall
from diffx.metrics.nearest import BLOCK


def points(n: int, *key, d: int = 3):
    return torch.randn(n, d, generator=rng.generator("nearest", *key), dtype=torch.float64)


def brute(a, b):
    return (a[:, None] - b[None]).square().sum(-1).sqrt()


@pytest.mark.parametrize("n", [1, 50, BLOCK + 3])
def test_nearest_is_exact(n):
    queries, items = points(n, 1), points(70, 2)
    distances, index = nearest(queries, items)
    expected = brute(queries, items).min(1)
    torch.testing.assert_close(distances, expected.values, rtol=1e-12, atol=0)
    assert torch.equal(index, expected.indices)


def test_a_copy_has_distance_zero():
    items = points(400, 3, d=64) + 100
    distances, index = nearest(items[[7, 300]], items)
    assert distances.tolist() == [0, 0]
    assert index.tolist() == [7, 300]


@pytest.mark.parametrize(("n", "k"), [(6, 5), (40, 1), (BLOCK + 40, 3)])
def test_kth_distance_is_exact(n, k):
    items = points(n, 4)
    expected = brute(items, items).sort(1).values[:, k]  # column 0 is the item itself
    torch.testing.assert_close(kth_distance(items, k), expected, rtol=1e-6, atol=1e-9)


def test_a_duplicate_is_a_neighbour():
    items = torch.tensor([[0.0], [0.0], [5.0]])
    assert kth_distance(items, 1).tolist() == [0, 0, 5]
    with pytest.raises(ValueError, match=r"k must lie in \[1, 2\] for 3 items, got 3"):
        kth_distance(items, 3)


def test_median_interval_covers():
    """The interval of a set of 200 holds the true median in about 95 % of cases."""
    hits = 0
    for i in range(150):
        low, high = median_interval(points(200, "median", i, d=1).flatten(), draws=200)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 150 <= 0.99


def test_precision_and_recall_of_constructed_sets():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))  # spacing 1: the third neighbour is at 1 inside, sqrt 2 at corners
    left = grid[grid[:, 0] < 5]
    assert precision_recall(grid, grid) == (1, 1)
    assert precision_recall(grid + 100, grid) == (0, 0)
    precision, recall = precision_recall(left, grid)  # a mode is missing: all samples are good, column 5 is still within reach
    assert precision == 1
    assert recall == pytest.approx(0.6)
    mixed = torch.cat([grid, grid + 1000])  # half of the samples are nonsense, nothing is missing
    assert precision_recall(mixed, grid) == (0.5, 1)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_against_brute_force(k):
    samples, real = points(60, 5), points(45, 6) * 1.5
    for (a, b), found in zip([(samples, real), (real, samples)], precision_recall(samples, real, k=k), strict=True):
        radii = brute(b, b).sort(1).values[:, k]
        assert found == pytest.approx((brute(a, b) <= radii).any(1).double().mean().item())


def test_errors():
    for function in (nearest, precision_recall):
        with pytest.raises(ValueError, match="one width, got 3 and 2"):
            function(points(9, 7), points(9, 8, d=2))
