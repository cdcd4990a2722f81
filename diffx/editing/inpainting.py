"""A part of data painted anew, the rest kept exactly."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from .. import rng
from ..denoiser import Denoise
from ..rng import Generators
from ..samplers import Ancestral, Heun, Sampler
from .masks import checked_mask, mixed

__all__ = ["inpaint", "repaint", "repaint_plan"]


def inpaint(denoise: Denoise, x: Tensor, mask: Tensor, *, strength: float = 1.0, sampler: Sampler = Heun(),
            generator: Generators = None) -> Tensor:  # fmt: skip
    """Paint where the mask is 1: after each step to level b, what is kept is set to x + b n (blended diffusion, arXiv:2111.14818).

    The kept part always carries the noise of the level that the state has come to, with the same n throughout. In the end it is x, exactly.
    Costs the evaluations of the sampler.

    Args:
        denoise: what the painted part is to show, with the rest around it.
        x: data (B, C, *space), or latents.
        mask: (B or 1, 1, *space) in [0, 1]; 1 = regenerate, 0 = keep.
        strength: as in `img2img`, if the painted part is to begin from what is there; 1 begins from noise.
        sampler: whose steps are walked.
        generator: of all noise; one, or one per sample.

    Raises:
        ValueError: a mask that does not fit (see `checked_mask`), strength outside (0, 1].
    """
    mask, tail = checked_mask(mask, x), sampler.partial(strength)
    sigmas, step = tail.sigmas(), tail.begin()
    noise = rng.randn(x.shape, generator, device=x.device, dtype=x.dtype)
    state = sigmas[0] * noise + (x if strength < 1 else mixed(mask, 0 * x, x))
    for sigma, sigma_next in pairwise(sigmas):
        state = mixed(mask, step(denoise, state, sigma, sigma_next, generator), x + sigma_next * noise)
    return state


def repaint_plan(steps: int, jump: int, resamples: int) -> list[int]:
    """Where RePaint goes: the numbers of steps that remain, from ``steps`` to 0; they fall by 1, or rise by ``jump``.

    Args:
        steps: steps of the sampler.
        jump: after each ``jump`` steps, but not after the first ones, the state goes back that far.
        resamples: how often each of these stretches is walked.

    Raises:
        ValueError: a number below 1, or a jump longer than the steps.
    """
    if not (1 <= jump <= steps and resamples >= 1):
        raise ValueError(f"RePaint needs 1 <= jump <= steps and at least 1 resample, got jump={jump}, steps={steps}, resamples={resamples}")
    left = dict.fromkeys(range(0, steps - jump, jump), resamples - 1)
    plan = [steps]
    while plan[-1] or left.get(0):
        here = plan[-1]
        if left.get(here):
            left[here] -= 1
            plan.append(here + jump)
        else:
            plan.append(here - 1)
    return plan


def repaint(denoise: Denoise, x: Tensor, mask: Tensor, *, jump: int = 10, resamples: int = 10, sampler: Sampler = Ancestral(250),
            generator: Generators = None) -> Tensor:  # fmt: skip
    """Paint where the mask is 1, going back and forth so that old and new fit each other: RePaint (Lugmayr et al. 2022, arXiv:2201.09865).

    As `inpaint`, with fresh noise on the kept part at every level. After each ``jump`` steps the state goes back by as many, from level a
    to b by x + sqrt(b^2 - a^2) n, and walks again: ``resamples`` times in all. That takes about
    ``steps + (resamples - 1) (steps - jump)`` steps (see `repaint_plan`). Made for samplers that add noise (`Ancestral`).

    Args:
        denoise: what the painted part is to show, with the rest around it.
        x: data (B, C, *space), or latents.
        mask: (B or 1, 1, *space) in [0, 1]; 1 = regenerate, 0 = keep.
        jump: length of the stretches, in steps.
        resamples: how often each of them is walked; 1 never goes back.
        sampler: whose steps are walked.
        generator: of all noise; one, or one per sample.

    Raises:
        ValueError: a mask that does not fit (see `checked_mask`), or a plan that cannot be (see `repaint_plan`).
    """

    def noise() -> Tensor:
        return rng.randn(x.shape, generator, device=x.device, dtype=x.dtype)

    mask, plan = checked_mask(mask, x), repaint_plan(sampler.steps, jump, resamples)
    rising, step = sampler.sigmas()[::-1], sampler.begin()
    state = rising[-1] * noise()
    for here, there in pairwise(plan):
        a, b = rising[here], rising[there]
        if there > here:
            state, step = state + (b * b - a * a) ** 0.5 * noise(), sampler.begin()
        else:
            state = mixed(mask, step(denoise, state, a, b, generator), x + b * noise() if b else x)
    return state
