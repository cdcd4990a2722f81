"""Coarser and coarser pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..recipes import recorded
from .degradation import Degradation, Parameters

__all__ = ["Pixelate"]


@recorded
@dataclass(frozen=True)
class Pixelate(Degradation):
    """Squares of side 2^level take their mean (Bansal et al. 2022, arXiv:2208.09392, section 5.4).

    Args:
        steps: number of levels; sides of pictures must be divisible by 2^``steps``.

    Raises:
        ValueError: when called, sides that do not divide.
    """

    steps: int = 3

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Pixelate pictures ``(B, C, H, W)``."""
        if any(side % 2**self.steps for side in x.shape[2:]):
            raise ValueError(f"{self.steps} steps of pixelation need sides divisible by {2**self.steps}, got {tuple(x.shape[2:])}")
        out = x.clone()
        for step in range(1, self.steps + 1):
            rows = level == step
            if rows.any():
                out[rows] = F.interpolate(F.avg_pool2d(x[rows], 2**step), scale_factor=float(2**step), mode="nearest")
        return out
