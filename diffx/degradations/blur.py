"""Blur by Gaussians, computed at once for any level in Fourier space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..recipes import recorded
from ..tensors import expand, handed
from .degradation import Degradation, Parameters

__all__ = ["Blur"]


@recorded
@dataclass(frozen=True)
class Blur(Degradation):
    """Gaussian blur that grows with the level (Bansal et al. 2022, arXiv:2208.09392, section 5.1).

    Blurring in turn with standard deviations a and b is blurring with sqrt(a^2 + b^2), so a level is one product with a Gaussian in Fourier
    space instead of a chain of convolutions. Means are kept.

    Args:
        steps: number of levels.
        std: of the first step, in pixels.
        law: standard deviation of step i = 1 .. ``steps``: ``"constant"`` std, ``"linear"`` i std, ``"exponential"`` std e^(rate (i - 1)).
        rate: of the exponential law.
        border: ``"reflect"`` mirrors the picture at its edges, ``"circular"`` continues it on the other side.

    Raises:
        ValueError: a std that is not positive, unknown law or border.
    """

    std: float = 0.35
    law: Literal["constant", "linear", "exponential"] = "constant"
    rate: float = 0.05
    border: Literal["reflect", "circular"] = "circular"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.law not in ("constant", "linear", "exponential") or self.border not in ("reflect", "circular"):
            raise ValueError(f"law is 'constant', 'linear' or 'exponential' and border 'reflect' or 'circular'; got {self.law!r} and "
                             f"{self.border!r}")  # fmt: skip

    def variances(self) -> Tensor:
        """Variances (steps + 1,) of the blur at every level, in square pixels, float64."""
        i = torch.arange(self.steps, dtype=torch.float64)
        growth = {"constant": torch.ones_like(i), "linear": i + 1, "exponential": (self.rate * i).exp()}[self.law]
        return torch.cat([torch.zeros(1, dtype=torch.float64), ((self.std * growth) ** 2).cumsum(0)])

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Blur pictures ``(B, C, H, W)``."""
        height, width = x.shape[-2:]
        full = x if self.border == "circular" else torch.cat([x, x.flip(-1)], -1)
        full = full if self.border == "circular" else torch.cat([full, full.flip(-2)], -2)
        rows, columns = torch.fft.fftfreq(full.shape[-2], device=x.device), torch.fft.rfftfreq(full.shape[-1], device=x.device)
        square = (2 * torch.pi) ** 2 * (rows[:, None] ** 2 + columns**2)
        variance = handed(self.variances(), x.device, x.dtype)[handed(level, x.device)]
        transfer = torch.exp(-0.5 * expand(variance, x) * square)
        blurred = torch.fft.irfft2(torch.fft.rfft2(full) * transfer, s=full.shape[-2:])[..., :height, :width]
        return torch.where(expand(level == 0, x), x, blurred)
