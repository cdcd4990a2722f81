"""Kernel distance between two feature sets: the squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng
from .features import rows

__all__ = ["kid", "mmd"]


def mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of ``a`` (N, D) and ``b`` (M, D) under the kernel ``(x.y / D + 1)^3``.

    Unbiased means that its expectation over draws is 0 when both sets come from one distribution, at any N and M; single values may be
    negative.

    Raises:
        ValueError: fewer than two items, or features of different width.
    """
    a, b = _pair(a, b)
    n, m = len(a), len(b)
    within_a = (_kernel(a, a).sum() - _kernel_diagonal(a).sum()) / (n * (n - 1))
    within_b = (_kernel(b, b).sum() - _kernel_diagonal(b).sum()) / (m * (m - 1))
    return (within_a + within_b - 2 * _kernel(a, b).mean()).item()


def kid(a: Tensor, b: Tensor, *, subsets: int = 50, size: int = 500, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of `mmd` over random subsets of ``a`` (N, D) and ``b`` (M, D).

    Args:
        a: features (N, D).
        b: features (M, D).
        subsets: how many pairs of subsets.
        size: items in each, drawn without replacement; at most N and M.
        seed: of the draws, which are a pure function of it.

    Returns:
        (mean, standard deviation over the subsets). The deviation describes one subset, not the mean: subsets overlap.

    Raises:
        ValueError: fewer than two subsets or items, or features of different width.
    """
    a, b = _pair(a, b)
    if subsets < 2 or size < 2:
        raise ValueError(f"KID needs at least 2 subsets of at least 2 items, got {subsets} of {size}")
    size = min(size, len(a), len(b))
    draws = [[rng.permutation(len(s), seed, "kid", side, i)[:size] for side, s in enumerate((a, b))] for i in range(subsets)]
    values = torch.tensor([mmd(a[left], b[right]) for left, right in draws], dtype=torch.float64)
    return values.mean().item(), values.std().item()


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = rows(a), rows(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the two sets must have features of one width, got {a.shape[1]} and {b.shape[1]}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"an unbiased estimate needs at least 2 items a side, got {len(a)} and {len(b)}")
    return a, b


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1) ** 3
