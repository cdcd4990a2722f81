"""Shapes that every floor shares: per-sample scalars against batches of data."""

from __future__ import annotations

from torch import Tensor

__all__ = ["expand", "mean_flat"]


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """View a per-sample scalar ``(B,)`` as ``(B, 1, ..., 1)`` so that it broadcasts against ``like`` ``(B, *)``."""
    return scalar.view(-1, *(1,) * (like.ndim - 1))


def mean_flat(x: Tensor) -> Tensor:
    """Mean over everything but the batch: ``(B, *)`` to ``(B,)``."""
    return x.flatten(1).mean(1)
