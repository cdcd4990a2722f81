"""Longer samples than a model was trained on, window by window: what a window knows of its surroundings is held, the rest is drawn.

Samples ``(n, C, T, *)`` have their time on axis 2: clips and sound alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Complete", "extended", "infilled"]

Complete: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""(windows (n, C, T, *), known (T,) bool, number of the window) -> windows with all else drawn."""


def extended(complete: Complete, start: Tensor, blocks: int, overlap: int | None = None) -> Tensor:
    """Go on from a window, block after block: each is drawn with the last ``overlap`` frames held (block-autoregressive).

    Args:
        complete: draws what is not known of a window.
        start: (n, C, T, *) the first block.
        blocks: number of blocks, the first one included.
        overlap: frames m that a block shares with the one before; T // 2 by default.

    Returns:
        (n, C, T + (blocks - 1) (T - m), *).

    Raises:
        ValueError: blocks below 1, an overlap outside [1, T).
    """
    frames = start.shape[2]
    overlap = frames // 2 if overlap is None else overlap
    if blocks < 1 or not 1 <= overlap < frames:
        raise ValueError(f"blocks must be at least 1 and the overlap lie in [1, {frames}), got {blocks} and {overlap}")
    known = torch.arange(frames, device=start.device) < overlap
    whole = start
    for block in range(1, blocks):
        window = torch.zeros_like(start)
        window[:, :, :overlap] = whole[:, :, -overlap:]
        whole = torch.cat([whole, complete(window, known, block)[:, :, overlap:]], 2)
    return whole


def infilled(complete: Complete, coarse: Tensor, factor: int, frames: int) -> Tensor:
    """Draw what lies between the frames of a coarse sample, in windows of which every ``factor``-th frame is held (hierarchical).

    A window begins where the one before had its last held frame.

    Args:
        complete: draws what is not known of a window.
        coarse: (n, C, K, *) frames that will stand ``factor`` apart, K at least 2.
        factor: at least 2 and below ``frames``, so that a window holds two of them.
        frames: length T of a window.

    Returns:
        (n, C, (K - 1) factor + 1, *).

    Raises:
        ValueError: numbers out of range.
    """
    held = coarse.shape[2]
    if held < 2 or not 2 <= factor < frames:
        raise ValueError(f"there must be at least 2 coarse frames and 2 <= factor < {frames}, got {held} and {factor}")
    length = (held - 1) * factor + 1
    whole = coarse.new_zeros(*coarse.shape[:2], length, *coarse.shape[3:])
    whole[:, :, ::factor] = coarse
    stride = (frames - 1) // factor * factor
    for number, begin in enumerate(range(0, length - 1, stride)):
        window = coarse.new_zeros(*coarse.shape[:2], frames, *coarse.shape[3:])
        inside = min(frames, length - begin)
        window[:, :, :inside] = whole[:, :, begin : begin + inside]
        place = torch.arange(frames, device=coarse.device)
        known = (place % factor == 0) & (place < inside)
        drawn = complete(window, known, number)
        new = ~known[: min(inside, stride)]
        whole[:, :, begin : begin + len(new)][:, :, new] = drawn[:, :, : len(new)][:, :, new]
    return whole
