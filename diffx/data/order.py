"""The order of the data: pure functions from a position to an index, so that nothing has to be remembered but one number.

Training reads an endless stream. Position ``p`` belongs to epoch ``p // n`` and names the item ``permutation(epoch)[p % n]``; every epoch
holds each of the ``n`` items exactly once. Micro-batch ``m`` of rank ``r`` of ``W`` reads the ``B`` positions from ``(m W + r) B``.
Hence ``W`` ranks with one micro-batch read what one rank with ``W`` micro-batches reads, and a run continues anywhere, with any number of
workers and ranks, from the count of samples it has consumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise
from math import ceil
from typing import TypeAlias

import numpy as np

from .. import rng

__all__ = ["Order", "Request", "shard", "split", "stream"]

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

    All ranks get the same number of batches, so that a sharded network meets no partner missing; the last ones may be shorter. (With a
    batch size of 1 the ranks with one item less have one batch less.)
    """
    items = np.arange(rank, n, world)
    batches = ceil(ceil(n / world) / batch_size)
    cuts = [min(i * batch_size, len(items)) for i in range(batches + 1)]
    if batches > 1 and cuts[-2] == cuts[-1]:
        cuts[-2] -= 1
    return [[(0, items[a:b])] for a, b in pairwise(cuts) if b > a]


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
