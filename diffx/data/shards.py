"""`Shards`: pictures in tar files, laid out as WebDataset does, but read at random through an index of offsets."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..recipes import recorded
from .buckets import Size
from .listing import PICTURES
from .order import split
from .picture_module import PictureItems, PictureModule, remembered
from .pictures import PictureReader, size_of

__all__ = ["ShardItems", "Shards", "TarIndex", "index_tar"]

log = logging.getLogger(__name__)

PARTS = ("picture", "txt", "cls")  # what is looked for in a sample
FORMAT = 1  # of the index file
BLOCK = 512  # bytes of a tar block


@dataclass(frozen=True)
class TarIndex:
    """Where the samples of a tar file lie.

    Args:
        path: the tar file.
        stamp: its time of change (ns) and length in bytes when it was indexed.
        keys: name of each sample: the members' path up to the first dot of the file name.
        places: ``(N, 3, 2)`` int64: offset and length in bytes of picture, ``.txt`` and ``.cls``; offset -1 where there is none.
    """

    path: Path
    stamp: tuple[int, int]
    keys: list[str]
    places: np.ndarray

    def read(self, sample: int, part: int) -> bytes:
        """The content of one member."""
        offset, length = self.places[sample, part].tolist()
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def index_tar(path: Path) -> TarIndex:
    """The index of a tar file: read from beside it, or made (and written there) when it is missing or older than the tar.

    A sample is what shares a name up to the first dot: ``a/001.jpg``, ``a/001.txt``, ``a/001.cls``. Other members are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no plain tar file (a compressed one offers no random access), it is cut short, or a sample is incomplete.
    """
    stat = path.stat()
    stamp, beside = (stat.st_mtime_ns, stat.st_size), path.with_name(f".{path.name}.diffx-index.npz")
    if beside.is_file():
        with np.load(beside) as stored:
            if stored["about"].tolist() == [FORMAT, *stamp]:
                return TarIndex(path, stamp, stored["keys"].tobytes().decode().split("\0"), stored["places"])
    index = TarIndex(path, stamp, *_walked(path))
    try:
        keys = np.frombuffer("\0".join(index.keys).encode(), dtype=np.uint8)
        files.write(beside, lambda file: np.savez(file, about=np.array([FORMAT, *stamp]), keys=keys, places=index.places))
    except OSError as error:
        log.info("the index of %s is not kept: %s", path, error)
    return index


def _walked(path: Path) -> tuple[list[str], np.ndarray]:
    places: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                key, part = _part_of(member)
                if part is not None:
                    found = places.setdefault(key, np.full((len(PARTS), 2), -1, dtype=np.int64))
                    if found[part, 0] >= 0:
                        raise ValueError(f"the sample {key!r} in {path} has two members of the kind {PARTS[part]!r}; keep one")
                    found[part] = member.offset_data, member.size
            end = tar.offset  # of the first block of zeros
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no plain tar file, or it is cut short ({error}); write it anew, without compression") from error
    _check_end(path, end)
    _check_whole(path, places)
    return list(places), np.stack(list(places.values()))


def _part_of(member: tarfile.TarInfo) -> tuple[str, int | None]:
    folder, slash, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not member.isreg() or not stem:
        return "", None
    suffix = f".{suffix.lower()}"
    part = 0 if suffix in PICTURES.suffixes else {".txt": 1, ".cls": 2}.get(suffix)
    return f"{folder}{slash}{stem}", part


def _check_end(path: Path, end: int) -> None:
    """A tar ends with blocks of zeros: without them it was cut at a member's edge, and more after them is a second archive."""
    with open(path, "rb") as file:
        file.seek(end)
        mark = file.read(BLOCK)
        if len(mark) < BLOCK:
            raise ValueError(f"{path} is cut short: it has {end + len(mark)} bytes and no end mark; write it anew")
        if mark.strip(b"\0"):
            raise ValueError(f"{path} is damaged: at byte {end} there is neither a member nor the end mark; write it anew")
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise ValueError(f"{path} goes on after its end mark, as tar files joined by cat do; unpack them and write one anew")


def _check_whole(path: Path, places: dict[str, np.ndarray]) -> None:
    if not places:
        raise ValueError(
            f"there are no samples in {path}: pictures ({', '.join(PICTURES.suffixes)}) with captions (.txt) or classes (.cls)"
        )
    there = np.stack(list(places.values()))[:, :, 0] >= 0
    for part, name in enumerate(PARTS):
        lacking = np.flatnonzero(~there[:, part])
        if len(lacking) and (there[:, part].any() or part == 0):
            first = list(places)[lacking[0]]
            raise ValueError(
                f"{len(lacking)} of {len(places)} samples in {path} have no {name}, the first is {first!r}; complete or remove them"
            )


