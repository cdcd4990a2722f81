"""What a model sees in pictures, written down once: objects with boxes, captions, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..recipes import recorded
from .module import DataModule
from .source import Batch, Source

__all__ = ["Annotation", "AnnotationFile", "Annotator", "Detection", "annotate", "picture_key"]

log = logging.getLogger(__name__)

FORMAT = 1


class Detection(NamedTuple):
    """An object in a picture.

    Args:
        label: what it is, in words that may stand in a caption after an article: "dog", "red circle".
        box: (left, top, right, bottom) in pixels of the picture, right and bottom exclusive.
        score: confidence in [0, 1].
    """

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True)
class Annotation:
    """What was seen in one picture.

    Args:
        objects: in any order.
        caption: a description of the whole picture, or None.
    """

    objects: tuple[Detection, ...] = ()
    caption: str | None = None


class Annotator(Protocol):
    """Anything that looks at a batch: a detector, a captioner, a file of what they saw, an oracle."""

    @property
    def fingerprint(self) -> str:
        """What decides its answers: class, settings and weights, as one word."""
        ...

    def __call__(self, batch: Batch) -> list[Annotation]:
        """One annotation per item; pictures are ``batch["x"]`` (B, 3, H, W), uint8 or floats in [-1, 1]."""
        ...


def picture_key(x: Tensor) -> str:
    """Name of a picture ``(C, H, W)``: hash of its shape, type and content, 32 hexadecimal digits."""
    about = hashlib.blake2b(f"{x.dtype} {tuple(x.shape)}".encode(), digest_size=16)
    about.update(np.ascontiguousarray(x.numpy()).data)
    return about.hexdigest()


@recorded
class AnnotationFile:
    """Annotations of pictures by their content: a text file with one JSON object a line, the first of which names the annotator.

    Lines are appended in one write and never changed. What a kill left half-written is no JSON and is passed over, so nothing needs to be
    repaired; of two entries for one picture the first counts. The file is an annotator itself, which answers from memory.

    Args:
        path: of the file; made when the first annotations are added.
        fingerprint: of the annotator it must belong to; None takes whatever is there.

    Raises:
        ValueError: it is no such file, or holds annotations by another annotator than ``fingerprint`` (both named).
    """

    def __init__(self, path: str | Path, fingerprint: str | None = None) -> None:
        self.path = Path(path)
        self._places: dict[str, int] = {}
        self._fingerprint = fingerprint
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            about = _parsed(file.readline())
            if about.get("format") != FORMAT or not isinstance(about.get("annotator"), str):
                raise ValueError(f"{self.path} does not begin like a file of annotations; name another one")
            if fingerprint is not None and about["annotator"] != fingerprint:
                raise ValueError(f"{self.path} holds annotations by {about['annotator']}, but this is {fingerprint}; give each annotator "
                                 "a file of its own")  # fmt: skip
            self._fingerprint = about["annotator"]
            place = file.tell()
            for line in file:
                if key := _parsed(line).get("key"):
                    self._places.setdefault(key, place)
                place += len(line)

    @property
    def fingerprint(self) -> str:
        """That of the annotator whose answers are kept."""
        return self._fingerprint or "unknown"

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Annotation:
        """The annotation of a picture.

        Raises:
            KeyError: there is none.
        """
        if key not in self._places:
            raise KeyError(f"{self.path} does not know the picture {key}")
        with open(self.path, "rb") as file:
            file.seek(self._places[key])
            entry = _parsed(file.readline())
        objects = (Detection(label, (box[0], box[1], box[2], box[3]), score) for label, box, score in entry["objects"])
        return Annotation(tuple(objects), entry["caption"])

    def add(self, annotations: Mapping[str, Annotation]) -> None:
        """Write down annotations by `picture_key`; what is there already stays as it is.

        Raises:
            OSError: the file cannot be written.
        """
        fresh = {key: made for key, made in annotations.items() if key not in self}
        lines = [_line(key=key, objects=[list(thing) for thing in made.objects], caption=made.caption) for key, made in fresh.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            place = os.fstat(file).st_size
            head = b""
            if not place:
                head = _line(format=FORMAT, annotator=self.fingerprint)
            elif os.pread(file, 1, place - 1) != b"\n":
                head = b"\n"  # a kill left half a line
            _write(file, b"".join([head, *lines]))
            os.fsync(file)
        finally:
            os.close(file)
        place += len(head)
        for key, line in zip(fresh, lines, strict=True):
            self._places[key] = place
            place += len(line)

    def __call__(self, batch: Batch) -> list[Annotation]:
        """The annotations of a batch's pictures.

        Raises:
            KeyError: a picture that was not annotated.
        """
        return [self.get(picture_key(x)) for x in batch["x"]]


def annotate(
    data: DataModule, annotator: Annotator, path: str | Path, *, batch_size: int = 64, sets: Sequence[str] = ("train", "val")
) -> AnnotationFile:
    """Let an annotator look at every picture of a data set once, and keep what it says.

    Pictures whose content is in the file already are not looked at again: a run that was killed goes on where it stopped, and a data set
    that grew costs only what is new. The content counts as the data gives it, so the data must not augment at random.

    Args:
        data: its pictures.
        annotator: who looks.
        path: of the file, see `AnnotationFile`.
        batch_size: pictures looked at together; what a kill can cost.
        sets: ``"train"`` and ``"val"``, or one of them.

    Raises:
        ValueError: the file holds annotations by another annotator, or the data gives another picture when it is read again.
        OSError: the file cannot be written.
    """
    file = AnnotationFile(path, annotator.fingerprint)
    for source in (getattr(data, name) for name in sets):
        if source is None:
            continue
        _check_steady(source)
        for start in range(0, len(source), batch_size):
            batch = source.fetch(np.arange(start, min(start + batch_size, len(source))), 0)
            keys = [picture_key(x) for x in batch["x"]]
            new = [row for row, key in enumerate(keys) if key not in file]
            if new:
                made = annotator({name: column[new] if isinstance(column, Tensor) else [column[row] for row in new]
                                  for name, column in batch.items()})  # fmt: skip
                file.add(dict(zip((keys[row] for row in new), made, strict=True)))
    return file


def _check_steady(source: Source) -> None:
    """Refuse data that shows another picture in the next epoch: its annotations would never be found again."""
    first, second = (source.fetch(np.zeros(1, dtype=np.int64), epoch)["x"][0] for epoch in (0, 1))
    if picture_key(first) != picture_key(second):
        raise ValueError("the data gives another picture of the same item in each epoch; annotate it without random augmentation")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _line(**entry: Any) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
