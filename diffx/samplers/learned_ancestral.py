"""Ancestral sampling with a variance that the network has learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from .sampler import Level, Sampler, lerp, level, randn_like

__all__ = ["LearnedAncestral"]


@recorded
@dataclass(frozen=True)
class LearnedAncestral(Sampler):
    """DDPM whose variance lies between its two bounds, for each pixel where the network puts it (Nichol & Dhariwal 2021, eq. 15).

    `Ancestral` with eta = 1 and one ``variance`` per pixel. That share v, (B, *), is read from the attribute ``share`` of the denoise
    function after each call; 0 is the posterior's variance b^2 (1 - b^2/a^2), 1 that of the forward step, and the logarithm is linear
    between. Techniques with a learned variance hand such a function over. Levels are plain floats.
    """

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        x0 = denoise(x, level(sigma, x))
        mean = lerp(x0, x, (sigma_next / sigma) ** 2)
        if sigma_next == 0:
            return mean
        share = getattr(denoise, "share", None)
        if share is None:
            raise TypeError(
                "LearnedAncestral reads a learned variance, but this denoise function has none (attribute 'share'); sample from a module "
                "that was trained with one, with a number or a guide of diffx.guidance, or take Ancestral"
            )
        small = math.log(sigma_next) + 0.5 * math.log1p(-((sigma_next / sigma) ** 2))  # ln of a standard deviation
        wider = 0.5 * (math.log1p(sigma_next**-2) - math.log1p(sigma**-2))
        return mean + torch.exp(small + wider * share.to(mean.dtype)) * randn_like(x, generator)
