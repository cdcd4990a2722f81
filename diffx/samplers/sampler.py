"""What every sampler is, and the one loop they share.

All of them solve dx/dsigma = (x - D(x, sigma)) / sigma, or its stochastic counterpart, from noise down to data on a falling list of levels.
Notation of the formulas: a = ``sigma``, b = ``sigma_next``, D = ``denoise(x, a)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from .. import rng
from ..denoiser import Denoise
from ..rng import Generators
from ..schedules import Karras, Levels, Schedule
from ..tensors import expand

__all__ = ["Level", "Sampler", "Step", "Watch", "lerp", "level", "randn_like"]

Level: TypeAlias = Any
"""A noise level: a float for the whole batch, or one per sample, ``(B,)``."""
Step: TypeAlias = Callable[[Denoise, Tensor, Level, Level, Generators], Tensor]
Watch: TypeAlias = Callable[[int, float, Tensor, Tensor], None]
"""Called as ``watch(step, sigma, x, x0)``: the state before the step and the first x0 estimate made in it."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Turns unit noise into data with a `Denoise`; immutable, so one sampler may serve any number of runs at once.

    A subclass gives `step`, its formula. A method with a memory gives `begin` instead, which returns the step function of one run.

    Args:
        steps: number of steps, that is of non-zero levels.
        schedule: whose grid is walked.

    Raises:
        ValueError: fewer than one step.
    """

    steps: int = 18
    schedule: Schedule = field(default_factory=Karras)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got steps={self.steps}")

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        """Move ``x`` (B, *) from ``sigma`` to ``sigma_next``: a pure function without memory.

        Levels are floats or, for methods of one step (Euler, Heun without churn, Ancestral), one per sample (B,). A method with a memory
        takes its first step here, the one that needs no past.
        """

    def begin(self) -> Step:
        """The step function of one run; whatever a method remembers lives in it."""
        return self.step

    def sigmas(self) -> list[float]:
        """The levels walked: ``steps + 1`` falling numbers, the last one 0."""
        return self.schedule.grid(self.steps, dtype=torch.float64).tolist()

    def __call__(self, denoise: Denoise, noise: Tensor, *, start: Tensor | None = None, generator: Generators = None,
                 watch: Watch | None = None) -> Tensor:  # fmt: skip
        """Sample: begin at ``start + sigmas[0] * noise`` and return the state at level 0.

        Args:
            denoise: ``(x (B, *), sigma (B,)) -> x0 (B, *)``.
            noise: unit noise (B, *); its dtype, float32 or wider, is the dtype of the state.
            start: clean data (B, *) the state is centred on, zero by default. With `partial` this is partial noising (SDEdit). To
                continue from a state ``x`` at the first level, pass ``x / sigmas[0]`` as noise.
            generator: one generator, or one per sample, for methods that add noise.
            watch: called before each step's result is taken over, with that step's number, level, state and x0 estimate.
        """
        sigmas = self.sigmas()
        x = noise.to(torch.promote_types(noise.dtype, torch.float32)) * sigmas[0]
        if start is not None:
            if start.shape != noise.shape:
                raise ValueError(f"start must have the shape of the noise {tuple(noise.shape)}, got {tuple(start.shape)}")
            x = x + start
        return self.walk(denoise, x, sigmas, generator=generator, watch=watch)

    def walk(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, generator: Generators = None,
             watch: Watch | None = None) -> Tensor:  # fmt: skip
        """Move a state ``x`` at level ``sigmas[0]`` along explicit levels; rising levels encode (deterministic methods only)."""
        step, seen = self.begin(), []
        if watch is not None:
            plain = denoise

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                seen.append(plain(x, sigma))
                return seen[-1]

        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            moved = step(denoise, x, sigma, sigma_next, generator)
            if watch is not None:
                watch(i, sigma, x, seen[0])
                seen.clear()
            x = moved
        return x

    def partial(self, strength: float) -> Self:
        """This sampler restricted to the last ``floor(steps * strength)`` of its steps, at least one: pass clean data as ``start``.

        Raises:
            ValueError: strength outside (0, 1].
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength}; at strength 0 the data itself is the answer")
        keep = max(1, math.floor(self.steps * strength + 1e-9))  # 50 * 0.58 is 28.999999999999996
        return replace(self, steps=keep, schedule=Levels(tuple(self.sigmas()[-keep - 1 : -1])))


def level(sigma: Level, x: Tensor) -> Tensor:
    """``sigma`` as one level per sample of ``x``, made on its device without a transfer."""
    return sigma if isinstance(sigma, Tensor) else torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)


def lerp(x0: Tensor, x: Tensor, share: Level) -> Tensor:
    """``x0 + share * (x - x0)``: every update is one, because it shrinks the noise in ``x`` and keeps the data. 0 gives ``x0`` exactly."""
    return torch.lerp(x0, x, expand(share, x) if isinstance(share, Tensor) else share)


def randn_like(x: Tensor, generator: Generators) -> Tensor:
    """Unit noise of the shape, type and device of ``x``."""
    return rng.randn(x.shape, generator, device=x.device, dtype=x.dtype)
