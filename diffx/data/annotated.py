"""`Annotated`: a DataModule with what an annotator saw: boxes of mentioned objects, and captions that tell what they left out."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..recipes import recorded
from .annotations import Annotation, Annotator, Detection
from .module import DataModule
from .source import Batch, Source

__all__ = ["Annotated", "AnnotatedSource", "Completion", "complete", "mentions"]

log = logging.getLogger(__name__)

KEPT, APPENDED, REPLACED = range(3)


class Completion(NamedTuple):
    """How often captions are rewritten.

    Args:
        append: probability that the objects a caption leaves out are appended to it, where there are any.
        replace: probability that the caption is replaced by the annotator's, or by a list of all objects where it gave none.
    """

    append: float
    replace: float


class AnnotatedSource:
    """A source with annotations; batches as in `Annotated`.

    Args:
        source: the pictures.
        annotators: who looks, in turn; their objects are joined, the first caption counts.
        completion: how often captions are rewritten.
        missing: what to do about a picture that an annotator does not know: "raise", or "skip", which leaves it as it is and counts it.
        seed: key of the rewriting.

    Attributes:
        counts: boxes that lay outside their picture in part (``"clipped"``), items with an object that their caption does not mention
            (``"unmentioned"``) and items without annotation (``"missing"``), as far as this process has met them.
    """

    def __init__(
        self, source: Source, annotators: Sequence[Annotator], completion: Completion, *, missing: Literal["raise", "skip"], seed: int
    ) -> None:
        self.source, self.annotators, self.completion, self.missing, self.seed = source, annotators, completion, missing, seed
        self.classes, self.class_names = (getattr(source, name, None) for name in ("classes", "class_names"))
        self.counts: Counter[str] = Counter(clipped=0, unmentioned=0, missing=0)
        self._met: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        """Number of items."""
        return len(self.source)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Read and annotate the items at ``indices``; see `Source.fetch`."""
        batch = self.source.fetch(indices, epoch)
        rows = indices.tolist()
        seen = [self._seen(batch, row, index) for row, index in enumerate(rows)]
        if "text" not in batch:
            return {**batch, "boxes": self._boxes(seen, [None] * len(rows), rows, batch["x"])}
        told = [
            complete(text, made, self.completion, rng.key(self.seed, "completion", epoch, index) / 2**63)
            for text, made, index in zip(batch["text"], seen, rows, strict=True)
        ]
        texts = [text for text, _ in told]
        batch["boxes"] = self._boxes(seen, texts, rows, batch["x"])
        if "spans" in batch:
            batch["spans"] = [_spans(spans, text, made, fate) for spans, (text, fate), made in zip(batch["spans"], told, seen, strict=True)]
        return {**batch, "text": texts, "rewritten": torch.tensor([fate for _, fate in told])}

    def _seen(self, batch: Batch, row: int, index: int) -> Annotation:
        """What all annotators say of one item."""
        item = {name: column[row : row + 1] for name, column in batch.items()}
        made = []
        for annotator in self.annotators:
            try:
                made += annotator(item)
            except KeyError as error:
                if self.missing == "raise":
                    raise ValueError(f"item {index} was not annotated: {error.args[0]}; run annotate() over this very data, or set "
                                     "missing = 'skip'") from error  # fmt: skip
                self._count("missing", index, "item %d was not annotated and stays as it is", index)
        caption = next((one.caption for one in made if one.caption is not None), None)
        return Annotation(tuple(thing for one in made for thing in one.objects), caption)

    def _boxes(self, seen: Sequence[Annotation], texts: Sequence[str | None], rows: Sequence[int], x: Tensor) -> Tensor:
        """Boxes (B, K, 4) of the objects that the captions mention (all, without a caption), clipped to the picture; 0 in empty slots."""
        kept = []
        for made, text, index in zip(seen, texts, rows, strict=True):
            shown = [thing for thing in made.objects if text is None or mentions(text, thing.label)]
            if len(shown) < len(made.objects):
                lost = next(thing.label for thing in made.objects if thing not in shown)
                self._count("unmentioned", index, "the caption %r of item %d does not mention its %s", text, index, lost)
            kept.append([self._clipped(thing, index, x.shape[-2:]) for thing in shown])
        slots = max(1, *map(len, kept))
        return torch.tensor([row + [[0.0] * 4] * (slots - len(row)) for row in kept])

    def _clipped(self, thing: Detection, index: int, size: Sequence[int]) -> list[float]:
        height, width = size
        inside = [min(max(float(edge), 0.0), float(end)) for edge, end in zip(thing.box, (width, height, width, height), strict=True)]
        if inside != list(map(float, thing.box)):
            self._count("clipped", None, "the box %s of a %s lies outside the picture of item %d in part", thing.box, thing.label, index)
        return inside

    def _count(self, what: str, index: int | None, message: str, *about: Any) -> None:
        """Count, an item once; the first case is logged."""
        if index is not None:
            if (what, index) in self._met:
                return
            self._met.add((what, index))
        if not self.counts[what]:
            log.warning(message + "; further cases are only counted", *about)
        self.counts[what] += 1


