"""Pictures in tiles: a network sees one tile at a time, the sampler walks the whole picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..recipes import recorded
from .binding import Guide
from .contrast import as_guide

__all__ = ["Tiled"]


@recorded
@dataclass(frozen=True)
class Tiled:
    """A guide that asks for the estimate of overlapping tiles, one after the other, and blends them at every evaluation.

    Memory is that of one tile, whatever the picture's size. The state and its noise are those of the whole picture, so tiles agree where
    they meet. In an overlap the two estimates are blended by a raised cosine over its inner half; its outer quarters count for nothing,
    since there a network sees the end of its tile. Where a network without attention sees no farther than a quarter of the overlap, the
    result is that of the whole picture up to the statistics of its normalisations.

    For networks that know no positions, such as `EfficientUNet` without self-attention. Maps of the conditions are cut like the picture.

    Args:
        tile: side of a tile in pixels (of latents), or height and width.
        overlap: pixels that neighbours share, less than a tile.
        guide: what binds the conditions within a tile, a number or a guide.

    Raises:
        ValueError: an overlap that is negative or no smaller than a tile; tile and overlap that the network's halvings do not divide.
    """

    tile: int | tuple[int, int]
    overlap: int = 0
    guide: float | Guide = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < min(self._sides):
            raise ValueError(f"overlap must be at least 0 and less than a tile, got {self.overlap} for tiles of {self._sides}")

    @property
    def _sides(self) -> tuple[int, int]:
        return (self.tile, self.tile) if isinstance(self.tile, int) else (self.tile[0], self.tile[1])

    def __call__(self, denoiser: Denoiser, cond: Cond) -> Denoise:
        """Bind the conditions to each tile when the size of the picture is known, that is at the first evaluation."""
        divisor = getattr(denoiser.net, "divisor", 1)
        if wrong := [side for side in (*self._sides, self.overlap) if side % divisor]:
            raise ValueError(f"the network needs sides that {divisor} divides; tile and overlap are {self._sides} and {self.overlap}, "
                             f"of which it does not divide {wrong[0]}")  # fmt: skip
        inner, bound = as_guide(self.guide), {}

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            total, weights = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
            for rows, columns in product(*(tiles(n, side, self.overlap) for n, side in zip(x.shape[-2:], self._sides, strict=True))):
                at = (..., slice(*rows), slice(*columns))
                if (rows, columns) not in bound:
                    maps = {name: value[at] for name, value in cond.maps.items()}
                    bound[rows, columns] = inner(denoiser, replace(cond, maps=maps))
                weight = torch.outer(*(blend(*span, n, self.overlap).to(x) for span, n in zip((rows, columns), x.shape[-2:], strict=True)))
                total[at] += weight * bound[rows, columns](x[at], sigma)
                weights[at] += weight
            return total / weights

        return denoise


def tiles(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where the tiles of a side of so many pixels begin and end: the last one ends with the picture and may share more than ``overlap``."""
    if side <= tile:
        return [(0, side)]
    count = math.ceil((side - overlap) / (tile - overlap))
    starts = [min(k * (tile - overlap), side - tile) for k in range(count)]
    return [(start, start + tile) for start in starts]


def blend(start: int, stop: int, side: int, overlap: int) -> Tensor:
    """Weights (stop - start,) of a tile's pixels along one side: 1, but rising and falling where it ends within the picture."""
    weight = torch.ones(stop - start, dtype=torch.float64)
    if overlap:
        place = (torch.arange(overlap, dtype=torch.float64) + 0.5) / overlap
        ramp = (math.pi / 2 * (2 * place - 0.5).clamp(0, 1)).sin() ** 2
        if start > 0:
            weight[:overlap] *= ramp
        if stop < side:
            weight[-overlap:] *= ramp.flip(0)
    return weight
