"""Sources and DataModules of pictures, of one size or in aspect-ratio buckets."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import files
from .buckets import Buckets, Placed, Size
from .kept import KeptPictures
from .module import DataModule
from .order import BucketOrder, Request
from .pictures import PictureReader, size_crop
from .source import Batch, Items, SettingError, Source

__all__ = ["PictureItems", "PictureModule", "remembered"]

log = logging.getLogger(__name__)


class PictureItems(Items):
    """A source of pictures, of one size or in aspect-ratio buckets.

    In buckets, an item has besides "x" its "frame", the six integers of `size_crop`, and batches have "size_crop" ``(B, 1536)`` too. A
    picture that cannot be read gives way to the next one of its bucket.

    Args:
        reader: makes the tensors.
        **options: as in `diffx.data.Items`.

    Attributes:
        sizes: ``(N, 2)`` height and width to give each picture, 0 for those left out; None = the reader's size for all.
        kept: where pictures of one size are kept once they have been read; None = they are read each time.
        threaded: (of the class) whether `extent` may be called from several threads.
    """

    threaded = False

    def __init__(self, reader: PictureReader, **options: Any) -> None:
        super().__init__(**options)
        self.reader = reader
        self.sizes: np.ndarray | None = None
        self.kept: KeptPictures | None = None

    @abstractmethod
    def extent(self, index: int) -> Size:
        """Height and width of a picture as it is, in pixels; any error means that it is unreadable."""

    def extents(self, rows: Sequence[int]) -> list[Size | Exception]:
        """The `extent` of each of these pictures, or the error."""
        if not self.threaded:
            return [self._tried(row) for row in rows]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._tried, rows))

    def _tried(self, index: int) -> Size | Exception:
        try:
            return self.extent(index)
        except (SettingError, MemoryError):
            raise
        except Exception as error:
            return error

    def pictured(self, index: int, picture: Any) -> dict[str, Any]:
        """What an item has of its picture: "x" and, in buckets, "frame".

        Args:
            index: of the item.
            picture: a path, an open file, or an object as in `PictureReader`.
        """
        if self.sizes is not None:
            if not self.sizes[index].any():
                raise SettingError(f"{self.name(index)} was left out of the buckets")
            x, frame = self.reader.framed(picture, tuple(self.sizes[index].tolist()))
            return {"x": x, "frame": frame}
        still = None if self.kept is None else self.kept.get(index)
        if still is None:
            still = self.reader.still(picture)
            if self.kept is not None:
                self.kept.put(index, still)
        return {"x": self.reader.turned(still)}

    def place(self, buckets: Buckets) -> Placed:
        """Sort the pictures into buckets; those that cannot be read are left out, or stop as ``on_error`` says."""
        extents = self.extents(range(len(self)))
        for index, found in enumerate(extents):
            if isinstance(found, Exception):
                self._unreadable(index, found)
        good = np.array([not isinstance(found, Exception) for found in extents])
        rows = np.flatnonzero(good)
        known = buckets.place(np.array([extents[row] for row in rows]).reshape(-1, 2), lambda row: self.name(int(rows[row])))
        placed = Placed(np.full(len(extents), -1, dtype=np.int64), np.zeros(len(extents)))
        placed.bucket[rows], placed.ratio[rows] = known
        self.assign(buckets, placed.bucket)
        return placed

    def assign(self, buckets: Buckets, bucket: np.ndarray) -> None:
        """Give each picture the size of its bucket ``(N,)``, and none to those in bucket -1."""
        self.sizes = np.where(bucket[:, None] < 0, 0, buckets.array[bucket])

    def substitutes(self, index: int) -> Iterator[int]:
        """As in `Items`, within the bucket."""
        near = super().substitutes(index)
        return near if self.sizes is None else (at for at in near if (self.sizes[at] == self.sizes[index]).all())

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Read and stack the pictures; add "size_crop" in buckets.

        Raises:
            ValueError: pictures of several buckets, and as in `Items`.
        """
        if self.sizes is not None and (self.sizes[indices] != self.sizes[indices[:1]]).any():
            raise SettingError("pictures of several buckets make no batch, and what reads data without its order (evaluate, encode) "
                               "would mix them; give the data one size instead of buckets")  # fmt: skip
        batch = super().fetch(indices, epoch)
        return {**batch, "size_crop": size_crop(batch["frame"])} if "frame" in batch else batch


