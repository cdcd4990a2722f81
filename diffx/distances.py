"""Distances: what the error of an x0 estimate is, before its noise level is weighed.

All are functions ``(estimate (B, *), x (B, *), batch)`` that return one number per sample, (B,). The mean square is the default of every
technique and needs no name here; the batch is there for distances that read more than the picture, such as where its objects are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from .batch import Batch

__all__ = ["Distance"]

Distance: TypeAlias = Callable[[Tensor, Tensor, Batch], Tensor]
