"""One number that all ranks agree on."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer

__all__ = ["Agreement"]


class Agreement:
    """The highest of all ranks' numbers, over a gloo group of its own, for which no accelerator has to wait; free with one rank.

    To be made on all ranks at the same point of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._group: Any = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def highest(self, value: int) -> int:
        """The highest value; every rank must ask."""
        if self._group is None:
            return value
        box = torch.tensor([value])
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX, self._group)
        return int(box)
