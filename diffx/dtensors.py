"""Tensors of which every rank holds a part (DTensor), beside those that every rank holds whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["gathered", "is_sharded", "local", "placed", "whole"]


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    """Whether this rank may hold only a part of it."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; others as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (a collective call); others as they are, without their graph."""
    return tensor.full_tensor().detach() if is_sharded(tensor) else tensor.detach()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the form of ``like``: cut to this rank's part where that is sharded; no communication, nothing shared with ``value``."""
    if not is_sharded(like) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, starts = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = value[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
    part = part.to(like.device, copy=True).contiguous()
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def gathered(tree: Any, keep: bool) -> Any:
    """A nested state with every sharded tensor made whole on the CPU, one after the other (a collective call).

    Args:
        tree: dictionaries, lists and tuples of anything.
        keep: whether this rank wants the whole tensors; the others help and get None in their place.
    """
    if isinstance(tree, Mapping):
        return {name: gathered(value, keep) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value, keep) for value in tree)
    if not is_sharded(tree):
        return tree
    value = whole(tree)
    return value.cpu() if keep else None