@recorded
class Annotated(DataModule):
    """The items of another DataModule with objects and completed captions (ERNIE-ViLG 2.0, arXiv:2210.15257).

    A batch has beside the columns of ``data``

    | name | value |
    |---|---|
    | "text" | captions, some of them rewritten: "a circle with a red circle" |
    | "rewritten" | ``(B,)`` int64: 0 = as it was, 1 = missing objects were appended, 2 = replaced |
    | "boxes" | ``(B, K, 4)`` float32 pixels (left, top, right, bottom) of the objects that the caption mentions; 0 in empty slots |
    | "spans" | where ``data`` has them: those of the caption as it is now |

    Which fate a caption meets is a pure function of (seed, epoch, index). Validation captions stay as they are.

    Args:
        data: the pictures; its own columns "boxes", "rewritten" and "text" give way, and so do its batch size, workers and seed.
        annotators: who looks at them: an `AnnotationFile`, an oracle, or several by name (their objects are joined, the first caption
            counts). A model that looks anew in every epoch is slow: let `annotate` ask it once.
        batch_size: samples per rank and micro-batch.
        append, replace: see `Completion`.
        missing: "raise" or "skip" pictures that were not annotated.
        num_workers, seed: as in `DataModule`.

    Raises:
        ValueError: rates that are no probabilities or exceed 1 together, no annotators, an unknown ``missing``; when fetching, a picture
            that was not annotated.
    """

    def __init__(
        self, data: DataModule, annotators: Annotator | dict[str, Annotator], batch_size: int = 64, *, append: float = 0.25,
        replace: float = 0.15, missing: Literal["raise", "skip"] = "raise", num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        if min(append, replace) < 0 or append + replace > 1:
            raise ValueError(f"append and replace must be probabilities whose sum is at most 1, got {append} and {replace}")
        if missing not in ("raise", "skip"):
            raise ValueError(f"missing must be 'raise' or 'skip', got {missing!r}")
        self.data, self.missing, self.completion = data, missing, Completion(append, replace)
        self.annotators = list(annotators.values()) if isinstance(annotators, dict) else [annotators]
        if not self.annotators:
            raise ValueError("there are no annotators; give one, or leave out Annotated")

    def sources(self) -> tuple[Source, Source | None]:
        """The annotated streams of ``data``."""
        train, val = self.data.train, self.data.val
        return self._over(train, self.completion), None if val is None else self._over(val, Completion(0.0, 0.0))

    def prepare_data(self) -> None:
        """As ``data`` does it."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Check ``data``, too; batch sizes are compared for this module alone."""
        self.data.trainer = self.trainer
        self.data.setup("validate")
        super().setup(stage)

    def _over(self, source: Source, completion: Completion) -> AnnotatedSource:
        return AnnotatedSource(source, self.annotators, completion, missing=self.missing, seed=self.seed)


def mentions(text: str, label: str) -> bool:
    """Whether a text holds the words of a label, in any case, singular or plural."""
    return re.search(rf"(?<!\w){re.escape(label)}(?:s|es)?(?!\w)", text, re.IGNORECASE) is not None


def complete(text: str | None, seen: Annotation, completion: Completion, draw: float) -> tuple[str | None, int]:
    """A caption as it will be told, and what happened to it: `KEPT`, `APPENDED` or `REPLACED`.

    Args:
        text: the caption; None stays None.
        seen: what the picture shows.
        completion: how often something happens.
        draw: uniform number in [0, 1) that decides: first ``replace``, then ``append``, else nothing.
    """
    if text is None or draw >= completion.replace + completion.append:
        return text, KEPT
    if draw < completion.replace:
        other = seen.caption if seen.caption is not None else _listed(seen.objects)
        return (other, REPLACED) if other else (text, KEPT)
    missing = [thing for thing in seen.objects if not mentions(text, thing.label)]
    if not missing:
        return text, KEPT
    return f"{text.rstrip(' .')} with {_listed(missing)}".lstrip(), APPENDED


def _listed(objects: Sequence[Detection]) -> str:
    """Write labels as "a red circle and a blue square", every one once, in the given order."""
    labels = dict.fromkeys(thing.label for thing in objects)
    return " and ".join(f"{'an' if label[:1].lower() in 'aeiou' else 'a'} {label}" for label in labels)


def _spans(spans: Sequence[Any], text: str | None, seen: Annotation, fate: int) -> list[Any]:
    """Spans of a rewritten caption: the old ones while their words are still there, and those of the labels."""
    if text is None or fate == KEPT:
        return list(spans)
    labels = dict.fromkeys(thing.label for thing in seen.objects)
    found = [(label, match.start(), match.end()) for label in labels for match in re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", text)]
    return [*spans, *found] if fate == APPENDED else found
