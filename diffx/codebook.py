"""A codebook that follows the vectors it stands for (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from . import rng
from .recipes import recorded

__all__ = ["Codebook"]


@recorded
class Codebook(nn.Module):
    """K vectors, each the moving average of the vectors that are nearest to it. Nothing here has a gradient.

    A code that is used much less than its share is revived: it takes the place of a random vector of the batch. All codes begin dead, so
    the first batch places them. Ranks add up their sums, and rank 0 says where revived codes go, so that all keep the same codebook.

    Args:
        size: number of codes K.
        dim: length of a vector.
        decay: of the averages, per step, in (0, 1).
        revive: a code is dead when its average use falls below this share of 1 / K, in [0, 1); 0 revives only what was never used.

    Raises:
        ValueError: numbers out of range.
    """

    codes: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, size: int, dim: int, *, decay: float = 0.99, revive: float = 0.1) -> None:
        super().__init__()
        if size < 1 or dim < 1 or not 0 < decay < 1 or not 0 <= revive < 1:
            raise ValueError(f"size and dim must be >= 1, decay in (0, 1), revive in [0, 1); got {size}, {dim}, {decay}, {revive}")
        self.size, self.dim, self.decay, self.revive = size, dim, decay, revive
        with rng.forked("codebook"):
            self.register_buffer("codes", torch.randn(size, dim))
        self.register_buffer("count", torch.zeros(size))
        self.register_buffer("total", torch.zeros(size, dim))

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances ``(N, K)`` of vectors ``(N, dim)`` to all codes."""
        return z.square().sum(1, keepdim=True) - 2 * z @ self.codes.T + self.codes.square().sum(1)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids ``(B, *)`` of the codes nearest to vectors ``(B, dim, *)``."""
        return self.distances(z.movedim(1, -1).flatten(0, -2).float()).argmin(1).view(len(z), *z.shape[2:])

    def vectors(self, ids: Tensor) -> Tensor:
        """Codes ``(B, dim, *)`` of ids ``(B, *)``."""
        return F.embedding(ids, self.codes).movedim(-1, 1)

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor) -> None:
        """Move the codes towards the vectors ``z`` (B, dim, *) of a training batch, which lie nearest to ``ids`` (B, *)."""
        flat, hit = z.movedim(1, -1).flatten(0, -2).float(), ids.flatten()
        count = torch.zeros_like(self.count).index_add_(0, hit, torch.ones_like(flat[:, 0]))
        total = torch.zeros_like(self.total).index_add_(0, hit, flat)
        chosen = flat[rng.rand((self.size,), device=flat.device).mul(len(flat)).long().clamp_max(len(flat) - 1)]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
            dist.broadcast(chosen, 0)
        fresh = self.count.sum() == 0
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        share = count.sum() / self.size  # of even use; a revived code has that to begin with, and time to prove itself
        dead = (self.count <= self.revive * share) | fresh
        self.count.copy_(torch.where(dead, share, self.count))
        self.total.copy_(torch.where(dead[:, None], chosen * share, self.total))
        self.codes.copy_(self.total / self.count[:, None])
