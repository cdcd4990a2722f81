"""What a network is a stack of: the blocks that are sharded, and computed again in the backward pass, one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Constrained", "Unit", "checkpoint_activations", "units"]


class Unit(nn.Module):
    """Base of the blocks that make up most of a network.

    A unit is entered by a call, never by one of its methods or weights from outside, changes none of its inputs, and gives the same when
    it is called again with the same random numbers. Units may stand in units: the outermost ones count.
    """


class Constrained(nn.Module, ABC):
    """Base of layers whose weights are bound to a constraint, such as unit length, that optimizer steps leave.

    A fit of `diffx.module.DiffusionModule` calls `constrain` before each step, where every rank has its own part of sharded weights.
    """

    @abstractmethod
    def constrain(self) -> None:
        """Bring the weights back to the constraint."""


def units(net: nn.Module) -> Iterator[nn.Module]:
    """Every outermost `Unit` of a network in the order they were added, none of them twice.

    Networks of transformers and diffusers list the class names of their blocks in ``_no_split_modules``; those count too.
    """
    foreign = {name for module in net.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    seen: set[int] = set()

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if id(child) in seen:
                continue
            seen.add(id(child))
            if isinstance(child, Unit) or type(child).__name__ in foreign:
                yield child
            else:
                yield from inside(child)

    return inside(net)


def checkpoint_activations(net: nn.Module) -> int:
    """Let each unit forget what it computed, and compute it again in the backward pass: less memory for a third more computation.

    Outputs and gradients stay the same in every bit, dropout included. It acts in place and only where gradients are enabled.

    Returns:
        the number of units.
    """
    found = list(units(net))
    for unit in found:
        forward: Any = unit.forward
        if not isinstance(forward, partial):
            unit.forward = partial(_checkpointed, forward)
    return len(found)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
