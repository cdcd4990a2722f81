"""Schedules stated on the level itself: Karras, log-uniform, log-normal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipes import recorded
from .schedule import Schedule

__all__ = ["Karras", "LogNormal", "LogUniform"]


@recorded
@dataclass(frozen=True)
class Karras(Schedule):
    """sigma^(1/rho) linear in ``u`` (Karras et al. 2022, EDM, eq. 5): the usual choice for sampling.

    Its grid of N steps has N levels from ``sigma_max`` to ``sigma_min`` inclusive and then 0, hence it is not nested.

    Args:
        sigma_min: lowest level.
        sigma_max: highest level.
        rho: how strongly steps concentrate near ``sigma_min``; 1 is uniform in sigma, infinity uniform in its logarithm.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    nested = False

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def _sigma(self, u: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + u * (high - low)) ** self.rho

    def _u(self, sigma: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def _positions(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps, dtype=torch.float64)


@recorded
@dataclass(frozen=True)
class LogUniform(Schedule):
    """ln sigma linear in ``u``; the range 0.02 to 100 is what variance-exploding networks are trained on in EDM (table 1)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def _sigma(self, u: Tensor) -> Tensor:
        return self.sigma_min * (u * math.log(self.sigma_max / self.sigma_min)).exp()

    def _u(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


@recorded
@dataclass(frozen=True)
class LogNormal(Schedule):
    """ln sigma ~ N(mean, std^2) when ``u`` is uniform: the usual choice for training (EDM, table 1).

    For rectified flow this is the logit-normal law of t = sigma / (1 + sigma) with the same two numbers.

    Args:
        mean: mean of ln sigma.
        std: standard deviation of ln sigma.
        tail: the end levels lie this many standard deviations from the mean.
    """

    mean: float = -1.2
    std: float = 1.2
    tail: float = 6.0

    def __post_init__(self) -> None:
        if self.std <= 0 or self.tail <= 0:
            raise ValueError(f"std and tail must be positive, got {self.std} and {self.tail}")

    @property
    def sigma_min(self) -> float:
        return math.exp(self.mean - self.tail * self.std)

    @property
    def sigma_max(self) -> float:
        return math.exp(self.mean + self.tail * self.std)

    def _sigma(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(u)).exp()

    def _u(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((sigma.log() - self.mean) / self.std)


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"levels must satisfy 0 < sigma_min < sigma_max < inf, got sigma_min={sigma_min}, sigma_max={sigma_max}")
