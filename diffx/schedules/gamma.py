"""Schedules stated on gamma = 1 / (1 + sigma^2), the share of signal in the variance (Chen 2023, "On the importance of noise scheduling").

Both are rescaled so that gamma falls from 1 at ``u = 0`` to 0 at ``u = 1`` and are clipped a distance ``clip`` from either end. The
formulas below are rewritten so that neither gamma near 1 nor gamma near 0 loses digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipes import recorded
from .schedule import Schedule

__all__ = ["GammaCosine", "Sigmoid"]


class _Gamma(Schedule):
    """Range of a gamma schedule: gamma within [clip, 1 - clip]."""

    clip: float

    @property
    def sigma_min(self) -> float:
        return math.sqrt(self.clip / (1 - self.clip))

    @property
    def sigma_max(self) -> float:
        return math.sqrt((1 - self.clip) / self.clip)

    def _positions(self, steps: int) -> Tensor:
        top = self._u(torch.tensor(self.sigma_max, dtype=torch.float64))  # above it gamma is clipped and levels would coincide
        return top * super()._positions(steps)


@recorded
@dataclass(frozen=True)
class Sigmoid(_Gamma):
    """gamma(u) is the stretch from ``start`` to ``end`` of a falling logistic curve with temperature ``tau``.

    Args:
        start: where on the curve ``u = 0`` lies.
        end: where ``u = 1`` lies.
        tau: temperature; RIN uses 0.9.
        clip: distance kept from gamma = 0 and 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    clip: float = 1e-9

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.tau > 0 and 0 < self.clip < 0.5):
            raise ValueError(f"Sigmoid needs start < end, tau > 0 and 0 < clip < 0.5, got {self}")

    # With S the logistic function, S(p) - S(q) = sinh((p - q) / 2) / (2 cosh(p / 2) cosh(q / 2)), so sigma^2 = (1 - gamma) / gamma is a
    # ratio of two such differences in which the cosh of the running point cancels.
    def _constants(self) -> tuple[float, float]:
        a, b = self.start / (2 * self.tau), self.end / (2 * self.tau)
        return b - a, math.cosh(b) / math.cosh(a)

    def _sigma(self, u: Tensor) -> Tensor:
        half, factor = self._constants()
        return (factor * torch.sinh(half * u) / torch.sinh(half * (1 - u))).sqrt()

    def _u(self, sigma: Tensor) -> Tensor:
        half, factor = self._constants()
        ratio = sigma**2 / factor
        return torch.atanh(ratio * math.sinh(half) / (1 + ratio * math.cosh(half))) / half


@recorded
@dataclass(frozen=True)
class GammaCosine(_Gamma):
    """gamma(u) is the stretch from ``start`` to ``end`` of cos(pi/2 s)^(2 tau).

    Args:
        start: where on the curve ``u = 0`` lies, in [0, 1).
        end: where ``u = 1`` lies, in (start, 1].
        tau: exponent; 1 is the plain squared cosine.
        clip: distance kept from gamma = 0 and 1.
    """

    start: float = 0.0
    end: float = 1.0
    tau: float = 1.0
    clip: float = 1e-9

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.end <= 1 and self.tau > 0 and 0 < self.clip < 0.5):
            raise ValueError(f"GammaCosine needs 0 <= start < end <= 1, tau > 0 and 0 < clip < 0.5, got {self}")

    # With c(u) = (cos^2 angle(u) / cos^2 angle(0))^tau falling from 1 to c(1), gamma = (c(u) - c(1)) / (1 - c(1)). 1 - c is computed
    # through sin^2 p - sin^2 q = sin(p - q) sin(p + q), which is exact where c is near 1.
    def _drop(self, angle: Tensor) -> Tensor:
        first = torch.tensor(self.start * math.pi / 2, dtype=angle.dtype, device=angle.device)
        lost = (torch.sin(angle - first) * torch.sin(angle + first) / torch.cos(first) ** 2).clamp(max=1)
        return -torch.expm1(self.tau * torch.log1p(-lost))

    def _total(self, like: Tensor) -> Tensor:
        return self._drop(torch.tensor(self.end * math.pi / 2, dtype=like.dtype, device=like.device))

    def _sigma(self, u: Tensor) -> Tensor:
        drop, total = self._drop((self.start + u * (self.end - self.start)) * math.pi / 2), self._total(u)
        return (drop / (total - drop)).sqrt()

    def _u(self, sigma: Tensor) -> Tensor:
        drop = self._total(sigma) * sigma**2 / (1 + sigma**2)
        lost = -torch.expm1(torch.log1p(-drop) / self.tau)
        first = torch.tensor(self.start * math.pi / 2, dtype=sigma.dtype, device=sigma.device)
        sin2, cos2 = torch.sin(first) ** 2 + lost * torch.cos(first) ** 2, (1 - lost) * torch.cos(first) ** 2
        angle = torch.atan2(sin2.sqrt(), cos2.sqrt())
        return (angle * 2 / math.pi - self.start) / (self.end - self.start)
