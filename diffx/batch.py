"""Batches: mappings whose names are the contract between data and techniques."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["Batch", "batch_size", "check_range"]

Batch: TypeAlias = Mapping[str, Any]
"""``"x"`` (B, *) float32 in [-1, 1] or ``"latent"`` (B, *), ``"label"`` (B,) int64, ``"text"`` list of B strings, ``"index"`` (B,), ..."""


def check_range(batch: Batch) -> None:
    """Look once at data that did not pass through a data module of diffx.

    Raises:
        TypeError: ``batch["x"]`` is not floating point.
        ValueError: it leaves [-1, 1].
    """
    if "latent" in batch or "x" not in batch:
        return
    x = batch["x"]
    if not x.is_floating_point():
        raise TypeError(f'batch["x"] must be float data in [-1, 1], got {x.dtype}; for uint8 pictures use x / 127.5 - 1')
    low, high = (float(bound) for bound in x.aminmax())
    if not -1.001 <= low <= high <= 1.001:
        raise ValueError(f'batch["x"] must lie in [-1, 1], got [{low:.4g}, {high:.4g}]; for data in [0, 255] use x / 127.5 - 1')


def batch_size(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(batch["latent"] if "latent" in batch else batch["x"])
