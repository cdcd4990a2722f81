"""DPM-Solver++ (2M)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from .sampler import Level, Sampler, Step, lerp, level

__all__ = ["DPMpp2M", "extrapolated"]


@recorded
@dataclass(frozen=True)
class DPMpp2M(Sampler):
    """DPM-Solver++ of order 2, multistep (Lu et al. 2022). One evaluation per step.

    With h = ln(a/b): D* = D + h / (2 h_before) (D - D_before), x <- (b/a) x + (1 - b/a) D*. The first and the last step are Euler's.
    """

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        return self.begin()(denoise, x, sigma, sigma_next, generator)

    def begin(self) -> Step:
        """A step function that remembers the estimate of the step before."""
        past: tuple[Level, Tensor] | None = None

        def step(denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
            nonlocal past
            x0 = denoise(x, level(sigma, x))
            best, past = extrapolated(x0, past, sigma, sigma_next), (sigma, x0)
            return self.moved(best, x, sigma, sigma_next, generator)

        return step

    def moved(self, best: Tensor, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        """The state after a step toward the estimate ``best``."""
        return lerp(best, x, sigma_next / sigma)


def extrapolated(x0: Tensor, past: tuple[Level, Tensor] | None, sigma: Level, sigma_next: Level) -> Tensor:
    """D* at the middle of the step in ln sigma, on the line through the estimate ``past`` and this one; ``x0`` where that is impossible."""
    if past is None or sigma_next == 0:
        return x0
    sigma_before, x0_before = past
    return torch.lerp(x0_before, x0, 1 + math.log(sigma / sigma_next) / (2 * math.log(sigma_before / sigma)))
