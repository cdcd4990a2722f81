"""`Shapes`: captioned coloured shapes as a DataModule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed_to
from typing import Any

import numpy as np
import torch

from ...recipes import recorded
from ..module import DataModule
from ..source import Batch
from .captions import CaptionNoise, Described, compose, pair_of, where
from .edits import EditKind, check_edits, edit
from .render import render
from .scenes import COLOURS, SHAPES, Rules, Scene, scene

__all__ = ["SMALLEST", "SceneSource", "Shapes"]

SMALLEST = 4  # pixels: below, circle and square are the same picture


class SceneSource:
    """A source of drawn scenes; batches as in `Shapes`.

    Args:
        rules: what scenes look like.
        size: (height, width) in pixels.
        items: number of scenes.
        world: names the scenes; index ``i`` is ``scene(world, i, rules)``.
        noise: what captions leave out or get wrong.
        positions: captions tell where objects are.
        parts: add the two half captions.
        spans: add the spans.
        edits: kind of the edit pairs, or None.
    """

    def __init__(
        self, rules: Rules, size: tuple[int, int], items: int, *, world: int = 0, noise: CaptionNoise = CaptionNoise(),
        positions: bool = False, parts: bool = False, spans: bool = True, edits: EditKind | None = None,
    ) -> None:  # fmt: skip
        self.rules, self.size, self.items, self.world, self.noise = rules, size, items, world, noise
        self.positions, self.parts, self.spans, self.edits = positions, parts, spans, edits

    def __len__(self) -> int:
        """Number of scenes."""
        return self.items

    def scene(self, index: int) -> Scene:
        """What picture number ``index`` shows."""
        return scene(self.world, index, self.rules)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Draw and describe the scenes at ``indices``; the epoch plays no part."""
        rows = indices.tolist()
        scenes = [self.scene(row) for row in rows]
        slots = self.rules.count[1]
        pictures, masks, boxes = render(scenes, self.size, slots)
        told = [compose(self._told(content, row)) for content, row in zip(scenes, rows, strict=True)]
        return {
            "x": torch.from_numpy(pictures),
            "index": torch.from_numpy(indices),
            "text": [text for text, _ in told],
            "count": torch.tensor([len(content.objects) for content in scenes]),
            "colours": _numbered([[COLOURS.index(thing.colour) for thing in content.objects] for content in scenes], slots),
            "shapes": _numbered([[SHAPES.index(thing.shape) for thing in content.objects] for content in scenes], slots),
            "attributes": _attributes(scenes),
            "boxes": torch.from_numpy(boxes),
            "masks": torch.from_numpy(masks),
            **({"spans": [spans for _, spans in told]} if self.spans else {}),
            **(_halves(scenes) if self.parts else {}),
            **(self._edited(self.edits, scenes, rows, masks) if self.edits else {}),
        }

    def _told(self, content: Scene, row: int) -> list[Described]:
        told = []
        for number, thing in enumerate(content.objects):
            position = where(thing, content.canvas) if self.positions else None
            told.append(self.noise(Described(*thing.pair, position), "caption", self.rules.unseen, self.world, row, number))
        return told

    def _edited(self, kind: EditKind, scenes: list[Scene], rows: list[int], masks: np.ndarray) -> dict[str, Any]:
        key = "edit", self.rules.unseen, self.world
        pairs = [edit(content, kind, self.rules, *key, row) for content, row in zip(scenes, rows, strict=True)]
        sources = [pair.source for pair in pairs]
        pictures, before, _ = render(sources, self.size, self.rules.count[1])
        changed = np.array([pair.object for pair in pairs])
        batch = np.arange(len(pairs))
        return {
            "source": torch.from_numpy(pictures),
            "source_text": [compose(self._told(pair.source, row))[0] for pair, row in zip(pairs, rows, strict=True)],
            "instruction": [pair.instruction for pair in pairs],
            "edited": torch.from_numpy(changed),
            "edit_mask": torch.from_numpy((masks | before)[batch, changed][:, None]),
        }


