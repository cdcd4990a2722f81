"""The order of the data: pure functions from a position to an index, so that nothing has to be remembered but one number.

Training reads an endless stream. Position ``p`` belongs to epoch ``p // n`` and names the item ``permutation(epoch)[p % n]``; every epoch
holds each of the ``n`` items exactly once. Micro-batch ``m`` of rank ``r`` of ``W`` reads the ``B`` positions from ``(m W + r) B``.
Hence ``W`` ranks with one micro-batch read what one rank with ``W`` micro-batches reads, and a run continues anywhere, with any number of
workers and ranks, from the count of samples it has consumed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import count, pairwise
from math import ceil
from typing import TypeAlias

import numpy as np
import torch

from .. import rng
from .buckets import Buckets, Placed

__all__ = ["BucketOrder", "Order", "Request", "shard", "split", "stream"]

Request: TypeAlias = list[tuple[int, np.ndarray]]
"""What one batch is made of: pairs of an epoch and int64 indices; more than one pair only where a batch crosses into the next epoch."""


class Order:
    """Endless order of a data set.

    Args:
        n: number of items.
        seed: key of the permutations.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n, self.seed = n, seed
        self._recent: dict[int, np.ndarray] = {}

    def permutation(self, epoch: int) -> np.ndarray:
        """The items in the order of this epoch: ``(n,)`` int64."""
        if epoch not in self._recent:
            self._recent = {e: p for e, p in self._recent.items() if e == epoch - 1}  # a batch may span two epochs
            self._recent[epoch] = rng.permutation(self.n, self.seed, "order", epoch).numpy()
        return self._recent[epoch]

    def at(self, start: int, length: int) -> Request:
        """The items at the positions ``[start, start + length)`` of the stream."""
        request: Request = []
        while length > 0:
            epoch, offset = divmod(start, self.n)
            taken = min(length, self.n - offset)
            request.append((epoch, self.permutation(epoch)[offset : offset + taken].copy()))
            start, length = start + taken, length - taken
        return request


