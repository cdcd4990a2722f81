"""Edits that find out themselves what to change: DiffEdit (Couairon et al. 2022, arXiv:2210.11427)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .. import rng
from ..denoiser import Denoise
from ..rng import Generators
from ..samplers import Euler, Sampler
from .inversion import invert
from .masks import checked_mask, mixed

__all__ = ["diffedit", "difference_mask"]


def difference_mask(toward: Denoise, away: Denoise, x: Tensor, *, sigma: float = 1.0, draws: int = 10, clip: float = 3.0,
                    threshold: float = 0.5, generator: Generators = None) -> Tensor:  # fmt: skip
    """Where two denoise functions disagree about data under noise: (B, 1, *space), 1 where they do, else 0.

    The estimates are compared at ``x + sigma n``, the same draws of n for both; their absolute difference is averaged over draws and
    channels, cut at ``clip`` times its mean over the picture, divided by that, and compared with ``threshold``. Where they agree everywhere
    the mask is empty. Costs ``2 * draws`` evaluations.

    Args:
        toward: told what the data is to become.
        away: told what the data is, or nothing.
        x: data (B, C, *space), or latents.
        sigma: level at which they are compared; somewhat above the standard deviation of the data, where colours and outlines are decided.
        draws: number of draws of noise.
        clip: as above; above 0.
        threshold: in (0, 1).
        generator: of the noise; one, or one per sample.

    Raises:
        ValueError: a number out of its range.
    """
    if not (sigma > 0 and draws >= 1 and clip > 0 and 0 < threshold < 1):
        got = f"sigma={sigma}, draws={draws}, clip={clip}, threshold={threshold}"
        raise ValueError(f"difference_mask needs sigma > 0, draws >= 1, clip > 0 and threshold in (0, 1); got {got}")
    level, total = x.new_full((len(x),), sigma), torch.zeros_like(x[:, :1])
    for _ in range(draws):
        noisy = x + sigma * rng.randn(x.shape, generator, device=x.device, dtype=x.dtype)
        total = total + (toward(noisy, level) - away(noisy, level)).abs().mean(1, keepdim=True)
    limit = clip * total.mean(tuple(range(1, total.ndim)), keepdim=True)
    return ((total > threshold * limit) & (limit > 0)).to(x.dtype)


def diffedit(toward: Denoise, away: Denoise, x: Tensor, mask: Tensor, *, strength: float = 0.8, sampler: Sampler = Euler(50),
             fixed_point: int = 0) -> Tensor:  # fmt: skip
    """Invert data as what it is, sample it as what it is to become, and keep the inverted states outside of the mask.

    So what is kept is x, exactly. Costs the evaluations of `invert` and those of the steps back.

    Args:
        toward: told what the data is to become, with guidance if any.
        away: told what the data is, or nothing; without guidance.
        x: data (B, C, *space), or latents.
        mask: (B or 1, 1, *space), 1 = change, 0 = keep; that of `difference_mask`, or another.
        strength: share of the steps that are inverted, in (0, 1].
        sampler: see `invert`.
        fixed_point: see `invert`.

    Raises:
        ValueError: see `invert` and `checked_mask`.
    """
    mask = checked_mask(mask, x)
    path = invert(away, x, sampler=sampler, strength=strength, fixed_point=fixed_point)
    state = path.states[0]
    for (a, b), kept in zip(pairwise(path.levels), path.states[1:], strict=True):
        state = mixed(mask, sampler.step(toward, state, a, b), kept)
    return state
