"""From scenes to pixels: hard edges, no antialiasing, so that every pixel is either background or exactly one palette colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from .scenes import PALETTE, Scene

__all__ = ["render", "template", "to_uint8"]


@cache
def template(shape: str, side: int) -> np.ndarray:
    """Pixels of a shape in a box of ``side`` pixels: ``(side, side)`` bool, touching all four edges of the box.

    A pixel belongs to a circle or square if its centre does, and to a triangle (apex above the middle, base at the bottom) if the middle of
    its lower edge does. From 4 pixels on the three shapes differ.
    """
    across = np.abs(np.arange(side) + 0.5 - side / 2)  # distance of the pixel's centre from the middle of the box
    if shape == "circle":
        pixels = across[:, None] ** 2 + across**2 <= side**2 / 4
    elif shape == "triangle":
        pixels = across <= (np.arange(side)[:, None] + 1) / 2
    else:
        pixels = np.ones((side, side), dtype=bool)
    pixels.flags.writeable = False
    return pixels


def render(scenes: Sequence[Scene], size: tuple[int, int], slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw scenes.

    Args:
        scenes: B scenes.
        size: (height, width) in pixels; of the same aspect as the scenes' canvas.
        slots: K, room for this many objects per scene.

    Returns:
        Pictures ``(B, 3, H, W)`` uint8; masks ``(B, K, H, W)`` bool, False in empty slots; boxes ``(B, K, 4)`` int64 in pixels as
        (left, top, right, bottom), right and bottom exclusive, 0 in empty slots.
    """
    scale = min(size)
    pictures = np.empty((len(scenes), 3, *size), dtype=np.uint8)
    masks = np.zeros((len(scenes), slots, *size), dtype=bool)
    boxes = np.zeros((len(scenes), slots, 4), dtype=np.int64)
    for picture, mask, box, scene in zip(pictures, masks, boxes, scenes, strict=True):
        picture[:] = to_uint8(scene.background)
        for slot, thing in enumerate(scene.objects):
            left, top, right, bottom = box[slot] = thing.box(scale)
            pixels = template(thing.shape, right - left)
            mask[slot, top:bottom, left:right] = pixels
            np.copyto(picture[:, top:bottom, left:right], _ink(thing.colour), where=pixels)
    return pictures, masks, boxes


def to_uint8(value: float) -> int:
    """A level in [-1, 1] as uint8, the inverse of ``x / 127.5 - 1`` up to rounding."""
    return round((value + 1) * 127.5)


@cache
def _ink(colour: str) -> np.ndarray:
    return np.array([to_uint8(level) for level in PALETTE[colour]], dtype=np.uint8)[:, None, None]
