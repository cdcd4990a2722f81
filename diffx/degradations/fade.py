"""Degradations that are straight lines in the level: to a colour, and to gray."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipes import recorded
from ..tensors import expand
from .degradation import Degradation, Parameters

__all__ = ["Desaturate", "Fade"]

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


@recorded
@dataclass(frozen=True)
class Fade(Degradation):
    """All turns into one grey: ``x + level / (steps + 1) (value - x)``, so that a trace of the picture is left at the last level.

    Args:
        steps: number of levels.
        value: of the grey, in [-1, 1].
    """

    value: float = 0.0

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Fade data ``(B, *)``."""
        return x + expand(level.to(x) / (self.steps + 1), x) * (self.value - x)


@recorded
@dataclass(frozen=True)
class Desaturate(Degradation):
    """Colours turn into their brightness: ``x + level / steps (gray(x) - x)``.

    Args:
        steps: number of levels.

    Raises:
        ValueError: when called, pictures without three channels.
    """

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Take colour from pictures ``(B, 3, H, W)``."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"only colour pictures (B, 3, H, W) lose colour, got {tuple(x.shape)}")
        gray = (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)
        return x + expand(level.to(x) / self.steps, x) * (gray - x)
