"""Aspect-ratio buckets: pictures of like aspect share a batch, so that none is squeezed and little is cut away.

A *bucket* is a size (height, width) that pictures are cut to. `grid_buckets` and `equal_area_buckets` make lists of sizes, `Buckets` sorts
pictures into them; `diffx.data.BucketOrder` says which pictures make up which batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ..recipes import recorded

__all__ = ["Buckets", "Leftover", "Placed", "Size", "equal_area_buckets", "grid_buckets"]

log = logging.getLogger(__name__)

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
Leftover: TypeAlias = Literal["pad", "drop", "merge", "square"]
Beyond: TypeAlias = Literal["drop", "nearest", "error"]
Small: TypeAlias = Literal["enlarge", "drop", "smaller"]
RATIOS = (1, 4 / 5, 5 / 4, 2 / 3, 3 / 2, 3 / 4, 4 / 3, 9 / 16, 16 / 9, 1 / 2, 2)


def grid_buckets(
    *, step: int = 64, shortest: int = 256, longest: int = 1024, area: int = 512 * 768, base: Sequence[int] = (512, 512)
) -> list[Size]:
    """For each side on a grid the longest other side within an area, both ways up, and a base size (the scheme of NovelAI).

    Args:
        step: all sides are multiples of it: the total stride of the network, times that of the codec.
        shortest: side, in pixels.
        longest: side, in pixels.
        area: largest number of pixels.
        base: (height, width) of one more size.

    Raises:
        ValueError: sides that ``step`` does not divide, or no size within the limits.
    """
    if step < 1 or any(side % step for side in (shortest, longest, *base)) or shortest < step:
        raise ValueError(f"step must divide shortest, longest and base, got {step} for {shortest}, {longest} and {tuple(base)}")
    pairs = [(side, min(longest, area // side // step * step)) for side in range(shortest, longest + 1, step)]
    kept = [pair for pair in pairs if pair[1] >= shortest]
    if not kept:
        raise ValueError(f"no size with sides from {shortest} to {longest} has at most {area} pixels")
    return sorted({(base[0], base[1]), *kept, *((b, a) for a, b in kept)})


def equal_area_buckets(area: int = 1024**2, *, step: int = 64, ratios: Sequence[float] = RATIOS) -> list[Size]:
    """One size of about the same area for each aspect ratio, as SDXL trains (Podell et al. 2023, arXiv:2307.01952, appendix I).

    Networks then see about the same number of tokens at each size, so one noise schedule and one batch size fit all. Sizes further than a
    quarter from the area, which a coarse ``step`` causes, are warned about.

    Args:
        area: pixels of a size.
        step: all sides are rounded to multiples of it: the total stride of the network, times that of the codec.
        ratios: width / height.

    Raises:
        ValueError: a side would be shorter than ``step``.
    """
    if step < 1 or area < 1 or not ratios or min(ratios) <= 0:
        raise ValueError(f"step, area and ratios must be positive, got {step}, {area} and {tuple(ratios)}")
    sides = [(sqrt(area / ratio), sqrt(area * ratio)) for ratio in ratios]
    sizes = list(dict.fromkeys((round(height / step) * step, round(width / step) * step) for height, width in sides))
    if thin := [size for size in sizes if min(size) < step]:
        raise ValueError(
            f"{area} pixels are too few for sides that are multiples of {step}: got {thin}; lower step or leave these ratios out"
        )
    if off := [size for size in sizes if not 0.75 <= size[0] * size[1] / area <= 1.25]:
        log.warning("sizes with an area further than a quarter from %d pixels, because sides are multiples of %d: %s", area, step, off)
    return sizes


class Placed(NamedTuple):
    """Where pictures belong.

    Args:
        bucket: ``(N,)`` int64 number of each picture's bucket, -1 for those left out.
        ratio: ``(N,)`` logarithm of each picture's width / height.
    """

    bucket: np.ndarray
    ratio: np.ndarray


@recorded
class Buckets(Sequence):
    """Sizes, and how pictures and batches are fitted to them.

    A picture goes where the logarithm of its aspect ratio is nearest, which treats upright and lying pictures alike (the difference of the
    ratios themselves does not); of equally near sizes to the largest one. It is scaled until it covers the size, and the rest is cut away:
    the share ``1 - exp(-e)`` for an error e of the logarithm.

    Args:
        sizes: (height, width) of each bucket in pixels.
        max_log_error: largest error of the logarithm of the aspect ratio; the default cuts away up to 22 %.
        beyond: what becomes of a picture beyond it: "drop" leaves it out, "nearest" cuts it all the same, "error" stops.
        small: what becomes of a picture with fewer pixels than its size: "enlarge", "drop" it, or take the nearest "smaller" size that it
            covers, where there is one.
        leftover: what becomes of the pictures of a bucket that fill no global batch: "pad" repeats others of the bucket, "drop" leaves
            them out in this epoch (each epoch others), "merge" moves those nearest to the neighbouring bucket there, for good, "square"
            moves them to the size nearest to a square; what then is left over is padded.
        pixels_per_batch: budget of a micro-batch: a bucket's batch size is this over its area, rounded down, instead of the data module's
            ``batch_size``; keeps memory flat over buckets of unequal area.
        allow_reshard: let a run resume with another global batch: batches are then cut anew, so the epoch in progress repeats some
            pictures and misses others.

    Raises:
        ValueError: no sizes, a size twice, a side below 1, an unknown policy, a budget smaller than a size.
    """

    def __init__(
        self, sizes: Sequence[Sequence[int]], *, max_log_error: float = 0.25, beyond: Beyond = "drop", small: Small = "enlarge",
        leftover: Leftover = "pad", pixels_per_batch: int | None = None, allow_reshard: bool = False,
    ) -> None:  # fmt: skip
        self.sizes: tuple[Size, ...] = tuple((height, width) for height, width in sizes)
        if not self.sizes or len(set(self.sizes)) < len(self.sizes) or min(map(min, self.sizes)) < 1:
            raise ValueError(f"buckets need sizes (height, width), each once, of at least one pixel; got {self.sizes}")
        for name, value, known in (("beyond", beyond, Beyond), ("small", small, Small), ("leftover", leftover, Leftover)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {value!r}")
        if pixels_per_batch is not None and (large := max(height * width for height, width in self.sizes)) > pixels_per_batch:
            raise ValueError(f"pixels_per_batch must hold one picture of the largest size, {large} pixels; got {pixels_per_batch}")
        self.max_log_error, self.beyond, self.small, self.leftover = max_log_error, beyond, small, leftover
        self.pixels_per_batch, self.allow_reshard = pixels_per_batch, allow_reshard
        self.array = np.array(self.sizes, dtype=np.int64)
        self.ratios = _log_ratio(self.array)
        self._ranked = np.lexsort((np.arange(len(self.sizes)), -self.array.prod(1)))  # by area, so that the first of equals is the largest

    def __len__(self) -> int:
        """Number of sizes."""
        return len(self.sizes)

    def __getitem__(self, index):
        """The size (height, width) of a bucket."""
        return self.sizes[index]

    @property
    def square(self) -> int:
        """Number of the bucket nearest to a square."""
        return int(self._nearest(np.zeros(1))[0])

    def batch_sizes(self, batch_size: int) -> list[int]:
        """Pictures per rank and micro-batch for each bucket."""
        return [self.pixels_per_batch // (h * w) if self.pixels_per_batch else batch_size for h, w in self.sizes]

    def place(self, sizes: np.ndarray, name: Callable[[int], str] = str) -> Placed:
        """Sort pictures into buckets and log how many are left out or enlarged.

        Args:
            sizes: ``(N, 2)`` height and width of each picture.
            name: what to call picture i in messages.

        Raises:
            ValueError: a side of zero, or, where it is an error, an aspect beyond the limit.
        """
        if len(empty := np.flatnonzero(sizes.min(1, initial=1) < 1)):
            raise ValueError(f"{name(int(empty[0]))} has a side of zero pixels: {sizes[empty[0]].tolist()}; remove it")
        ratio = _log_ratio(sizes)
        bucket = self._nearest(ratio)
        small = (sizes < self.array[bucket]).any(1)
        if self.small == "smaller" and small.any():
            fits = (sizes[small][:, None] >= self.array).all(2)
            bucket[small] = np.where(fits.any(1), self._nearest(ratio[small], fits), bucket[small])
            small = (sizes < self.array[bucket]).any(1)
        beyond = np.abs(ratio - self.ratios[bucket]) > self.max_log_error
        if self.beyond == "error" and beyond.any():
            worst = int(np.flatnonzero(beyond)[0])
            raise ValueError(f"{int(beyond.sum())} pictures fit no bucket within max_log_error={self.max_log_error}, the first is "
                             f"{name(worst)}, {sizes[worst].tolist()}; add sizes, or set beyond='drop' or 'nearest'")  # fmt: skip
        out = (beyond & (self.beyond == "drop")) | (small & (self.small == "drop"))
        for what, flags in (("left out: their aspect fits no bucket", out & beyond), ("left out: they are too small", out & ~beyond),
                            ("enlarged to their bucket", small & ~out)):  # fmt: skip
            if flags.any():
                log.warning("%d of %d pictures are %s; the first is %s", flags.sum(), len(sizes), what, name(int(np.flatnonzero(flags)[0])))
        bucket[out] = -1
        return Placed(bucket, ratio)

    def merged(self, placed: Placed, global_batch: Sequence[int]) -> np.ndarray:
        """Move what fills no global batch, from the emptiest bucket to the fullest; the last one keeps what it has.

        Args:
            placed: where pictures belong.
            global_batch: pictures of a global batch, by bucket.

        Returns:
            ``(N,)`` the bucket of each picture after "merge" or "square".
        """
        bucket = placed.bucket.copy()
        counts = np.bincount(bucket[bucket >= 0], minlength=len(self))
        left = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (counts[number], number))
        if self.leftover == "square":
            left = [number for number in left if number != self.square] + [self.square]
        while len(left) > 1:
            number = left.pop(0)
            ids = np.flatnonzero(bucket == number)
            near = min(left, key=lambda other: abs(self.ratios[other] - self.ratios[number]))
            target = self.square if self.leftover == "square" else near
            nearest = np.argsort(np.abs(placed.ratio[ids] - self.ratios[target]), kind="stable")
            bucket[ids[nearest[: len(ids) % global_batch[number]]]] = target
        return bucket

    def _nearest(self, ratio: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
        error = np.abs(ratio[:, None] - self.ratios[self._ranked]).round(9)  # rounded, so that equals are equal
        if allowed is not None:
            error = np.where(allowed[:, self._ranked], error, np.inf)
        return self._ranked[error.argmin(1)]


def _log_ratio(sizes: np.ndarray) -> np.ndarray:
    return np.log(sizes[:, 1]) - np.log(sizes[:, 0])  # a difference, so that transposing changes only the sign
