"""RIN: training and sampling of a network that hands its latents on (Jabri et al. 2023, arXiv:2212.11972; Chen 2023, arXiv:2301.10972)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoise, Denoiser, EpsPrecond, SignalShare
from ..guidance import Carry, Guide, carried
from ..samplers import Ancestral, Sampler
from ..schedules import GammaCosine, Schedule, Shifted, Sigmoid
from ..tensors import expand
from .edm import EDM

__all__ = ["RINDiffusion"]


class RINDiffusion(EDM):
    """Denoising with latent self-conditioning: the network's latents of one call are an input of the next.

    In training the latents come, for a share ``rate`` of the samples, from a first call at the same state, without gradient; the others get
    zeros. A step costs about 4/3 of one without. In sampling the latents of every evaluation warm-start the next one; under guidance both
    branches read the same latents, and those of the conditional branch are handed on.

    Args:
        denoiser: a `Denoiser`, or a bare network such as `diffx.networks.RIN`, which then predicts the noise and sees 1000 gamma.
        rate: share of samples that are told latents, in [0, 1]; 0 never makes the first call.
        scale: input scale b: data counts as b times itself, so that large pictures are destroyed at lower levels. It moves the default
            schedule, sampler and noise coordinate; a schedule, sampler or `Denoiser` that is given counts as it is. With a scale other
            than 1 build the network with ``standardise=True``.
        clip: clip estimates to [-1, 1] in sampling, as published; False for latents of a codec.
        schedule: training levels; by default the sigmoid in gamma with temperature 0.9.
        sampler: used by `sample` unless another is given; by default DDPM with the larger variance, 100 steps on the cosine in gamma.
        options: see `EDM`.

    Raises:
        ValueError: a rate outside [0, 1], a scale that is not positive, or a network that hands nothing on.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        rate: float = 0.9,
        scale: float = 1.0,
        clip: bool = True,
        schedule: Schedule | None = None,
        sampler: Sampler | None = None,
        **options: Any,
    ) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is the share of samples that are told latents, in [0, 1]; got {rate}")
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}")
        if not isinstance(denoiser, Denoiser):
            denoiser = Denoiser(denoiser, EpsPrecond(SignalShare(scale=scale)))
        super().__init__(
            denoiser=denoiser,
            schedule=schedule or _scaled(Sigmoid(tau=0.9), scale),
            sampler=sampler or Ancestral(100, _scaled(GammaCosine(), scale), variance=1.0),
            **options,
        )
        self.rate, self.clip = rate, clip

    def estimate(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """As in `EDM`, told the latents of a first call or zeros."""
        carry = None
        if self.rate:
            with torch.no_grad():
                latents = self.latents(noisy, sigma, cond)
            told = rng.rand((len(noisy),), device=noisy.device) < self.rate
            carry = torch.where(expand(told, latents), latents, 0.0)
        out, _ = self.denoiser.raw(noisy, sigma, cond, carry=carry)
        return self.denoiser.assemble(noisy, sigma, out)

    def latents(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """What the network hands on when it was handed nothing.

        Raises:
            ValueError: it hands nothing on.
        """
        _, latents = self.denoiser.raw(noisy, sigma, cond)
        if not isinstance(latents, Tensor):
            raise ValueError(f"{type(self.denoiser.net).__name__} hands no latents on; RINDiffusion needs a network that returns (output, "
                             "latents) and takes carry=latents, such as diffx.networks.RIN")  # fmt: skip
        return latents

    def guided(self, n: int, cond: Cond, guidance: Any) -> tuple[Cond, Guide]:
        """As in `Gaussian`; every walk carries latents of its own."""
        cond, guide = super().guided(n, cond, guidance)

        def warm(denoiser: Denoiser, cond: Cond) -> Denoise:
            denoise = carried(guide, denoiser, cond, Carry())
            return (lambda x, sigma: denoise(x, sigma).clamp(-1, 1)) if self.clip else denoise

        return cond, warm


def _scaled(schedule: Schedule, scale: float) -> Schedule:
    return schedule if scale == 1 else Shifted.input_scale(schedule, scale)