@recorded
class Shapes(DataModule):
    """Captioned pictures of one to four coloured shapes on gray, drawn on demand: no files, every item a pure function of (world, index).

    Colours are red, green, blue and yellow and never repeat within a picture; shapes are circle, square and triangle; objects do not
    overlap. Edges are hard (no antialiasing). With K the largest number of objects, batches hold

    | name | value |
    |---|---|
    | "x" | ``(B, 3, H, W)`` uint8 |
    | "text" | B captions such as "a red circle and a blue square" |
    | "count" | ``(B,)`` int64 number of objects; the others are padding in what follows |
    | "colours", "shapes" | ``(B, K)`` int64 places in `COLOURS` and `SHAPES`, -1 in empty slots; always the truth, whatever the caption |
    | "attributes" | ``(B, 12)`` float32: 1 at colour x 3 + shape for every object, else 0; what an ideal embedding of the picture tells |
    | "boxes" | ``(B, K, 4)`` int64 pixels (left, top, right, bottom), right and bottom exclusive, 0 in empty slots |
    | "masks" | ``(B, K, H, W)`` bool pixels of each object |

    and, where asked for,

    | name | value |
    |---|---|
    | "spans" | B lists of `Span`: where the words for each object stand in "text" |
    | "colour_text", "shape_text" | the two halves of the truth: "a red object and a blue object", "a circle and a square" |
    | "source" | ``(B, 3, H, W)`` uint8: the same scene with one attribute of one object different |
    | "source_text" | B captions of the sources |
    | "instruction" | B texts such as "make the blue circle red" |
    | "edited" | ``(B,)`` int64 number of the changed object |
    | "edit_mask" | ``(B, 1, H, W)`` bool: its pixels before and after; outside them the two pictures are equal |

    With ``edits``, "x" and all the rest describe the target.

    The same index shows the same scene at every resolution and under every kind of caption. Training and validation scenes come from
    separate streams.

    Args:
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels.
        items: number of training scenes.
        val_items: number of validation scenes.
        objects: smallest and largest number of objects, within [1, 4].
        extent: smallest and largest side of an object as a share of the short side.
        held_out: pairs such as "red circle" that no training scene shows and every validation scene shows at least one of.
        positions: captions tell where each object is: "a red circle at the top left".
        drop: probability that a training caption leaves out one attribute of an object: "a circle", "a red object".
        replace: probability that a training caption gets one attribute of an object wrong. Validation captions are always true.
        parts: give "colour_text" and "shape_text", for models with two sources of text.
        spans: give "spans". Lightning walks through these small objects when it moves a batch, tens of microseconds a sample: leave them
            out where nobody reads them.
        edits: make edit pairs that change a "colour", a "shape" or "any" of both; None = no pairs.
        world: names the set of scenes, so that another ``seed`` means another order of the same pictures.
        num_workers, seed: as in `DataModule`.

    Raises:
        ValueError: a number out of range, objects below 4 pixels or too large to fit, a pair that does not exist, or so many held-out pairs
            that too few colours or no edits are left.
    """

    def __init__(
        self, batch_size: int = 64, *, size: int | Sequence[int] = 16, items: int = 50_000, val_items: int = 1_000,
        objects: Sequence[int] = (1, 3), extent: Sequence[float] = (0.25, 0.4), held_out: Sequence[str] = (), positions: bool = False,
        drop: float = 0.0, replace: float = 0.0, parts: bool = False, spans: bool = True, edits: EditKind | None = None,
        world: int = 0, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        height, width = (size, size) if isinstance(size, int) else size
        short = min(height, width)
        if items < 1 or val_items < 0 or short < 1:
            raise ValueError(f"items and size must be positive and val_items not negative, got {items}, {size} and {val_items}")
        if extent[0] * short < SMALLEST:
            raise ValueError(
                f"objects of {extent[0]} x {short} pixels are too small to tell a circle from a square; they need {SMALLEST}, "
                f"so set extent to at least {SMALLEST / short:.3g} or enlarge size"
            )
        self.size, self.items, self.val_items = (height, width), items, val_items
        self.rules = Rules(
            (height / short, width / short), (objects[0], objects[1]), (extent[0], extent[1]), held_out=frozenset(map(pair_of, held_out))
        )
        if edits is not None:
            check_edits(edits, self.rules)
        self.noise = CaptionNoise(drop, replace)
        self.options: dict[str, Any] = {"world": world, "positions": positions, "parts": parts, "spans": spans, "edits": edits}

    def sources(self) -> tuple[SceneSource, SceneSource | None]:
        """The two streams of scenes."""
        train = SceneSource(self.rules, self.size, self.items, noise=self.noise, **self.options)
        if not self.val_items:
            return train, None
        return train, SceneSource(changed_to(self.rules, unseen=True), self.size, self.val_items, **self.options)


def _halves(scenes: list[Scene]) -> dict[str, list[str]]:
    return {
        "colour_text": [compose([Described(thing.colour, None) for thing in content.objects])[0] for content in scenes],
        "shape_text": [compose([Described(None, thing.shape) for thing in content.objects])[0] for content in scenes],
    }


def _attributes(scenes: list[Scene]) -> torch.Tensor:
    told = torch.zeros(len(scenes), len(COLOURS), len(SHAPES))
    for row, content in enumerate(scenes):
        for thing in content.objects:
            told[row, COLOURS.index(thing.colour), SHAPES.index(thing.shape)] = 1
    return told.flatten(1)


def _numbered(rows: list[list[int]], slots: int) -> torch.Tensor:
    return torch.tensor([row + [-1] * (slots - len(row)) for row in rows])
