"""Schedules moved along the noise axis: three published tricks that are one operation, and the blend of two such moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipes import recorded
from .schedule import Schedule

__all__ = ["Interpolated", "Shifted"]


@recorded
@dataclass(frozen=True)
class Shifted(Schedule):
    """sigma'(u) = factor * sigma(u), that is log-SNR' = log-SNR - 2 ln(factor).

    | published as | formula | factor |
    |---|---|---|
    | resolution shift (Hoogeboom et al. 2023, simple diffusion) | log-SNR + 2 ln(64 / size) | size / 64 |
    | input scale (Chen 2023; RIN) | z = sqrt(gamma) b x + sqrt(1 - gamma) n | 1 / b |
    | time shift of flows (Esser et al. 2024, Stable Diffusion 3) | t' = s t / (1 + (s - 1) t) | s |

    The classmethods take the number under its published name.

    Args:
        base: the schedule that is moved.
        factor: what its levels are multiplied with.
    """

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"the factor of a shifted schedule must be positive, got {self.factor}")

    @classmethod
    def resolution(cls, base: Schedule, size: float, reference: float = 64.0) -> Shifted:
        """Shift for images of ``size`` pixels a side when ``base`` suits ``reference`` pixels."""
        return cls(base, size / reference)

    @classmethod
    def input_scale(cls, base: Schedule, scale: float) -> Shifted:
        """Shift equivalent to multiplying the data by ``scale`` under the process of ``base``."""
        return cls(base, 1 / scale)

    @classmethod
    def time(cls, base: Schedule, shift: float) -> Shifted:
        """Time shift ``shift`` of a flow schedule."""
        return cls(base, shift)

    @property
    def nested(self) -> bool:  # type: ignore[override]
        """As in ``base``."""
        return self.base.nested

    @property
    def sigma_min(self) -> float:
        return self.factor * self.base.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.factor * self.base.sigma_max

    def _sigma(self, u: Tensor) -> Tensor:
        return self.factor * self.base.sigma(u)

    def _u(self, sigma: Tensor) -> Tensor:
        return self.base.u(sigma / self.factor)

    def grid(self, steps: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The grid of ``base`` times the factor."""
        return (self.factor * self.base.grid(steps, dtype=torch.float64)).to(device, dtype)


@recorded
@dataclass(frozen=True)
class Interpolated(Schedule):
    """sigma'(u) = sigma(u) clean^(1 - u) noisy^u: log-SNR moved by -2 ln(clean) at the clean end, by -2 ln(noisy) at the noisy one.

    Simple diffusion blends the shifts of two resolutions, because large pictures need noise that destroys their large forms and details
    that are not destroyed too early (Hoogeboom et al. 2023, arXiv:2301.11093).

    Args:
        base: the schedule that is moved.
        clean: factor on sigma at ``u = 0``.
        noisy: factor at ``u = 1``, at least ``clean``, so that levels rise.

    Raises:
        ValueError: factors that are not positive and rising.
    """

    base: Schedule
    clean: float
    noisy: float

    def __post_init__(self) -> None:
        if not 0 < self.clean <= self.noisy:
            raise ValueError(f"an interpolated shift needs 0 < clean <= noisy, got {self.clean} and {self.noisy}")

    @classmethod
    def resolution(cls, base: Schedule, size: float, low: float = 32.0, high: float | None = None) -> Interpolated:
        """For images of ``size`` pixels: the shift of reference ``low`` at the noisy end, of ``high`` (``size``) at the clean one."""
        return cls(base, size / (high or size), size / low)

    @property
    def nested(self) -> bool:  # type: ignore[override]
        """As in ``base``."""
        return self.base.nested

    @property
    def sigma_min(self) -> float:
        return self.clean * self.base.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.noisy * self.base.sigma_max

    def _sigma(self, u: Tensor) -> Tensor:
        return self.base.sigma(u) * self.clean ** (1 - u) * self.noisy**u

    def _u(self, sigma: Tensor) -> Tensor:
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(60):  # no closed form; halving reaches the precision of float64
            middle = (low + high) / 2
            above = self._sigma(middle) > sigma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2
