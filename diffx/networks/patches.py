"""Pictures as sequences of patches, and where each patch lies: what transformers over pictures share."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["patchify", "position_table", "unpatchify"]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut ``(B, C, H, W)`` into ``(B, N, patch * patch * C)``: patches row by row, in each the pixels row by row, channels innermost."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Put the patches ``(B, N, patch * patch * C)`` of a ``grid`` (rows, columns) together again, the inverse of `patchify`."""
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)


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
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=rows.dtype, device=rows.device) / quarter)
    down, along = (torch.cat([angle.sin(), angle.cos()], 1) for angle in (rows[:, None] * frequency, columns[:, None] * frequency))
    grid = (len(rows), len(columns), width // 2)
    return torch.cat([along[None].expand(grid), down[:, None].expand(grid)], 2).flatten(0, 1)
