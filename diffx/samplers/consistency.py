"""Sampling with estimates that are samples themselves: consistency functions and other few-step students."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from ..tensors import expand
from .sampler import Level, Sampler, level, randn_like

__all__ = ["MultiStep"]


@recorded
@dataclass(frozen=True)
class MultiStep(Sampler):
    """x <- D(x, a) + b n: jump to clean data, then add fresh noise of the next level (Song et al. 2023, arXiv:2303.01469, algorithm 1).

    Right for students that jump to a *sample* (consistency, distribution matching). An ordinary denoiser returns a mean, and every jump to
    it loses variance. Students want few, well separated levels: give them as `Levels`, e.g. ``MultiStep(2, Levels((80.0, 0.8)))``.

    Args:
        steps: number of jumps.
        schedule: whose grid is walked; its first level is where the student starts.
    """

    steps: int = 1

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        x0 = denoise(x, level(sigma, x))
        if not isinstance(sigma_next, Tensor) and sigma_next == 0:
            return x0
        return x0 + (expand(sigma_next, x) if isinstance(sigma_next, Tensor) else sigma_next) * randn_like(x, generator)
