"""`MovingDigits`: real handwritten digits that move in straight lines and bounce."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...recipes import recorded
from ...resizing import factors_of, shrink
from ..digits import Digits
from ..module import DataModule
from ..shapes.scenes import uniforms
from ..source import Batch
from .paths import direction, walk

__all__ = ["MovingDigits"]

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8  # pixels of a digit


class MovingDigitSource:
    """A source of clips, drawn on demand; batches as in `MovingDigits`.

    Args:
        digits: ``(N, 1, 8, 8)`` in [-1, 1].
        label: ``(N,)`` their classes.
        items: number of clips.
        size: (height, width) in pixels.
        frames: frames per clip.
        speed: top speed along each axis, pixels per frame.
        shrink: factors by which frames, height and width are fewer.
        key: names the set of clips.
    """

    classes, class_names = 10, NAMES

    def __init__(
        self, digits: torch.Tensor, label: torch.Tensor, items: int, size: tuple[int, int], frames: int, speed: float,
        shrink: tuple[int, int, int], key: tuple[int | str, ...],
    ) -> None:  # fmt: skip
        self.digits, self.label, self.items, self.size = digits, label, items, size
        self.frames, self.speed, self.shrink, self.key = frames, speed, shrink, key

    def __len__(self) -> int:
        """Number of clips."""
        return self.items

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Draw the clips at ``indices``; the epoch plays no part."""
        room = (self.size[0] - SIDE, self.size[1] - SIDE)
        x = torch.full((len(indices), 1, self.frames, *self.size), -1.0)
        chosen, places, told = [], [], []
        for clip, index in zip(x, indices.tolist(), strict=True):
            draw = uniforms("moving digits", *self.key, index)
            digit = int(next(draw) * len(self.digits))
            start = np.array([next(draw) * room[axis] for axis in range(2)])
            velocity = np.array([(2 * next(draw) - 1) * self.speed for _ in range(2)])
            path = np.rint(walk(start, velocity, self.frames, room)).astype(np.int64)
            for frame, (top, left) in enumerate(path.tolist()):
                clip[:, frame, top : top + SIDE, left : left + SIDE] = self.digits[digit]
            chosen.append(digit)
            places.append(path)
            told.append(f"a {NAMES[int(self.label[digit])]} {direction(velocity, self.speed)}")
        return {
            "x": shrink(x, self.shrink),
            "index": torch.from_numpy(indices),
            "label": self.label[torch.tensor(chosen)],
            "text": told,
            "positions": torch.from_numpy(np.stack(places)),
        }


@recorded
class MovingDigits(DataModule):
    """Clips of one handwritten digit of `Digits` that moves with constant speed and bounces off the walls.

    No files: every clip is a pure function of (world, index). A start inside the walls and a velocity of at most ``speed`` along each axis
    are drawn uniformly; places are rounded to whole pixels, so a digit never changes its shape or its brightness. Training and validation
    have different digits and different motions. Batches hold

    | name | value |
    |---|---|
    | "x" | ``(B, 1, T, H, W)`` float32 in [-1, 1], -1 where there is no ink |
    | "label" | ``(B,)`` int64 digit |
    | "text" | B captions such as "a three moving up and left"; of a velocity, what is below a quarter of ``speed`` is not told |
    | "positions" | ``(B, T, 2)`` int64 (top, left) of the digit's 8 x 8 pixels in each frame |

    Args:
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels, at least 8.
        frames: frames T per clip.
        speed: top speed along each axis, pixels per frame.
        shrink: show every n-th frame, and sides n times smaller: factors of frames, height and width. What the lower stages of a cascade
            are trained on; see `diffx.resizing.shrink`. Positions stay those of all frames at full size.
        items: number of training clips.
        val_items: number of validation clips.
        world: names the set of clips.
        num_workers, seed: as in `DataModule`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, batch_size: int = 16, *, size: int | tuple[int, int] = 16, frames: int = 8, speed: float = 2.0, items: int = 20_000,
        val_items: int = 500, shrink: Sequence[int] = (1, 1, 1), world: int = 0, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < SIDE or frames < 1 or speed < 0 or items < 1 or val_items < 0:
            raise ValueError(f"size must be at least {SIDE}, frames and items positive, speed and val_items not negative; "
                             f"got {size}, {frames}, {items}, {speed} and {val_items}")  # fmt: skip
        by = factors_of(tuple(shrink), 3)
        if frames % by[0] or height % by[1] or width % by[2]:
            raise ValueError(f"shrink must divide frames and sides, {frames}, {height} and {width}; got {list(shrink)}")
        self.size, self.frames, self.speed, self.world = (height, width), frames, speed, world
        self.shrink = by[0], by[1], by[2]
        self.items, self.val_items = items, val_items

    def sources(self) -> tuple[MovingDigitSource, MovingDigitSource | None]:
        """The two sets of clips."""
        train, val = Digits().sources()

        def source(digits: object, items: int, role: str) -> MovingDigitSource:
            x, label = digits.x, digits.label  # type: ignore[attr-defined]
            return MovingDigitSource(x, label, items, self.size, self.frames, self.speed, self.shrink, (role, self.world))

        return source(train, self.items, "train"), source(val, self.val_items, "val") if self.val_items else None
