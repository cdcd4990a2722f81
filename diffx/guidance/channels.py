"""A guide that acts on some of the channels only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..recipes import recorded
from .binding import Carry, Guidance, Pair
from .correction import _nested

__all__ = ["FirstChannels"]


@recorded
@dataclass(frozen=True)
class FirstChannels(Guidance):
    """Guide the first ``channels`` channels; the others keep the conditional estimate.

    DiT's published sampler guides three of its four latent channels, so ``FirstChannels(1.5)`` stands for "guidance 1.5" there. Without
    this guide all channels are guided, as in most other software.

    Args:
        guide: what acts on those channels, a number or a guide of this module.
        channels: how many channels it acts on.

    Raises:
        ValueError: fewer than one channel.
    """

    guide: float | Guidance
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"FirstChannels guides at least 1 channel, got channels={self.channels}")

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        inner = _nested(self.guide).pair(denoiser, cond, carry)

        def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            guided, plain = inner(x, sigma)
            return torch.cat([guided[:, : self.channels], plain[:, self.channels :]], 1), plain

        return pair
