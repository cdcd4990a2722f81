"""Improved precision and recall (Kynkaanniemi et al. 2019): how many samples lie in the data's support, and how much of it they reach."""

from __future__ import annotations

import torch
from torch import Tensor

from .features import rows
from .nearest import BLOCK, kth_distance

__all__ = ["precision_recall"]


def precision_recall(samples: Tensor, real: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Precision and recall of ``samples`` (N, D) against ``real`` (M, D), both in [0, 1].

    The support of a set is the union of the balls around its items that reach to their ``k``-th nearest neighbour in the set. Precision is
    the share of samples inside the support of the real set, recall the share of real items inside the support of the samples. Both grow
    with the size of the set that makes the support: compare equal counts.

    Raises:
        ValueError: features of different width, or too few items for ``k``.
    """
    samples, real = rows(samples), rows(real)
    if samples.shape[1] != real.shape[1]:
        raise ValueError(f"the two sets must have features of one width, got {samples.shape[1]} and {real.shape[1]}")
    return _covered(samples, real, kth_distance(real, k)), _covered(real, samples, kth_distance(samples, k))


def _covered(queries: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in queries.split(BLOCK)]
    return torch.cat(inside).double().mean().item()
