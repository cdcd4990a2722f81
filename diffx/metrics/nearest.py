"""Distances between feature sets: to the nearest item, and to the k-th nearest. Exact, blockwise, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import rng
from .features import rows

__all__ = ["kth_distance", "median_interval", "nearest"]

BLOCK = 1024  # rows of the distance matrix held at once
QUANTILE = 1_000_000  # numbers of which quantiles are taken at once


def nearest(queries: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance of every query (N, D) to its nearest item (M, D), and that item's index.

    On pixels of samples against training pictures this is the simplest test for copies: compare with the distance that held-out pictures
    show.

    Returns:
        (distances (N,) float64, indices (N,) int64). The distances are computed from the differences, so a copy has distance exactly 0.

    Raises:
        ValueError: features of different width.
    """
    queries, items = rows(queries), rows(items)
    index = torch.cat([distances.argmin(1) for distances in _blocks(queries, items)])
    return (queries - items[index]).norm(dim=1), index


def kth_distance(items: Tensor, k: int) -> Tensor:
    """Euclidean distance (N,) of every item (N, D) to its ``k``-th nearest other item, k >= 1.

    Raises:
        ValueError: fewer than k + 1 items.
    """
    items = rows(items)
    if not 1 <= k < len(items):
        raise ValueError(f"k must lie in [1, {len(items) - 1}] for {len(items)} items, got {k}")
    found, start = [], 0
    for distances in _blocks(items, items):
        own = torch.arange(len(distances))
        distances[own, start + own] = torch.inf  # an item is not its own neighbour, a duplicate of it is
        found.append(distances.kthvalue(k, dim=1).values)
        start += len(distances)
    return torch.cat(found)


def median_interval(values: Tensor, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the median of the distribution that ``values`` (N,) come from, by the percentile bootstrap.

    Args:
        values: the measured values (N,).
        draws: bootstrap draws.
        level: share of the draws inside the interval, in (0, 1).
        seed: of the draws.
    """
    index = torch.randint(len(values), (draws, len(values)), generator=rng.generator(seed, "median"))
    medians = torch.cat([values[part].quantile(0.5, dim=1) for part in index.split(max(1, QUANTILE // len(values)))])
    low, high = medians.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=medians.dtype)).tolist()
    return low, high


def _blocks(queries: Tensor, items: Tensor) -> Iterator[Tensor]:
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"the two sets must have features of one width, got {queries.shape[1]} and {items.shape[1]}")
    for part in queries.split(BLOCK):
        yield torch.cdist(part, items)
