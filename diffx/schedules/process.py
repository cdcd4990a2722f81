"""Schedules of named diffusion processes in continuous time: cosine, tangent, variance preserving, flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..recipes import recorded
from .schedule import Schedule
from .sigma import _check_range

__all__ = ["VP", "Cosine", "Flow", "Tangent"]


@recorded
@dataclass(frozen=True)
class Cosine(Schedule):
    """sigma = tan(a u + b), the cosine schedule with truncated log-SNR (Salimans & Ho 2022, progressive distillation).

    Args:
        lambda_min: log-SNR at ``u = 1``.
        lambda_max: log-SNR at ``u = 0``.
    """

    lambda_min: float = -20.0
    lambda_max: float = 20.0

    def __post_init__(self) -> None:
        if not -math.inf < self.lambda_min < self.lambda_max < math.inf:
            raise ValueError(f"log-SNR bounds must be finite and rising, got {self.lambda_min} and {self.lambda_max}")

    @property
    def sigma_min(self) -> float:
        return math.exp(-self.lambda_max / 2)

    @property
    def sigma_max(self) -> float:
        return math.exp(-self.lambda_min / 2)

    def _angles(self) -> tuple[float, float]:
        start = math.atan(self.sigma_min)
        return start, math.atan(self.sigma_max) - start

    def _sigma(self, u: Tensor) -> Tensor:
        start, span = self._angles()
        return torch.tan(start + u * span)

    def _u(self, sigma: Tensor) -> Tensor:
        start, span = self._angles()
        return (torch.atan(sigma) - start) / span


@recorded
@dataclass(frozen=True)
class Tangent(Schedule):
    """sigma = sigma_data tan(u atan(sigma_max / sigma_data)): uniform angle on the circle of signal and noise.

    Its grids are nested and end in an exact 0, which makes it the grid of distillation in the EDM range of levels.

    Args:
        sigma_data: standard deviation of the data.
        sigma_min: the lowest level that is drawn; ``u`` below it is clamped.
        sigma_max: level at ``u = 1``.
    """

    sigma_data: float = 0.5
    sigma_min: float = 1e-5
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def _sigma(self, u: Tensor) -> Tensor:
        return self.sigma_data * torch.tan(u * math.atan(self.sigma_max / self.sigma_data))

    def _u(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma / self.sigma_data) / math.atan(self.sigma_max / self.sigma_data)


@recorded
@dataclass(frozen=True)
class VP(Schedule):
    """Variance-preserving SDE, sigma^2 = exp(beta_d u^2 / 2 + beta_min u) - 1 with ``u`` the time (Song et al. 2021; EDM, table 1).

    Args:
        beta_d: slope of beta(u), that is beta_max - beta_min.
        beta_min: beta at ``u = 0``.
        cutoff: time below which ``u`` is clamped; 1e-5 for training, 1e-3 is usual for sampling.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    cutoff: float = 1e-5

    def __post_init__(self) -> None:
        if self.beta_d <= 0 or self.beta_min < 0 or not 0 < self.cutoff < 1:
            raise ValueError(f"VP needs beta_d > 0, beta_min >= 0 and 0 < cutoff < 1, got {self}")

    @property
    def sigma_min(self) -> float:
        return math.sqrt(math.expm1(self._exponent(self.cutoff)))

    @property
    def sigma_max(self) -> float:
        return math.sqrt(math.expm1(self._exponent(1.0)))

    def _exponent(self, u: Any) -> Any:
        return (self.beta_d * u / 2 + self.beta_min) * u

    def _sigma(self, u: Tensor) -> Tensor:
        return torch.expm1(self._exponent(u)).sqrt()

    def _u(self, sigma: Tensor) -> Tensor:
        exponent = torch.log1p(sigma**2)
        return 2 * exponent / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * exponent).sqrt())  # the root without cancellation


@recorded
@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow and flow matching, z = (1 - u) x + u n: sigma = u / (1 - u), clamped at both ends.

    Args:
        sigma_min: lowest level, reached near ``u = sigma_min``.
        sigma_max: stands in for the infinite level of pure noise at ``u = 1``.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 1e4

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def _sigma(self, u: Tensor) -> Tensor:
        return u / (1 - u)

    def _u(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)
