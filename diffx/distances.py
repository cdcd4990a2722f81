"""Distances: what the error of an x0 estimate is, before its noise level is weighed.

All are functions ``(estimate (B, *), x (B, *), batch)`` that return one number per sample, (B,). The mean square is the default of every
technique and needs no name here; the batch is there for distances that read more than the picture, such as where its objects are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from . import rng
from .batch import Batch
from .recipes import recorded
from .tensors import expand, mean_flat

__all__ = ["Distance", "ObjectRegions", "coverage"]

Distance: TypeAlias = Callable[[Tensor, Tensor, Batch], Tensor]


@recorded
@dataclass(frozen=True)
class ObjectRegions:
    """Squared error that counts more where objects are (ERNIE-ViLG 2.0, arXiv:2210.15257): the mean of ``W (estimate - x)^2``.

    W = 1 + w m, where m in [0, 1] is the share of a pixel (of a latent's pixel) that the union of the regions covers. Regions are given in
    pixels of the picture as the data gives it, so they do not go together with augmentation inside the technique.

    Args:
        weight: w, at least 0; 0 is the mean square.
        normalize: divide by the mean of W, so that the size of the objects does not change the scale of the loss.
        rate: probability that a sample's regions count; each sample has its own coin, from the default generators.
        regions: the column of the batch that holds them: boxes (B, K, 4) in pixels (left, top, right, bottom), 0 in empty slots, what lies
            outside the picture being cut off; or masks (B, K, H, W), boolean or in [0, 1].

    Raises:
        ValueError: a negative weight, a rate that is no probability; when called, a batch without that column or with another shape of it,
            data that are no pictures.
    """

    weight: float = 0.1
    normalize: bool = False
    rate: float = 1.0
    regions: str = "boxes"

    def __post_init__(self) -> None:
        if not self.weight >= 0 or not 0 <= self.rate <= 1:
            raise ValueError(f"weight must be at least 0 and rate lie in [0, 1], got {self.weight} and {self.rate}")

    def __call__(self, estimate: Tensor, x: Tensor, batch: Batch) -> Tensor:
        if (regions := batch.get(self.regions)) is None:
            raise ValueError(f"there is no column {self.regions!r} that says where objects are; the batch holds {sorted(batch)}")
        if x.ndim != 4:
            raise ValueError(f"regions are those of pictures (B, C, H, W), got data of shape {tuple(x.shape)}")
        cover = coverage(regions.to(x.device), x.shape[2:], batch["x"].shape[2:] if "x" in batch else None)
        if self.rate < 1:
            cover = cover * expand((rng.rand((len(x),)) < self.rate).to(cover), cover)
        weight = 1 + self.weight * cover.to(x.dtype)
        error = mean_flat(weight * (estimate - x).square())
        return error / mean_flat(weight) if self.normalize else error


def coverage(regions: Tensor, grid: Sequence[int], size: Sequence[int] | None = None) -> Tensor:
    """Share of each cell that the union of a sample's regions covers: (B, 1, *grid) in [0, 1].

    Args:
        regions: boxes (B, K, 4) or masks (B, K, H, W), as in `ObjectRegions`.
        grid: (rows, columns) of the cells that the picture is divided into.
        size: (height, width) of the picture in pixels; masks bring their own.

    Raises:
        ValueError: another shape, or boxes without ``size``.
    """
    if regions.ndim == 4:
        pixels = regions.float()
    elif regions.ndim != 3 or regions.shape[2] != 4:
        raise ValueError(f"regions must be boxes (B, K, 4) or masks (B, K, H, W), got {tuple(regions.shape)}")
    elif size is None:
        raise ValueError("boxes are in pixels, and a batch without pictures does not say how many there are; give masks")
    else:
        left, top, right, bottom = regions.float()[..., None].unbind(2)
        rows, columns = (torch.arange(side, device=regions.device) for side in size)
        down, across = ((b.minimum(at + 1) - a.maximum(at)).clamp(min=0) for a, b, at in ((top, bottom, rows), (left, right, columns)))
        pixels = down[..., :, None] * across[..., None, :]
    union = pixels.amax(1, keepdim=True) if regions.shape[1] else pixels.new_zeros(len(pixels), 1, *pixels.shape[2:])
    return F.adaptive_avg_pool2d(union, (grid[0], grid[1]))
