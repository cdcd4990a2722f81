"""Masks of edits: 1 = regenerate, 0 = keep."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["checked_mask", "mixed"]


def checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask on the device and in the type of ``x`` (B, C, *space).

    Raises:
        ValueError: not (B, 1, *space) or (1, 1, *space), or values outside [0, 1].
    """
    space = tuple(x.shape[2:])
    if tuple(mask.shape) not in ((len(x), 1, *space), (1, 1, *space)):
        raise ValueError(f"a mask must be ({len(x)} or 1, 1, {', '.join(map(str, space))}) for data {tuple(x.shape)}, 1 = regenerate; "
                         f"got {tuple(mask.shape)}")  # fmt: skip
    mask = mask.to(x)
    if not 0 <= float(mask.min()) <= float(mask.max()) <= 1:
        raise ValueError(f"a mask must lie in [0, 1], 1 = regenerate; got values from {float(mask.min()):g} to {float(mask.max()):g}")
    return mask


def mixed(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where the mask is 1 and ``old`` where it is 0, both exactly; a mean between."""
    return torch.where(mask == 0, old, torch.lerp(old, new, mask))
