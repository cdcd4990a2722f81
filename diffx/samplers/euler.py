"""Euler's method, which is DDIM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from .sampler import Level, Sampler, lerp, level

__all__ = ["Euler"]


@recorded
@dataclass(frozen=True)
class Euler(Sampler):
    """x <- (b/a) x + (1 - b/a) D. Order 1, one evaluation per step.

    The same update is DDIM with eta = 0 (Song et al. 2021) in variance-preserving coordinates, Euler in t for rectified flow, and
    DPM-Solver++ of order 1: they differ only in the grid.
    """

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        return lerp(denoise(x, level(sigma, x)), x, sigma_next / sigma)
