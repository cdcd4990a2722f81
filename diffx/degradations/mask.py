"""A hole that grows: inpainting as a degradation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..recipes import recorded
from ..tensors import expand, handed
from .degradation import Degradation, Parameters

__all__ = ["GaussianMask"]


@recorded
@dataclass(frozen=True)
class GaussianMask(Degradation):
    """Fades to gray around a point (Bansal et al. 2022, arXiv:2208.09392, section 5.2).

    What is left is x times the product of ``1 - exp(-r^2 / (2 s_i^2))`` over the steps i up to the level, r the distance in pixels.

    Args:
        steps: number of levels.
        std: s_1, in pixels.
        growth: added to s_i from step to step.
        centred: around the centre of the picture; else around a pixel that is drawn per sample and stays for all its levels.

    Raises:
        ValueError: a std that is not positive, a negative growth.
    """

    std: float = 1.0
    growth: float = 0.1
    centred: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0 or self.growth < 0:
            raise ValueError(f"std must be positive and growth at least 0, got {self.std} and {self.growth}")

    def parameters(self, x: Tensor, generator: rng.Generators = None) -> Parameters:
        """The middle of the hole of each sample, ``"middle"`` (B, 2): row and column in pixels."""
        size = handed(torch.tensor(x.shape[-2:], dtype=x.dtype), x.device)
        if self.centred:
            return {"middle": ((size - 1) / 2).expand(len(x), 2)}
        return {"middle": (rng.rand((len(x), 2), generator, device=x.device).to(x.dtype) * size).floor()}

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Mask pictures ``(B, C, H, W)``."""
        return x * self.share(x, level, parameters)

    def share(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """What is left of each pixel, ``(B, 1, H, W)`` in [0, 1]."""
        rows, columns = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[-2:])
        middle = parameters["middle"].to(x)
        square = (rows[:, None] - middle[:, 0, None, None]) ** 2 + (columns - middle[:, 1, None, None]) ** 2
        left = torch.ones_like(square)
        for i in range(self.steps):
            hole = 1 - torch.exp(-square / (2 * (self.std + i * self.growth) ** 2))
            left = torch.where(expand(level > i, square), left * hole, left)
        return left[:, None]