class BucketOrder:
    """Endless order of pictures in aspect-ratio buckets, also a pure function of (seed, epoch).

    The pictures of each bucket are permuted and cut into *global batches* for one optimizer step each: ranks x accumulated micro-batches x
    batch size, all of one bucket. Then the list of global batches is permuted, which draws the next bucket with a probability proportional
    to its remaining batches. So all ranks have the same shape and cost at every step, W ranks read what one rank with W micro-batches
    reads, and a run continues anywhere from a count of steps.

    Args:
        buckets: sizes and policies.
        placed: where each picture belongs.
        batch_size: pictures per slice, unless the buckets have a budget.
        slices: of a global batch: data-parallel ranks x accumulated micro-batches.
        seed: key of the permutations.

    Attributes:
        bucket: ``(N,)`` bucket of each picture, -1 for those left out: as placed, after merging.
        global_batch: pictures per optimizer step, by bucket.
        fingerprint: tells orders apart; equal ones continue each other.

    Raises:
        ValueError: no picture has a bucket, or with "drop" no bucket fills a global batch.
    """

    def __init__(self, buckets: Buckets, placed: Placed, batch_size: int, slices: int = 1, seed: int = 0) -> None:
        self.seed, self.slices, self.leftover = seed, slices, buckets.leftover
        self.batch_sizes = buckets.batch_sizes(batch_size)
        self.global_batch = [size * slices for size in self.batch_sizes]
        self.bucket = placed.bucket
        if buckets.leftover in ("merge", "square"):
            self.bucket = buckets.merged(placed, self.global_batch)
        filled = [np.flatnonzero(self.bucket == number) for number in range(len(buckets))]
        self._members = [(number, ids) for number, ids in enumerate(filled) if len(ids)]
        self._length = sum(self._batches(number, len(ids)) for number, ids in self._members)
        if not self._length:
            raise ValueError(
                f"no bucket has the {min(self.global_batch)} or more pictures of a global batch ({len(self.bucket)} pictures in all, "
                f"{int((self.bucket >= 0).sum())} of them in buckets); lower batch_size, or set leftover='pad'"
            )
        about = repr((buckets.sizes, self.global_batch, seed, self.leftover)).encode()
        self.fingerprint = hashlib.blake2b(about + self.bucket.astype("<i8").tobytes(), digest_size=8).hexdigest()
        self._epoch: tuple[int, list[np.ndarray], list[int], list[int]] = (-1, [], [], [])

    def __len__(self) -> int:
        """Global batches in an epoch, which are as many on every rank."""
        return self._length

    def at(self, step: int) -> tuple[int, int, np.ndarray]:
        """Epoch, bucket and pictures ``(G,)`` of the global batch number ``step``."""
        epoch, place = divmod(step, len(self))
        batches, numbers, _ = self._cut(epoch)
        return epoch, numbers[place], batches[place].copy()

    def samples(self, step: int) -> int:
        """Pictures in all global batches before number ``step``."""
        epoch, place = divmod(step, len(self))
        ends = self._cut(epoch)[2]
        return epoch * ends[-1] + (ends[place - 1] if place else 0)

    def step_at(self, samples: int) -> int:
        """The last global batch that begins after at most this many pictures."""
        epoch, rest = divmod(samples, self._cut(0)[2][-1])
        return epoch * len(self) + bisect_right(self._cut(epoch)[2], rest)

    def stream(self, start: int, rank: int = 0, world: int = 1) -> Iterator[Request]:
        """Walk the micro-batches of one rank without end, from the global batch number ``start``."""
        for step in count(start):
            epoch, _, ids = self.at(step)
            for piece in np.split(ids, self.slices)[rank::world]:
                yield [(epoch, piece)]

    def _batches(self, number: int, members: int) -> int:
        whole, rest = divmod(members, self.global_batch[number])
        return whole + (rest > 0 and self.leftover != "drop")

    def _cut(self, epoch: int) -> tuple[list[np.ndarray], list[int], list[int]]:
        """The epoch's global batches in order, their buckets, and the count of pictures up to the end of each."""
        if self._epoch[0] != epoch:
            draw = rng.generator(self.seed, "buckets", epoch)
            cut: list[tuple[int, np.ndarray]] = []
            for number, ids in self._members:
                batches, size = self._batches(number, len(ids)), self.global_batch[number]
                mixed = np.resize(ids[torch.randperm(len(ids), generator=draw).numpy()], batches * size)  # pads by beginning again
                cut += [(number, piece) for piece in mixed.reshape(batches, size)]
            mixed_up = [cut[place] for place in torch.randperm(len(cut), generator=draw).tolist()]
            ends = np.cumsum([len(piece) for _, piece in mixed_up]).tolist()
            self._epoch = epoch, [piece for _, piece in mixed_up], [number for number, _ in mixed_up], ends
        return self._epoch[1:]


def stream(order: Order, start: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Request]:
    """Walk the micro-batches of one rank without end.

    Args:
        order: the global order.
        start: samples that all ranks together have consumed.
        batch_size: samples per rank and micro-batch.
        rank: data-parallel rank.
        world: number of data-parallel ranks.
    """
    for micro_batch in count():
        yield order.at(start + (micro_batch * world + rank) * batch_size, batch_size)


def shard(n: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Request]:
    """Cut the items ``rank, rank + world, ...`` of ``n`` into batches: each item on one rank, once, in a fixed order.

    All ranks get the same number of batches, so that a sharded network meets no partner missing; the last ones may be shorter. Where items
    do not suffice for that, with a batch size of 1 or fewer items than ranks, the ranks with one item less see one once more.
    """
    items = np.arange(rank, n, world)
    batches = ceil(ceil(n / world) / batch_size)
    cuts = [min(i * batch_size, len(items)) for i in range(batches + 1)]
    if batches > 1 and cuts[-2] == cuts[-1]:
        cuts[-2] -= 1
    rows = [items[a:b] for a, b in pairwise(cuts) if b > a]
    if len(rows) < batches:
        rows.append(items[-1:] if len(items) else np.array([rank % n]))
    return [[(0, row)] for row in rows]


def split(n: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Part ``n`` items into training and validation rows, both sorted.

    The choice depends on ``n`` alone, never on a run's seed: another seed must not train on what the first one was judged by.

    Args:
        n: number of items.
        fraction: share that becomes validation, in [0, 1); at least one item if positive.

    Raises:
        ValueError: the fraction lies outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must lie in [0, 1), got {fraction}")
    held = max(1, round(n * fraction)) if fraction > 0 and n > 1 else 0
    rows = rng.permutation(n, "split").numpy()
    return np.sort(rows[held:]), np.sort(rows[:held])
