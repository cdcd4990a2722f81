"""An annotator of shapes that knows the truth: what a perfect detector and a perfect captioner would say."""

from __future__ import annotations

from ...recipes import recorded
from ..annotations import Annotation, Detection
from ..source import Batch
from .captions import Described, compose
from .scenes import COLOURS, SHAPES

__all__ = ["ShapesOracle"]


@recorded
class ShapesOracle:
    """Reads the columns "colours", "shapes" and "boxes" of a batch of `Shapes`, which are true whatever the caption says.

    Labels are such as "red circle"; the caption is the complete one.
    """

    fingerprint = "shapes-oracle"

    def __call__(self, batch: Batch) -> list[Annotation]:
        """What the pictures show."""
        rows = zip(*(batch[name].tolist() for name in ("count", "colours", "shapes", "boxes")), strict=True)
        return [self._told(colours[:count], shapes[:count], boxes) for count, colours, shapes, boxes in rows]

    def _told(self, colours: list[int], shapes: list[int], boxes: list[list[int]]) -> Annotation:
        pairs = [(COLOURS[colour], SHAPES[shape]) for colour, shape in zip(colours, shapes, strict=True)]
        found = [Detection(" ".join(pair), (box[0], box[1], box[2], box[3])) for pair, box in zip(pairs, boxes, strict=False)]
        return Annotation(tuple(found), compose([Described(*pair) for pair in pairs])[0])
