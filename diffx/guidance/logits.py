"""Classifier-free guidance of networks that answer with logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from ..tensors import expand

__all__ = ["Rising", "guided_logits"]


@recorded
@dataclass(frozen=True)
class Rising:
    """A scale that rises with the share of tokens that are known, so that the first ones are drawn freely.

    In Muse (Chang et al. 2023, arXiv:2301.00704) it rises with the round, which comes to nearly the same.

    Args:
        last: scale when all are known.
        first: scale when none is.
    """

    last: float
    first: float = 1.0

    def at(self, known: Tensor) -> Tensor:
        """The scale (B,) where the shares ``known`` (B,) of the tokens are known."""
        return self.first + (self.last - self.first) * known


def guided_logits(net: nn.Module, cond: Cond, guidance: float | Callable[..., Tensor] = 1.0) -> Callable[..., Tensor]:
    """``(*state, each (B, *)) -> untold + scale (told - untold)``, the network being called with the state and conditions.

    The scale is ``guidance``, or what that makes of the state, (B,). A guidance of 1 costs one evaluation, any other two in one batch.
    """
    if not callable(guidance) and guidance == 1:
        return lambda *state: net(*state, cond)
    both = cond.cat(cond.hidden())

    def guided(*state: Tensor) -> Tensor:
        told, untold = net(*(torch.cat([part, part]) for part in state), both).chunk(2)
        scale = expand(guidance(*state), told) if callable(guidance) else guidance
        return untold + scale * (told - untold)

    return guided