class PictureModule(DataModule):
    """A DataModule over `PictureItems`.

    With ``buckets``, each optimizer step reads pictures of one size, on all ranks and in all its micro-batches (see
    `diffx.data.BucketOrder`), and a checkpoint counts steps of that order. Validation reads each picture once, bucket by bucket, beginning
    with the one nearest to a square; where a bucket's last pictures do not go round, the ranks without one repeat one.

    Args:
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels; the largest centred box of that aspect is resampled with an antialiased
            bicubic filter. None = as they are, all alike.
        buckets: sizes of aspect-ratio buckets instead of one ``size``, or `Buckets` where the policies differ from the defaults. Training
            pictures are then cut at a random place.
        channels: 3 = RGB, 1 = grey; transparency is laid over white.
        flip: mirror training pictures left-right with probability 1/2.
        draft: let the decoder of JPEG files reduce while it decodes: faster, slightly different pixels.
        on_error: "raise" stops at an unreadable picture; "skip" takes the next one and lists it in ``bad_files.txt`` of the run folder.
        max_bad: with "skip", the fraction of unreadable pictures that stops the run.
        num_workers, seed: as in `DataModule`.

    Attributes:
        buckets: the `Buckets`; empty without.
        readers: of training and of validation pictures.
        reading: options of `Items`.

    Raises:
        ValueError: both ``size`` and ``buckets``; a picture that cannot be read, or too many; a checkpoint whose global batches were cut
            differently.
    """

    def __init__(
        self, batch_size: int, *, size: int | Sequence[int] | None = None, buckets: Buckets | Sequence[Size] | None = None,
        channels: int = 3, flip: bool = False, draft: bool = False, on_error: Literal["raise", "skip"] = "raise", max_bad: float = 0.01,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        if size is not None and buckets is not None:
            raise ValueError(f"give size or buckets, not both; got size={size} and {len(buckets)} buckets")
        self.buckets: Buckets | tuple[()] = () if buckets is None else buckets if isinstance(buckets, Buckets) else Buckets(buckets)
        self.readers = PictureReader(size, channels, flip, draft, scatter=True), PictureReader(size, channels, False, draft)
        self.reading: dict[str, Any] = {"seed": seed, "on_error": on_error, "max_bad": max_bad}

    def prepare_data(self) -> None:
        """Look at the sizes of all pictures, in one process per node; the others then find them remembered."""
        if self.buckets:
            _ = self._opened

    @cached_property
    def _opened(self) -> tuple[Source, Source | None]:
        opened = self.sources()
        self._placed = [self._place(source) for source in opened] if self.buckets else []
        return opened

    def _place(self, source: Source | None) -> Placed | None:
        assert isinstance(self.buckets, Buckets)
        if source is not None and not isinstance(source, PictureItems):
            raise ValueError(f"{type(source).__name__} cannot say how large its pictures are; buckets need a source of PictureItems")
        return None if source is None else source.place(self.buckets)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one "x", ``(C, H, W)``; in buckets, with the size nearest to a square."""
        return (self.readers[0].channels, *self.buckets[self.buckets.square]) if isinstance(self.buckets, Buckets) else super().shape

    @property
    def order(self) -> BucketOrder:
        """The order of the training batches, for the current Trainer."""
        assert isinstance(self.buckets, Buckets)
        slices = self._rank[1] * (self.trainer.accumulate_grad_batches if self.trainer else 1)
        if self._order is None or self._order.slices != slices:
            source, placed = self.train, self._placed[0]
            assert isinstance(source, PictureItems) and placed is not None
            self._order = BucketOrder(self.buckets, placed, self.batch_size, slices, self.seed)
            source.assign(self.buckets, self._order.bucket)
        return self._order

    _order: BucketOrder | None = None

    @property
    def samples(self) -> int:
        """Samples consumed by optimizer steps, over all ranks and resumed runs; never what was only read ahead."""
        return self.order.samples(self._consumed) if self.buckets else super().samples

    @property
    def epoch_steps(self) -> float:
        """Optimizer steps that one pass over the training data takes."""
        return len(self.order) if self.buckets else super().epoch_steps

    @property
    def _per_step(self) -> int:
        return 1 if self.buckets else super()._per_step  # in buckets, whole global batches are counted

    def _check_fit(self) -> None:
        if not self.buckets:
            super()._check_fit()
        else:
            self._check_stream()

    def _requests(self) -> Iterator[Request]:
        return self.order.stream(self._consumed, *self._rank) if self.buckets else super()._requests()

    def _held_requests(self, items: int) -> list[Request]:
        placed, buckets = self._placed[1] if self.buckets else None, self.buckets
        if not isinstance(buckets, Buckets) or placed is None:
            return super()._held_requests(items)
        (rank, world), requests = self._rank, list[Request]()
        for number in sorted(range(len(buckets)), key=lambda number: (number != buckets.square, number)):
            ids, size = np.flatnonzero(placed.bucket == number), buckets.batch_sizes(self.batch_size)[number] * world
            for start in range(0, len(ids), size):
                piece = ids[start : start + size]
                requests.append([(0, piece[rank::world] if rank < len(piece) else piece[:1])])
        return requests

    def state_dict(self) -> dict[str, Any]:
        """``{"samples": int}``, and in buckets the count of global batches and the fingerprint of their order."""
        state: dict[str, Any] = super().state_dict()
        return {**state, "batches": self._consumed, "fingerprint": self.order.fingerprint} if self.buckets else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after what the checkpoint had consumed; see Raises of the class."""
        if not isinstance(self.buckets, Buckets):
            super().load_state_dict(state_dict)
        elif state_dict.get("fingerprint") == self.order.fingerprint:
            self._loaded = int(state_dict["batches"])
        elif self.buckets.allow_reshard:
            self._loaded = self.order.step_at(int(state_dict["samples"]))
        else:
            raise ValueError(
                f"the checkpoint's batches were cut differently: {dict(state_dict)}, now fingerprint {self.order.fingerprint} with "
                f"{self.order.slices} slices of batch_size {self.batch_size}; keep pictures, buckets, seed and global batch, or set "
                "allow_reshard=True of the buckets to repeat some pictures and miss others in the epoch in progress"
            )


def remembered(
    cache: Path, names: Sequence[str], stamps: Sequence[tuple[int, int]], measure: Callable[[Sequence[int]], list[Size | Exception]]
) -> list[Size | Exception]:
    """The sizes of pictures from a file, and those that are new or have changed by measuring.

    Args:
        cache: the file; where it cannot be written, all is measured each time.
        names: of the pictures.
        stamps: time of the last change (ns) and length in bytes of the file that holds each picture.
        measure: rows -> sizes or errors; errors are not remembered.
    """
    known: dict[str, tuple[int, int, int, int]] = {}
    if cache.is_file():
        with np.load(cache) as stored:
            known = dict(zip(stored["names"].tobytes().decode().split("\0"), map(tuple, stored["rows"].tolist()), strict=True))
    found: list[Any] = [
        known[name][2:] if name in known and known[name][:2] == stamp else None for name, stamp in zip(names, stamps, strict=True)
    ]
    if new := [row for row, size in enumerate(found) if size is None]:
        for row, size in zip(new, measure(new), strict=True):
            found[row] = size
            if not isinstance(size, Exception):
                known[names[row]] = (*stamps[row], *size)
        try:
            listed = np.frombuffer("\0".join(known).encode(), dtype=np.uint8)
            files.write(cache, lambda file: np.savez(file, names=listed, rows=np.array(list(known.values()), dtype=np.int64)))
        except OSError as error:
            log.info("the sizes of the pictures are not remembered: %s", error)
    return found
