"""Stochastic sampling with few-step students: two levels ahead, one level back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from .euler import Euler
from .sampler import Level, Step, randn_like

__all__ = ["DoubleStride"]


@recorded
@dataclass(frozen=True)
class DoubleStride(Euler):
    """Euler two levels ahead to c, then noise back to b: x <- (c/a) x + (1 - c/a) D + sqrt(b^2 - c^2) n (Meng et al. 2023, section 3.2).

    As many evaluations as steps. The last two jumps both end at 0, the last one without noise. A student must have been distilled for jumps
    over two levels (`diffx.techniques.ProgressiveDistillation` with ``stride=2``).
    """

    def begin(self) -> Step:
        """One run along this sampler's own grid, which is where it finds the level after the next."""
        after = {**dict(pairwise(self.sigmas())), 0.0: 0.0}

        def step(denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
            if isinstance(sigma_next, Tensor) or sigma_next not in after:
                raise ValueError(f"DoubleStride walks the levels of its own grid, got {sigma_next}; give it these levels as its schedule")
            target = after[sigma_next]
            x = self.step(denoise, x, sigma, target)
            return x + math.sqrt(sigma_next**2 - target**2) * randn_like(x, generator) if sigma_next else x

        return step
