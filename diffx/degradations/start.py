"""Where generation begins: the law of wholly degraded data, as far as mean and covariance tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng
from ..recipes import recorded

__all__ = ["GaussianStart"]

LARGEST = 2_000_000_000  # bytes of all covariances


@recorded
class GaussianStart(nn.Module):
    """A normal law per class, fitted to degraded pictures as they pass by in training.

    Large pictures are averaged over a grid first, and what is drawn is stretched over their size: wholly degraded pictures have no detail.
    Sums are kept in float64 and in checkpoints, and go over the pictures of all ranks.

    Args:
        shape: of one picture, (C, H, W).
        classes: number of classes K; 0 = one law for all.
        grid: longest side of the grid.

    Raises:
        ValueError: more than 1,024 numbers per picture on the grid, or covariances of all classes beyond 2 GB.
    """

    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, shape: Sequence[int], classes: int = 0, grid: int = 8) -> None:
        super().__init__()
        self.shape = tuple(shape)
        height, width = self.shape[1:]
        shrunk = max(1.0, max(height, width) / grid)
        self.grid = (max(1, round(height / shrunk)), max(1, round(width / shrunk)))
        size = self.shape[0] * math.prod(self.grid)
        if size > 1024:
            raise ValueError(f"a covariance of {size} numbers is too large to fit; choose a smaller grid than {grid}")
        laws = max(1, classes)
        if (bytes_ := 8 * laws * size**2) > LARGEST:
            raise ValueError(f"covariances of {laws} classes, {size} numbers each, take {bytes_ / 1e9:.1f} GB; choose a smaller grid than "
                             f"{grid}, or classes=0 for one law")  # fmt: skip
        self.register_buffer("count", torch.zeros(laws, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(laws, size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(laws, size, size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, label: Tensor | None) -> None:
        """Count degraded pictures ``(B, C, H, W)`` with their labels ``(B,)``, which only several laws need."""
        flat = F.adaptive_avg_pool2d(x, self.grid).flatten(1).double()
        law = torch.zeros(len(x), dtype=torch.long, device=x.device) if label is None or len(self.count) == 1 else label
        flat, law = _of_all_ranks(flat), _of_all_ranks(law)
        self.count.index_add_(0, law, torch.ones_like(flat[:, 0]))
        self.total.index_add_(0, law, flat)
        for k in range(len(self.count)):  # classes that are not there add zeros, and nobody has to be asked which those are
            self.square[k] += (flat * (law == k)[:, None]).T @ flat

    def draw(self, n: int, label: Tensor | None, generator: rng.Generators = None) -> Tensor:
        """Draw ``n`` pictures ``(n, C, H, W)`` of the classes ``label`` (n,); without it, of the law that fits all classes together.

        Raises:
            ValueError: a class of which nothing was seen yet.
        """
        noise = rng.randn((n, self.total.shape[1]), generator, device=self.total.device).double()
        if label is None or len(self.count) == 1:
            flat = self._drawn(noise, torch.ones_like(self.count, dtype=torch.bool))
        else:
            flat, label = torch.empty_like(noise), label.to(self.count.device)
            for k in label.unique():
                flat[label == k] = self._drawn(noise[label == k], torch.arange(len(self.count), device=label.device) == k)
        small = flat.float().view(n, self.shape[0], *self.grid)
        return small if self.grid == self.shape[1:] else F.interpolate(small, self.shape[1:], mode="bilinear")

    def _drawn(self, noise: Tensor, laws: Tensor) -> Tensor:
        """Unit noise (m, D) turned into draws of the normal law that fits the classes ``laws`` (K,) bool together."""
        count = self.count[laws].sum()
        if not count:
            raise ValueError("no degraded picture of a class that is asked for was seen yet; train first")
        mean = self.total[laws].sum(0) / count
        values, vectors = torch.linalg.eigh(self.square[laws].sum(0) / count - torch.outer(mean, mean))
        return mean + (noise * values.clamp_min(0).sqrt()) @ vectors.T


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Rows (B, *) of every rank under each other, in the order of ranks. Rows are gathered, not sums: covariances are far larger."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
