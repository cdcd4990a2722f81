"""Ancestral sampling, which is DDPM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from ..tensors import expand
from .sampler import Level, Sampler, lerp, level, randn_like

__all__ = ["Ancestral"]


@recorded
@dataclass(frozen=True)
class Ancestral(Sampler):
    """Euler down to sqrt(b^2 - up^2), then noise of standard deviation up = eta b sqrt(1 - b^2/a^2). The last step returns D.

    | eta | variance | method |
    |---|---|---|
    | 0 | any | Euler, DDIM |
    | 1 | 0 | DDPM with the exact posterior variance b^2 (1 - b^2/a^2), "small" (Ho et al. 2020, eq. 6 f.) |
    | 1 | 1 | DDPM with the variance of the forward step, (a^2 - b^2)(1 + b^2)/(1 + a^2) here, "large" |

    Args:
        steps: number of steps.
        schedule: whose grid is walked.
        eta: share of the posterior's noise, 0 to 1.
        variance: 0 small, 1 large; between them the logarithm of the added variance is interpolated.

    Raises:
        ValueError: eta or variance outside [0, 1].
    """

    eta: float = 1.0
    variance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.eta <= 1 and 0 <= self.variance <= 1):
            raise ValueError(f"eta and variance must lie in [0, 1], got eta={self.eta}, variance={self.variance}")

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        x0 = denoise(x, level(sigma, x))
        kept = 1 - (self.eta * self.eta) * (1 - (sigma_next / sigma) ** 2)  # down^2 / b^2
        x = lerp(x0, x, sigma_next / sigma * kept**0.5)
        if self.eta == 0 or (not isinstance(sigma_next, Tensor) and sigma_next == 0):
            return x
        up = self._up(sigma, sigma_next)
        return x + (expand(up, x) if isinstance(up, Tensor) else up) * randn_like(x, generator)

    def _up(self, sigma: Level, sigma_next: Level) -> Level:
        """Standard deviation of the added noise; zero at level 0."""
        small = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
        if self.variance == 0:
            return small
        safe = torch.where(sigma_next > 0, sigma_next, sigma) if isinstance(sigma_next, Tensor) else sigma_next
        return small * ((1 + safe**-2) / (1 + sigma**-2)) ** (self.variance / 2)
