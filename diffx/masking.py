"""Masked tokens: how many are hidden, and how they are found again in parallel (Chang et al. 2022, arXiv:2202.04200)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from . import rng
from .recipes import recorded

__all__ = [
    "CosineRatio", "ExpRatio", "LogRatio", "Logits", "MaskLaw", "ParallelDecoding", "PowerRatio", "feathered", "gumbel", "random_mask",
    "shifted", "touched",
]  # fmt: skip

MaskLaw: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(r in [0, 1], number of tokens n >= 1) -> share of the tokens that is hidden, falling from 1 at r = 0 to 0 at r = 1."""

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""ids (B, *), hidden ones with the mask's id -> logits (B, *, K) over the codebook."""


@recorded
@dataclass(frozen=True)
class CosineRatio:
    """cos(pi r / 2), the law of MaskGIT."""

    def __call__(self, r: Tensor, n: Tensor) -> Tensor:
        return (0.5 * math.pi * r).cos().clamp_min(0)


@recorded
@dataclass(frozen=True)
class PowerRatio:
    """1 - r^power: linear, square and cubic laws.

    Args:
        power: positive.

    Raises:
        ValueError: a power that is not positive.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def __call__(self, r: Tensor, n: Tensor) -> Tensor:
        return 1 - r**self.power


@recorded
@dataclass(frozen=True)
class LogRatio:
    """-log r / log n, at most 1: most tokens come early."""

    def __call__(self, r: Tensor, n: Tensor) -> Tensor:
        return (-r.clamp_min(1e-9).log() / n.clamp_min(2).log()).clamp(0, 1)


@recorded
@dataclass(frozen=True)
class ExpRatio:
    """1 - n^(r - 1): most tokens come at the end."""

    def __call__(self, r: Tensor, n: Tensor) -> Tensor:
        return 1 - n.to(r.dtype) ** (r - 1)


def random_mask(ratio: Tensor, size: tuple[int, ...]) -> Tensor:
    """Hide exactly ``max(1, ceil(ratio n))`` of the n places of every row, chosen uniformly from the default generators.

    Args:
        ratio: ``(B,)`` in [0, 1].
        size: of one row, e.g. ``(h, w)``.

    Returns:
        ``(B, *size)`` bool, True = hidden.
    """
    n = math.prod(size)
    count = (ratio.double() * n - 1e-6).ceil().clamp(1, n)
    rank = rng.rand((len(ratio), n), device=ratio.device).argsort(1).argsort(1)
    return (rank < count[:, None]).view(-1, *size)


def touched(mask: Tensor, grid: Sequence[int], ring: int = 1) -> Tensor:
    """The tokens that a mask of pixels touches, and ``ring`` tokens around them.

    Args:
        mask: ``(B, 1, H, W)``, 1 = regenerate, 0 = keep; what lies between counts as touched.
        grid: (h, w) of the tokens.
        ring: tokens of the border that see something of the mask and are found anew, too.

    Returns:
        ``(B, h, w)`` bool.

    Raises:
        ValueError: a negative ring.
    """
    if ring < 0:
        raise ValueError(f"ring is a number of tokens, at least 0, got {ring}")
    hit = F.adaptive_max_pool2d((mask > 0).float(), (grid[0], grid[1]))
    return F.max_pool2d(hit, 2 * ring + 1, stride=1, padding=ring)[:, 0] > 0


def feathered(mask: Tensor, width: int) -> Tensor:
    """A mask ``(B, 1, H, W)`` that falls from 1 to 0 over ``width`` pixels outside the pixels that are 1, and stays 1 on those.

    Raises:
        ValueError: a negative width.
    """
    if width < 0:
        raise ValueError(f"a feather is a number of pixels, at least 0, got {width}")
    if not width:
        return mask
    wide = F.max_pool2d(mask, 2 * width + 1, stride=1, padding=width)
    return F.avg_pool2d(wide, 2 * width + 1, stride=1, padding=width, count_include_pad=False).maximum(mask)


def shifted(x: Tensor, by: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pictures ``(B, C, H, W)`` moved within their frame by (down, right) pixels, and the mask ``(B, 1, H, W)`` of what came into view.

    What came into view holds zeros. A frame that is moved and filled again and again paints beyond the borders of a picture.

    Raises:
        ValueError: nothing of the picture is left in the frame.
    """
    height, width = x.shape[2:]
    down, right = by
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(f"moving pictures of {height} x {width} pixels by {tuple(by)} leaves nothing of them")
    rows, columns = torch.arange(height, device=x.device) - down, torch.arange(width, device=x.device) - right
    kept = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    moved = x.roll((down, right), (2, 3))
    return torch.where(kept, moved, 0.0), (~kept).to(x.dtype).expand(len(x), 1, -1, -1)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in [0, 1), finite at the ends."""
    return -(-u.clamp(1e-20, 1 - 1e-7).log()).log()


@recorded
@dataclass(frozen=True)
class ParallelDecoding:
    """Find all hidden tokens in ``steps`` rounds: draw every one, keep the surest, hide the others again.

    In round i of T every hidden token is drawn from the network's distribution. Its confidence is the log probability of what was drawn
    plus ``noise`` (1 - i / T) times Gumbel noise. The ``floor(ratio(i / T) n)`` least sure are hidden again, where n tokens were hidden at
    the start, but at least one less than before and, before the last round, at least one. Tokens that were known at the start stay.

    Args:
        steps: rounds T, each one network evaluation. More than there are hidden tokens change nothing.
        noise: randomness of the choice, 4.5 as published; 0 keeps the surest.
        temperature: logits are divided by it; 0 takes the likeliest token.
        ratio: law of what stays hidden.

    Raises:
        ValueError: fewer than one step, negative noise or temperature.
    """

    steps: int = 8
    noise: float = 4.5
    temperature: float = 1.0
    ratio: MaskLaw = CosineRatio()

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"decoding needs a whole number of steps, at least 1, got steps={self.steps}")
        if self.noise < 0 or self.temperature < 0:
            raise ValueError(f"noise and temperature must be >= 0, got {self.noise} and {self.temperature}")

    def remaining(self, i: int, start: Tensor, unknown: Tensor) -> Tensor:
        """How many tokens stay hidden after round ``i`` of 1 .. steps, ``(B,)`` int64, given those hidden at the start and now."""
        if i >= self.steps:
            return torch.zeros_like(start)
        share = self.ratio(torch.full((len(start),), i / self.steps, dtype=torch.float64, device=start.device), start)
        k = (share * start + 1e-9).floor().long()
        return torch.minimum(k.clamp_min(1), unknown - 1).clamp_min(0)

    def __call__(self, logits: Logits, ids: Tensor, mask: int, generator: rng.Generators = None) -> Tensor:
        """Fill the places of ``ids`` (B, *) that hold the id ``mask``; returns ids without it."""
        *_, last = self.rounds(logits, ids, mask, generator)
        return last

    def rounds(self, logits: Logits, ids: Tensor, mask: int, generator: rng.Generators = None) -> Iterator[Tensor]:
        """The ids after every round, for pictures of the progress; the last are complete."""
        start = (ids == mask).flatten(1).sum(1)
        for i in range(1, self.steps + 1):
            hidden = (ids == mask).flatten(1)
            drawn, confidence = self._draw(logits(ids).flatten(1, -2), i, generator)
            confidence = confidence.masked_fill(~hidden, torch.inf)
            ids = torch.where(hidden, drawn, ids.flatten(1)).view_as(ids)
            k = self.remaining(i, start, hidden.sum(1))
            rank = confidence.argsort(dim=1, stable=True).argsort(1)  # ranks, not a threshold: counts stay exact where confidences tie
            ids = ids.masked_fill((rank < k[:, None]).view_as(ids), mask)
            yield ids

    def _draw(self, logits: Tensor, i: int, generator: rng.Generators) -> tuple[Tensor, Tensor]:
        """Ids and confidences, each ``(B, n)``."""
        b, n, k = logits.shape
        logits = logits.float() / (self.temperature or 1.0)
        noisy = logits + gumbel(rng.rand((b, n, k), generator, device=logits.device)) if self.temperature else logits
        drawn = noisy.argmax(-1)
        logp = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        return drawn, logp + self.noise * (1 - i / self.steps) * gumbel(rng.rand((b, n), generator, device=logits.device))
