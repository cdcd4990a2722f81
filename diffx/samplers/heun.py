"""EDM's stochastic sampler: churn, then a two-stage Runge-Kutta step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from ..tensors import expand
from .sampler import Level, Sampler, lerp, level, randn_like

__all__ = ["Heun"]


@recorded
@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method with churn (Karras et al. 2022, EDM, algorithm 2). Order 2; ``2 * steps - 1`` evaluations, Euler to level 0.

    Churn first raises the level from a to h = a (1 + gamma) by adding noise, gamma = min(churn / steps, sqrt(2) - 1) for levels within
    [churn_min, churn_max] and 0 outside. No noise is drawn where gamma is 0. The second stage is linear in sigma: it wants grids whose
    levels fall by moderate factors, as those of `Karras` do, not the long first step of a short uniform-u grid from a huge ``sigma_max``.

    | alpha | second stage at | name |
    |---|---|---|
    | 1 | b | Heun |
    | 2/3 | h + 2/3 (b - h) | Ralston |
    | 1/2 | the middle | midpoint |

    Args:
        steps: number of steps.
        schedule: whose grid is walked.
        churn: total amount of noise added; 0 solves the ODE.
        churn_min: lowest level with churn.
        churn_max: highest level with churn.
        churn_noise: standard deviation of the added noise, slightly above 1 to make up for lost detail.
        alpha: where between the levels the second stage is evaluated.

    Raises:
        ValueError: negative churn, or alpha outside (0, 1].
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.churn < 0 or not 0 < self.alpha <= 1:
            raise ValueError(f"Heun needs churn >= 0 and 0 < alpha <= 1, got churn={self.churn}, alpha={self.alpha}")

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        x, sigma = self._churned(x, sigma, generator)
        first = denoise(x, level(sigma, x))
        euler = lerp(first, x, sigma_next / sigma)
        last = sigma_next == 0
        if last is True:
            return euler
        middle = sigma + self.alpha * (sigma_next - sigma)
        if isinstance(last, Tensor):
            middle = torch.where(last, sigma, middle)  # those samples keep the Euler result: spare them a level of 0
        y = euler if self.alpha == 1 and last is False else lerp(first, x, middle / sigma)
        second = denoise(y, level(middle, x))
        slope = (sigma_next - sigma) / middle
        other = x + (expand(slope, x) if isinstance(slope, Tensor) else slope) * (y - second)
        moved = torch.lerp(euler, other, 1 / (2 * self.alpha))
        return torch.where(expand(last, x), euler, moved) if isinstance(last, Tensor) else moved

    def _churned(self, x: Tensor, sigma: Level, generator: Generators) -> tuple[Tensor, Level]:
        if self.churn == 0:
            return x, sigma
        if isinstance(sigma, Tensor):
            raise ValueError("churn needs one level for the whole batch, got a tensor of levels; set churn=0")
        if not self.churn_min <= sigma <= self.churn_max:
            return x, sigma
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        added = sigma * math.sqrt(gamma * (2 + gamma))  # sqrt(h^2 - a^2)
        return x + added * self.churn_noise * randn_like(x, generator), sigma * (1 + gamma)
