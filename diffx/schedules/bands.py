"""Bands of noise: the part of a schedule that one expert owns, and the partition of a schedule among experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..recipes import recorded
from ..tensors import handed
from .schedule import Schedule
from .sigma import LogNormal
from .table import Table

__all__ = ["Band", "Bands", "node"]

SMALLEST = 1e-6  # of a band's share of the training levels


@recorded
@dataclass(frozen=True)
class Band(Schedule):
    """The part ``low <= u < high`` of a schedule, stretched to [0, 1]: what an expert is trained on.

    A draw is uniform in u inside the band, so the base's density is only restricted, never changed. Levels are float32 numbers below the
    upper edge, so that none of them is another expert's (`Bands.index`).

    Args:
        base: the schedule of the whole ensemble.
        low: position of the lower edge in the base, in [0, 1).
        high: position of the upper edge, in (low, 1]; it belongs to the noisier neighbour.

    Raises:
        ValueError: no interval inside [0, 1], or less than a millionth of it.
    """

    base: Schedule
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1 or self.high - self.low < SMALLEST:
            raise ValueError(f"a band needs 0 <= low < high <= 1 and a mass of at least {SMALLEST}, got {self}")

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g})"

    def contains(self, other: Band) -> bool:
        """Whether ``other`` is a part of this band of the same base."""
        return self.base == other.base and self.low <= other.low and other.high <= self.high

    @property
    def sigma_min(self) -> float:
        return self.base.sigma_min if self.low == 0 else _edge(self.base, self.low)

    @property
    def sigma_max(self) -> float:
        return self.base.sigma_max if self.high == 1 else float(np.nextafter(np.float32(_edge(self.base, self.high)), np.float32(0)))

    def _sigma(self, u: Tensor) -> Tensor:
        return self.base.sigma(self.low + (self.high - self.low) * u)

    def _u(self, sigma: Tensor) -> Tensor:
        return (self.base.u(sigma) - self.low) / (self.high - self.low)


@recorded
@dataclass(frozen=True)
class Bands:
    """A partition of a schedule into bands, the cleanest first. Loss, sampler and log all ask `index` which band a level belongs to.

    Args:
        base: schedule whose positions the edges are.
        edges: rising positions from 0 to 1, one more than there are bands.

    Raises:
        ValueError: edges that do not rise from 0 to 1.
    """

    base: Schedule
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))
        if len(self.edges) < 2 or self.edges[0] != 0 or self.edges[-1] != 1 or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"edges of bands must rise from 0 to 1, got {self.edges}")
        list(self)  # a band that is too thin says so

    @classmethod
    def uniform(cls, base: Schedule, count: int) -> Bands:
        """Bands of equal mass."""
        return cls(base, tuple(i / count for i in range(count + 1)))

    @classmethod
    def at_levels(cls, base: Schedule, sigmas: Sequence[float]) -> Bands:
        """Bands that meet at the rising levels ``sigmas``."""
        inner = base.u(torch.tensor(sigmas, dtype=torch.float64)).tolist()
        return cls(base, (0.0, *inner, 1.0))

    @classmethod
    def of_timesteps(cls, table: Table, count: int) -> Bands:
        """Equal blocks of the timesteps of a discrete process; timestep t of T is in band ``floor(count t / T)`` (ERNIE-ViLG 2.0)."""
        first = [math.ceil(block * len(table.table) / count) for block in range(1, count)]
        return cls(table, (0.0, *((t + 1) / len(table.table) for t in first), 1.0))

    @classmethod
    def joined(cls, parts: Sequence[Band]) -> Bands:
        """The partition that single bands make.

        Raises:
            ValueError: gaps, overlaps or different bases.
        """
        parts = sorted(parts, key=lambda band: band.low)
        fit = all(a.high == b.low for a, b in pairwise(parts)) and parts[0].low == 0 and parts[-1].high == 1
        if not fit or any(band.base != parts[0].base for band in parts):
            listed = ", ".join(f"{band} of {band.base}" for band in parts)
            raise ValueError(f"experts must share out [0, 1) of one schedule without gap or overlap, got {listed}")
        return cls(parts[0].base, (0.0, *(band.high for band in parts)))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, k: int) -> Band:
        if not 0 <= k < len(self):
            raise IndexError(f"there are bands 0 to {len(self) - 1}, got {k}")
        return Band(self.base, self.edges[k], self.edges[k + 1])

    def __iter__(self) -> Iterator[Band]:
        return (self[k] for k in range(len(self)))

    @property
    def masses(self) -> tuple[float, ...]:
        """Share of the training levels in each band; they sum to 1."""
        return tuple(b - a for a, b in pairwise(self.edges))

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The levels at which neighbours meet, one less than there are bands."""
        return tuple(_edge(self.base, u) for u in self.edges[1:-1])

    def index(self, sigma: Tensor) -> Tensor:
        """Band of each level, int64 of the same shape. An edge belongs to the noisier side; levels beyond the ends to the end bands."""
        return torch.bucketize(sigma, handed(torch.tensor(self.sigmas, dtype=sigma.dtype), sigma.device), right=True)


def node(level: int, index: int, base: Schedule = LogNormal()) -> Band:
    """Node (level, index) of eDiff-I's tree: the ``index``-th of ``2^level`` bands of equal mass, ``2^level - 1`` the noisiest.

    Raises:
        ValueError: no such node.
    """
    if level < 0 or not 0 <= index < 2**level:
        raise ValueError(f"node (l, i) needs l >= 0 and 0 <= i < 2^l, got ({level}, {index})")
    return Band(base, index / 2**level, (index + 1) / 2**level)


def _edge(base: Schedule, u: float) -> float:
    """A level in float32, the precision in which levels are drawn and compared."""
    return float(np.float32(base.sigma(torch.tensor(u, dtype=torch.float64)).item()))
