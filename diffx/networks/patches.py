"""Pictures and videos as sequences of patches, and where each patch lies: what transformers over pictures share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

__all__ = ["patchify", "position_table", "stretched", "unpatchify", "waves"]


def patchify(x: Tensor, patch: int | Sequence[int]) -> Tensor:
    """Cut ``(B, C, *size)`` into ``(B, N, P C)``: patches row by row, in each its P pixels row by row, channels innermost.

    Args:
        x: pictures ``(B, C, H, W)``, or videos ``(B, C, T, H, W)``.
        patch: side of a patch, one number or one per axis.
    """
    grid, pixels, sides = _names(x.ndim - 2, patch)
    pairs = " ".join(f"({g} {p})" for g, p in zip(grid, pixels, strict=True))
    return rearrange(x, f"b c {pairs} -> b ({' '.join(grid)}) ({' '.join(pixels)} c)", **sides)


def unpatchify(tokens: Tensor, patch: int | Sequence[int], grid: Sequence[int]) -> Tensor:
    """Put the patches ``(B, N, P C)`` of a ``grid``, e.g. (rows, columns), together again, the inverse of `patchify`."""
    names, pixels, sides = _names(len(grid), patch)
    pairs = " ".join(f"({g} {p})" for g, p in zip(names, pixels, strict=True))
    counts = dict(zip(names, grid, strict=True))
    return rearrange(tokens, f"b ({' '.join(names)}) ({' '.join(pixels)} c) -> b c {pairs}", **counts, **sides)


def _names(axes: int, patch: int | Sequence[int]) -> tuple[list[str], list[str], dict[str, int]]:
    """What the axes of the grid and of a patch are called in a rearrangement, and the sides of a patch by name."""
    sides = (patch,) * axes if isinstance(patch, int) else patch
    pixels = [f"p{i}" for i in range(axes)]
    return [f"g{i}" for i in range(axes)], pixels, dict(zip(pixels, sides, strict=True))


def position_table(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Sines and cosines of where each token lies, ``(len(rows) * len(columns), width)`` in the dtype of ``rows``.

    The first half of the width encodes the *column*, the second the row, each as sines, then cosines of ``width / 4`` frequencies that fall
    geometrically from 1 towards 1 / 10,000 without reaching it. This is the layout of ViT-MAE and DiT.

    Args:
        rows: vertical position of each row of tokens; fractions lie between the tokens.
        columns: horizontal position of each column.
        width: outputs, divisible by 4.

    Raises:
        ValueError: a width that 4 does not divide.
    """
    if width % 4:
        raise ValueError(f"sines and cosines of rows and columns need a width divisible by 4, got {width}")
    down, along = waves(rows, width // 2), waves(columns, width // 2)
    grid = (len(rows), len(columns), width // 2)
    return torch.cat([along[None].expand(grid), down[:, None].expand(grid)], 2).flatten(0, 1)


def waves(line: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of places on a line ``(N,)``: ``(N, width)`` with frequencies from 1 towards 1 / 10,000, without reaching it."""
    half = width // 2
    angle = line[:, None] * 10_000.0 ** (-torch.arange(half, dtype=line.dtype, device=line.device) / half)
    return torch.cat([angle.sin(), angle.cos()], 1)


def stretched(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Learned positions ``(1, D, *own)`` interpolated linearly over another grid of two or three axes, ``(1, D, *grid)``."""
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    return F.interpolate(table.float(), tuple(grid), mode=mode, align_corners=False).to(table.dtype)
