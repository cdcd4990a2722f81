"""From data to the noise that it comes from: inversion of a deterministic sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..denoiser import Denoise
from ..samplers import Euler, Heun, Sampler

__all__ = ["Inversion", "invert"]


@dataclass(frozen=True, eq=False)
class Inversion:
    """The way of data up to noise.

    Args:
        levels: N + 1 falling levels, the last one 0.
        states: N + 1 states (B, *), one per level; the last is the data.
    """

    levels: Sequence[float]
    states: Sequence[Tensor]

    @property
    def noise(self) -> Tensor:
        """The state at the highest level, divided by it: what a sampler is given to come back."""
        return self.states[0] / self.levels[0]


def invert(denoise: Denoise, x: Tensor, *, sampler: Sampler = Euler(50), strength: float = 1.0, fixed_point: int = 0) -> Inversion:
    """Walk data up the levels of a sampler: DDIM inversion (Song et al. 2021, arXiv:2010.02502, section 4.3; Dhariwal & Nichol 2021).

    A step from a to b > a goes along the direction at the state it starts from; the first one, from 0, along the direction at the lowest
    level of the grid. So the way back ends near the data, the nearer the more steps there are. ``fixed_point`` rounds of
    ``y <- y + x - step(y, b -> a)`` correct each state y until the sampler's own step leads back to x (Pan et al. 2023, arXiv:2309.04907).

    The denoise function must be the one that the way back uses, without guidance or nearly so, and must not clip: guidance bends the way up
    and the way down differently. Costs ``steps * (1 + fixed_point)`` steps, at least one in the first interval; only Heun takes two
    evaluations a step.

    Args:
        denoise: what the data is.
        x: data (B, *), or latents.
        sampler: `Euler`, or `Heun` without churn.
        strength: share of the steps, as in `img2img`; 1 goes up to the sampler's highest level.
        fixed_point: rounds of correction.

    Raises:
        ValueError: a sampler with memory or noise, strength outside (0, 1], or a negative number of rounds.
    """
    if not (isinstance(sampler, Euler) or (isinstance(sampler, Heun) and sampler.churn == 0)):
        raise ValueError(f"inversion needs a deterministic sampler without memory, Euler or Heun with churn=0; got {sampler}")
    if fixed_point < 0:
        raise ValueError(f"fixed_point must be at least 0 rounds, got {fixed_point}")
    levels = sampler.sigmas()[-sampler.partial(strength).steps - 1 :]
    states = [x]
    for low, high in pairwise(levels[::-1]):
        state = states[-1]
        moved = state if low == 0 else sampler.step(denoise, state, low, high)
        for _ in range(max(fixed_point, low == 0)):
            moved = moved + state - sampler.step(denoise, moved, high, low)
        states.append(moved)
    return Inversion(levels, states[::-1])
