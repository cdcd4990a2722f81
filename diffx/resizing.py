"""Pictures to other sizes: one way down and one way up, for data, conditions and cascades alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["enlarge", "shrink"]


def shrink(x: Tensor, factor: int) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] at 1 / ``factor`` of the side lengths: antialiased bicubic, clamped.

    Raises:
        ValueError: side lengths that the factor does not divide.
    """
    if factor < 1 or any(side % factor for side in x.shape[2:]):
        raise ValueError(f"sides must be divisible by the factor {factor}, got {tuple(x.shape[2:])}")
    return F.interpolate(x, size=[side // factor for side in x.shape[2:]], mode="bicubic", antialias=True).clamp(-1, 1)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (B, C, h, w) in [-1, 1] at the larger ``size``: bicubic, pixel areas aligned, clamped."""
    return F.interpolate(x, size=list(size), mode="bicubic", align_corners=False).clamp(-1, 1)
