"""`MovingShapes`: coloured shapes that move, with captions that tell where to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...recipes import recorded
from ..module import DataModule
from ..shapes.render import render
from ..shapes.scenes import COLOURS, SHAPES, Rules, Scene, scene, uniforms
from ..source import Batch
from .paths import direction, walk

__all__ = ["MovingShapes"]


class MovingSceneSource:
    """A source of clips, drawn on demand; batches as in `MovingShapes`.

    Args:
        rules: what scenes look like at their beginning.
        items: number of clips.
        size: (height, width) in pixels.
        frames: frames per clip.
        speed: top speed along each axis, in short sides per frame.
        world: names the set of clips.
    """

    def __init__(self, rules: Rules, items: int, size: tuple[int, int], frames: int, speed: float, world: int) -> None:
        self.rules, self.items, self.size, self.frames, self.speed, self.world = rules, items, size, frames, speed, world

    def __len__(self) -> int:
        """Number of clips."""
        return self.items

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Draw the clips at ``indices``; the epoch plays no part."""
        told, stills, slots = [], [], self.rules.count[1]
        scenes = [scene(self.world, index, self.rules) for index in indices.tolist()]
        for content, index in zip(scenes, indices.tolist(), strict=True):
            text, clip = self._moving(content, index)
            told.append(text)
            stills.extend(clip)
        pictures, _, boxes = render(stills, self.size, slots)
        shape = (len(indices), self.frames)
        colours, shapes = torch.full((2, len(indices), slots), -1)
        for row, content in enumerate(scenes):
            for slot, thing in enumerate(content.objects):
                colours[row, slot], shapes[row, slot] = COLOURS.index(thing.colour), SHAPES.index(thing.shape)
        return {
            "x": torch.from_numpy(pictures).unflatten(0, shape).transpose(1, 2).contiguous(),
            "index": torch.from_numpy(indices),
            "text": told,
            "colours": colours,
            "shapes": shapes,
            "boxes": torch.from_numpy(boxes).unflatten(0, shape),
        }

    def _moving(self, content: Scene, index: int) -> tuple[str, list[Scene]]:
        """The caption of a clip and its frames."""
        draw = uniforms("moving shapes", "unseen" if self.rules.unseen else "seen", self.world, index)
        told, paths = [], []
        for thing in content.objects:
            velocity = np.array([(2 * next(draw) - 1) * self.speed for _ in range(2)])
            room = (content.canvas[0] - thing.side, content.canvas[1] - thing.side)
            paths.append(walk(np.array([thing.top, thing.left]), velocity, self.frames, room))
            told.append(f"a {thing.colour} {thing.shape} {direction(velocity, self.speed)}")
        clip = []
        for frame in range(self.frames):
            objects = (replace(thing, top=path[frame, 0], left=path[frame, 1]) for thing, path in zip(content.objects, paths, strict=True))
            clip.append(replace(content, objects=tuple(objects)))
        return " and ".join(told), clip


@recorded
class MovingShapes(DataModule):
    """Clips of the scenes of `Shapes` whose objects move with constant speed and bounce off the walls.

    No files: every clip is a pure function of (world, index). Objects do not overlap in the first frame; later ones pass in front of
    earlier ones. Batches hold, with K the largest number of objects,

    | name | value |
    |---|---|
    | "x" | ``(B, 3, T, H, W)`` uint8 |
    | "text" | B captions such as "a red circle moving up and a blue square resting" |
    | "colours", "shapes" | ``(B, K)`` int64 places in `COLOURS` and `SHAPES`, -1 in empty slots |
    | "boxes" | ``(B, T, K, 4)`` int64 pixels (left, top, right, bottom), right and bottom exclusive, 0 in empty slots |

    Args:
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels.
        frames: frames T per clip.
        speed: top speed along each axis, in short sides per frame.
        items: number of training clips.
        val_items: number of validation clips.
        objects: smallest and largest number of objects, within [1, 4].
        extent: smallest and largest side of an object as a share of the short side.
        world: names the set of clips.
        num_workers, seed: as in `DataModule`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, batch_size: int = 16, *, size: int | tuple[int, int] = 16, frames: int = 8, speed: float = 0.1, items: int = 20_000,
        val_items: int = 500, objects: tuple[int, int] = (1, 2), extent: tuple[float, float] = (0.3, 0.4), world: int = 0,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        height, width = (size, size) if isinstance(size, int) else size
        short = min(height, width)
        if short < 1 or frames < 1 or speed < 0 or items < 1 or val_items < 0:
            raise ValueError(f"size, frames and items must be positive, speed and val_items not negative; got {size}, {frames}, {items}, "
                             f"{speed} and {val_items}")  # fmt: skip
        self.rules = Rules((height / short, width / short), (objects[0], objects[1]), (extent[0], extent[1]))
        self.size, self.frames, self.speed, self.world = (height, width), frames, speed, world
        self.items, self.val_items = items, val_items

    def sources(self) -> tuple[MovingSceneSource, MovingSceneSource | None]:
        """The two streams of clips."""

        def source(rules: Rules, items: int) -> MovingSceneSource:
            return MovingSceneSource(rules, items, self.size, self.frames, self.speed, self.world)

        return source(self.rules, self.items), source(replace(self.rules, unseen=True), self.val_items) if self.val_items else None