class ShardItems(PictureItems):
    """A source over the samples of indexed tar files.

    Args:
        shards: the indices.
        rows: ``(N, 2)`` shard and sample of each item.
        reader: makes the picture.
        **options: as in `diffx.data.Items`.
    """

    threaded = True

    def __init__(self, shards: Sequence[TarIndex], rows: np.ndarray, reader: PictureReader, **options: Any) -> None:
        super().__init__(reader, **options)
        self.shards, self.rows = shards, rows
        _, self.told, self.labelled = (shards[0].places[0, :, 0] >= 0).tolist()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Shard and sample."""
        shard, sample = self.rows[index].tolist()
        return f"{self.shards[shard].path}:{self.shards[shard].keys[sample]}"

    def item(self, index: int) -> dict[str, Any]:
        """Read picture, caption and class."""
        shard, sample = self.rows[index].tolist()
        read = self.shards[shard].read
        item = self.pictured(index, io.BytesIO(read(sample, 0)))
        if self.told:
            item["text"] = read(sample, 1).decode().strip()
        if self.labelled:
            item["label"] = int(read(sample, 2))
        return item

    def extent(self, index: int) -> Size:
        """Read the picture's bytes and decode their head."""
        shard, sample = self.rows[index].tolist()
        return size_of(io.BytesIO(self.shards[shard].read(sample, 0)))

    def extents(self, rows: Sequence[int]) -> list[Size | Exception]:
        """Measure the pictures of tar files that are new or have changed."""
        stamps = [self.shards[shard].stamp for shard in self.rows[list(rows), 0].tolist()]
        cache = self.shards[0].path.with_name(".diffx-sizes.npz")
        return remembered(cache, list(map(self.name, rows)), stamps, lambda new: super(ShardItems, self).extents([rows[i] for i in new]))


@recorded
class Shards(PictureModule):
    """Pictures in tar files in WebDataset's layout: the members ``001.jpg``, ``001.txt`` (caption) and ``001.cls`` (class) are one sample.

    Each tar is walked through once and gets a hidden index file beside it; then any sample is one read. So training goes through all
    samples in a random order, each once in an epoch, and resumes where it was, which streams of shards do not. An index is made anew when
    its tar has changed. Tars must not be compressed, and all must hold the same kinds of members.

    Args:
        shards: a tar file, a folder of them, a pattern such as ``data/*.tar``, or a list of files.
        batch_size: samples per rank and micro-batch.
        val: as ``shards``, for validation, or the fraction that a fixed permutation holds out; in [0, 1).
        classes: number of classes; needed where samples have one.
        options: see `PictureModule`. In buckets, what the pictures measure is remembered beside the first tar.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a tar is compressed, cut short or has incomplete samples, tars differ in what their samples hold, classes are not told.
    """

    def __init__(
        self, shards: str | Path | Sequence[str | Path], batch_size: int, *, val: str | Path | Sequence[str | Path] | float = 0.0,
        classes: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, **options)
        self.shards, self.held, self.told_classes = shards, val, classes

    def sources(self) -> tuple[ShardItems, ShardItems | None]:
        """Index the tar files and part the samples."""
        (train, rows), options = self._indexed(self.shards), {**self.reading, "classes": self.told_classes}
        if not isinstance(self.held, (int, float)):
            given = ShardItems(*self._indexed(self.held), self.readers[1], **options)
            return ShardItems(train, rows, self.readers[0], **options), given
        kept, held = (rows[part] for part in split(len(rows), self.held))
        val = ShardItems(train, held, self.readers[1], **options) if len(held) else None
        return ShardItems(train, kept, self.readers[0], **options), val

    def _indexed(self, shards: Any) -> tuple[list[TarIndex], np.ndarray]:
        indices = [index_tar(path) for path in _found(shards)]
        kinds = [tuple((index.places[0, :, 0] >= 0).tolist()) for index in indices]
        for index, kind in zip(indices, kinds, strict=True):
            if kind != kinds[0]:
                named = [[part for part, there in zip(PARTS, has, strict=True) if there] for has in (kinds[0], kind)]
                raise ValueError(f"samples in {indices[0].path} hold {named[0]}, in {index.path} {named[1]}; make them equal")
        if kinds[0][2] and self.told_classes is None:
            raise ValueError(f"samples in {indices[0].path} have a class (.cls); tell how many there are with classes=")
        lengths = np.concatenate([index.places[:, 1, 1] for index in indices])
        if empty := int((lengths == 0).sum()):
            log.warning("%d of %d captions in %s are empty", empty, len(lengths), shards)
        counts = [len(index.keys) for index in indices]
        return indices, np.stack([np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])], 1)


def _found(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for entry in map(Path, [shards] if isinstance(shards, (str, Path)) else shards):
        named = [entry] if entry.is_file() else map(Path, glob(str(entry / "*.tar" if entry.is_dir() else entry)))
        before = len(found)
        found += sorted(named)
        if len(found) == before:
            raise FileNotFoundError(f"no tar files in {entry}; give a file, a folder, a pattern such as data/*.tar, or a list of those")
    return found
