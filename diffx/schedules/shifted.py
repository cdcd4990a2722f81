"""One schedule moved along the noise axis: three published tricks that are the same operation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipes import recorded
from .schedule import Schedule

__all__ = ["Shifted"]


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
