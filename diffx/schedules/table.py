"""Schedules given by a table of levels: an explicit list, DDPM and its cosine variant."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..recipes import recorded
from ..tensors import handed
from .schedule import Schedule

__all__ = ["DDPM", "DDPMCosine", "Levels", "Table"]


class Table(Schedule):
    """A table of T rising levels; entry i sits at ``u = (i + 1) / T``, and ln sigma is linear between entries.

    So ``grid(T)`` is the table itself, a grid of T / k steps is every k-th entry counted from the noisiest, and `index` is the integer
    timestep of a discrete network, continued between the integers.
    """

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """``(T,)`` float64 levels, strictly rising."""

    @property
    def sigma_min(self) -> float:
        return self.table[0].item()

    @property
    def sigma_max(self) -> float:
        return self.table[-1].item()

    def index(self, sigma: Tensor) -> Tensor:
        """Timestep of ``sigma`` in [0, T - 1], an integer at the levels of the table; any shape, in the dtype of ``sigma``."""
        return (self.u(sigma.double()) * len(self.table) - 1).to(sigma.dtype)

    def _sigma(self, u: Tensor) -> Tensor:
        knots = handed(self.table, u.device).log()
        place = (u * len(knots) - 1).clamp(0, len(knots) - 1)
        below = place.floor().long().clamp(max=max(len(knots) - 2, 0))
        above = (below + 1).clamp(max=len(knots) - 1)
        return torch.lerp(knots[below], knots[above], place - below).exp()

    def _u(self, sigma: Tensor) -> Tensor:
        knots, wanted = handed(self.table, sigma.device).log(), sigma.log()
        below = (torch.searchsorted(knots, wanted, right=True) - 1).clamp(0, max(len(knots) - 2, 0))
        above = (below + 1).clamp(max=len(knots) - 1)
        gap = knots[above] - knots[below]
        part = torch.where(gap > 0, (wanted - knots[below]) / gap, 0.0)
        return (below + part + 1) / len(knots)


@recorded
@dataclass(frozen=True)
class Levels(Table):
    """An explicit list of levels, e.g. a published few-step list or the tail of another grid.

    Args:
        sigmas: the levels, strictly falling, without the final 0.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(self.sigmas))
        rising = self.sigmas[::-1]
        if not rising or rising[0] <= 0 or rising[-1] == math.inf or any(a >= b for a, b in pairwise(rising)):
            raise ValueError(f"sigmas must be positive, finite and strictly falling (the final 0 is implied), got {self.sigmas}")

    @cached_property
    def table(self) -> Tensor:
        """``(T,)`` float64 levels, strictly rising."""
        return torch.tensor(self.sigmas[::-1], dtype=torch.float64)


@recorded
@dataclass(frozen=True)
class DDPM(Table):
    """The discrete process of DDPM: sigma_i^2 = (1 - A_i) / A_i with A = cumprod(1 - beta).

    | table | beta_start | beta_end | power |
    |---|---|---|---|
    | DDPM, "linear" (Ho et al. 2020) | 1e-4 | 0.02 | 1 |
    | latent diffusion, "scaled linear" (Rombach et al. 2022) | 0.00085 | 0.012 | 2 |

    Args:
        beta_start: beta of the first timestep.
        beta_end: beta of the last timestep.
        length: number of timesteps T.
        power: beta^(1/power) is linear in the timestep.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    length: int = 1000
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end < 1 or self.length < 2:
            raise ValueError(f"DDPM needs 0 < beta_start < beta_end < 1 and length >= 2, got {self}")

    @classmethod
    def latent(cls) -> DDPM:
        """The "scaled linear" table of latent diffusion."""
        return cls(beta_start=0.00085, beta_end=0.012, power=2.0)

    @cached_property
    def table(self) -> Tensor:
        """``(T,)`` float64 levels, strictly rising."""
        root = 1 / self.power
        return _levels(torch.linspace(self.beta_start**root, self.beta_end**root, self.length, dtype=torch.float64) ** self.power)


@recorded
@dataclass(frozen=True)
class DDPMCosine(Table):
    """The discrete cosine process of improved DDPM (Nichol & Dhariwal 2021, eq. 17).

    Args:
        length: number of timesteps T.
        offset: keeps the first betas from vanishing.
        beta_max: the last betas are clipped here.
    """

    length: int = 1000
    offset: float = 0.008
    beta_max: float = 0.999

    def __post_init__(self) -> None:
        if self.length < 2 or self.offset < 0 or not 0 < self.beta_max < 1:
            raise ValueError(f"DDPMCosine needs length >= 2, offset >= 0 and 0 < beta_max < 1, got {self}")

    @cached_property
    def table(self) -> Tensor:
        """``(T,)`` float64 levels, strictly rising."""
        time = torch.arange(self.length + 1, dtype=torch.float64) / self.length
        share = torch.cos((time + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return _levels((1 - share[1:] / share[:-1]).clamp(max=self.beta_max))


def _levels(betas: Tensor) -> Tensor:
    """Levels sqrt((1 - A) / A) with A = cumprod(1 - beta), written with log A so that 1 - A keeps its digits."""
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()
