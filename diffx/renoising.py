"""Tokens among random ones: how they are spoilt, and how they are found again in a few rounds (Rampas et al. 2022, arXiv:2211.07292)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from . import rng
from .masking import gumbel
from .recipes import recorded
from .tensors import expand

__all__ = ["LeveledLogits", "Renoising", "spoilt", "typical"]

LeveledLogits: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(ids (B, *), share of random ids (B,)) -> logits (B, *, K)."""


def spoilt(ids: Tensor, codes: Tensor, share: Tensor, generator: rng.Generators = None) -> tuple[Tensor, Tensor]:
    """Put ``codes`` (B, *) in place of ``ids`` (B, *), each place by itself with probability ``share`` (B,); also says where (bool)."""
    hit = rng.rand(tuple(ids.shape), generator, device=ids.device) < expand(share, ids)
    return torch.where(hit, codes, ids), hit


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the fewest codes that are as surprising as the entropy says and have probability ``mass`` together; -inf to the others.

    A code's rank is the distance of ``-ln p`` to the entropy (Meister et al. 2022, arXiv:2202.00666).
    """
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1, keepdim=True)
    order = (-logp - entropy).abs().argsort(-1)
    reached = logp.exp().gather(-1, order).cumsum(-1)
    late = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], -1) >= mass
    return logits.masked_fill(late.gather(-1, order.argsort(-1)), -torch.inf)


@recorded
@dataclass(frozen=True)
class Renoising:
    """Draw all tokens anew in every round, then put back random codes, fewer from round to round.

    In round i of T, counted from 0, the network is told the share ``t_i = t (1 - i / T)`` of random codes, t being that at the start.
    All tokens are drawn from its distribution, and before the next round each is replaced with probability ``t_(i + 1)`` by the code
    that stood there at the very start, always the same one.

    Args:
        steps: rounds T, each one network evaluation.
        temperature: (first, last): logits are divided by it; it moves evenly from the first round to the last. 0 takes the likeliest.
        mass: of `typical` sampling, in (0, 1); None draws from all codes.

    Raises:
        ValueError: fewer than one step, a negative temperature, a mass out of range.
    """

    steps: int = 12
    temperature: tuple[float, float] = (1.0, 0.2)
    mass: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampling needs at least 1 step, got steps={self.steps}")
        if len(self.temperature) != 2 or min(self.temperature) < 0:
            raise ValueError(f"temperature must be two numbers >= 0, the first and the last, got {self.temperature}")
        if self.mass is not None and not 0 < self.mass < 1:
            raise ValueError(f"mass must lie in (0, 1), got {self.mass}")

    def rounds(self, logits: LeveledLogits, start: Tensor, codes: Tensor, share: float = 1.0,
               generator: rng.Generators = None) -> Iterator[Tensor]:  # fmt: skip
        """The ids (B, *) drawn in every round; the last are the result.

        Args:
            logits: of the network.
            start: ids of which the share ``share`` are random.
            codes: (B, *) the random codes that are put back.
            share: t, in (0, 1].
            generator: one, or one per sample.
        """
        first, last = self.temperature
        ids = start
        for i in range(self.steps):
            level = ids.new_full((len(ids),), share * (1 - i / self.steps), dtype=torch.float32)
            heat = first + (last - first) * (i / max(1, self.steps - 1))
            drawn = self._draw(logits(ids, level).float(), heat, generator)
            yield drawn
            ids, _ = spoilt(drawn, codes, level - share / self.steps, generator)

    def __call__(self, logits: LeveledLogits, start: Tensor, codes: Tensor, share: float = 1.0,
                 generator: rng.Generators = None) -> Tensor:  # fmt: skip
        """The ids of the last round."""
        *_, last = self.rounds(logits, start, codes, share, generator)
        return last

    def _draw(self, logits: Tensor, heat: float, generator: rng.Generators) -> Tensor:
        if not heat:
            return logits.argmax(-1)
        logits = logits / heat
        logits = logits if self.mass is None else typical(logits, self.mass)
        return (logits + gumbel(rng.rand(tuple(logits.shape), generator, device=logits.device))).argmax(-1)
