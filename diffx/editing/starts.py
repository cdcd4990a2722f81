"""Edits that begin on the way: data under noise, carried on by a denoiser that is told something else."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from .. import rng
from ..denoiser import Denoise
from ..rng import Generators
from ..samplers import Heun, Sampler

__all__ = ["img2img", "magic_mix"]

log = logging.getLogger(__name__)


def img2img(denoise: Denoise, x: Tensor, strength: float, *, sampler: Sampler = Heun(), generator: Generators = None) -> Tensor:
    """Add noise to data and take it away again: SDEdit (Meng et al. 2021, arXiv:2108.01073).

    Walks the last ``floor(steps * strength)`` steps of the sampler, at least one; they begin at x + s n, with s the level of the first of
    them. At strength 1 that is the sampler's highest level, where next to nothing is left of x. Costs the evaluations of those steps.

    Args:
        denoise: what the result is to show.
        x: data (B, *), or latents.
        strength: share of the steps; 0 returns x.
        sampler: whose steps are walked.
        generator: of all noise; one, or one per sample.

    Raises:
        ValueError: strength outside [0, 1].
    """
    if strength == 0:
        return x
    tail = sampler.partial(strength)
    if sampler.steps * strength < 1 - 1e-9:
        log.warning(
            "strength %g is less than one of %d steps; one step is walked, from level %.3g", strength, sampler.steps, tail.sigmas()[0]
        )
    return tail(denoise, rng.randn(x.shape, generator, device=x.device, dtype=x.dtype), start=x, generator=generator)


def magic_mix(denoise: Denoise, x: Tensor, *, mix: float = 0.5, strongest: float = 0.6, weakest: float = 0.3, sampler: Sampler = Heun(),
              generator: Generators = None) -> Tensor:  # fmt: skip
    """The layout of one picture with the contents of a prompt: MagicMix (Liew et al. 2022, arXiv:2210.16056).

    Begins as `img2img` at the strength ``strongest``. At each level down to that of the strength ``weakest`` the state is replaced by
    ``mix * state + (1 - mix) * (x + s n)``, with the same n throughout; from there on sampling is plain. Costs what `img2img` costs at
    ``strongest``.

    Args:
        denoise: what the contents are to be.
        x: data (B, *) that gives the layout, or latents.
        mix: 1 leaves the state alone, which is `img2img` at ``strongest``; 0 is `img2img` at ``weakest``.
        strongest: strength at which mixing begins.
        weakest: strength at which it ends.
        sampler: whose steps are walked.
        generator: of all noise; one, or one per sample.

    Raises:
        ValueError: mix outside [0, 1], or not 0 < weakest <= strongest <= 1.
    """
    if not (0 <= mix <= 1 and 0 < weakest <= strongest <= 1):
        raise ValueError(f"magic_mix needs mix in [0, 1] and 0 < weakest <= strongest <= 1, got mix={mix}, weakest={weakest} and "
                         f"strongest={strongest}")  # fmt: skip
    sigmas, step = sampler.sigmas(), sampler.begin()
    first, last = (sampler.steps - max(1, math.floor(sampler.steps * share + 1e-9)) for share in (strongest, weakest))
    noise = rng.randn(x.shape, generator, device=x.device, dtype=x.dtype)
    state = x + sigmas[first] * noise
    for i in range(first, sampler.steps):
        if i <= last:
            state = mix * state + (1 - mix) * (x + sigmas[i] * noise)
        state = step(denoise, state, sigmas[i], sigmas[i + 1], generator)
    return state
