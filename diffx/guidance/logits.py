"""Classifier-free guidance of networks that answer with logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..conditions import Cond

__all__ = ["guided_logits"]


def guided_logits(net: nn.Module, cond: Cond, guidance: float | Tensor = 1.0) -> Callable[..., Tensor]:
    """``(*state, each (B, *)) -> untold + guidance (told - untold)``, the network being called with the state and conditions.

    A guidance of 1 costs one evaluation, any other two in one batch.
    """
    if isinstance(guidance, (int, float)) and guidance == 1:
        return lambda *state: net(*state, cond)
    both = cond.cat(cond.hidden())

    def guided(*state: Tensor) -> Tensor:
        told, untold = net(*(torch.cat([part, part]) for part in state), both).chunk(2)
        return untold + guidance * (told - untold)

    return guided
