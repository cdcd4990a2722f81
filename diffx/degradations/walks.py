"""Ways back from degraded data, given a restorer (Bansal et al. 2022, arXiv:2208.09392, section 3).

Notation: R = ``restore(x, s)``, the restorer's estimate of the data, D(., s) = the degradation with the parameters of these samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ..recipes import recorded

__all__ = ["Improved", "Naive", "OneShot", "Walk"]

Leveled: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x (B, *), level (B,)) -> (B, *)."""


class Walk(Protocol):
    """A way from level ``s`` down to 0."""

    def states(self, x: Tensor, s: int, restore: Leveled, degrade: Leveled) -> Iterator[Tensor]:
        """The states after every step, the last one at level 0, from ``x`` (B, *) at level ``s``."""
        ...


@recorded
@dataclass(frozen=True)
class OneShot:
    """The restorer's estimate itself."""

    def states(self, x: Tensor, s: int, restore: Leveled, degrade: Leveled) -> Iterator[Tensor]:
        """One state."""
        yield restore(x, torch.full((len(x),), s, device=x.device)) if s else x


@recorded
@dataclass(frozen=True)
class Naive:
    """Algorithm 1: ``x_(s-1) = D(R, s - 1)``. Errors of the restorer add up."""

    def states(self, x: Tensor, s: int, restore: Leveled, degrade: Leveled) -> Iterator[Tensor]:
        """One state per level."""
        for level in torch.arange(s, 0, -1, device=x.device):
            here = level.expand(len(x))
            x = degrade(restore(x, here), here - 1)
            yield x


@recorded
@dataclass(frozen=True)
class Improved:
    """Algorithm 2: ``x_(s-1) = x_s - D(R, s) + D(R, s - 1)``. Exact for any restorer where D(x, s) = x + s e, e not depending on x."""

    def states(self, x: Tensor, s: int, restore: Leveled, degrade: Leveled) -> Iterator[Tensor]:
        """One state per level."""
        for level in torch.arange(s, 0, -1, device=x.device):
            here = level.expand(len(x))
            clean = restore(x, here)
            x = x - degrade(clean, here) + degrade(clean, here - 1)
            yield x
