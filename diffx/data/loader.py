"""Loaders: requests in, batches out. The same code serves no worker and many, so both give the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .order import Request
from .source import Batch, Source, assemble

__all__ = ["Loader", "SizedLoader"]


class Loader:
    """Batches of a source, as often as it is iterated.

    It is no torch DataLoader, so Lightning leaves its order alone (into one it would put a sampler that pads and forgets its position).
    Without workers a batch is one ``fetch``; with workers a torch DataLoader sends whole requests to them.

    Args:
        source: what is read.
        requests: makes the iterator of requests; called at each first ``next``, always in the main process.
        workers: number of worker processes; they live as long as the loader.
        pin: let the workers' batches arrive in pinned memory.
    """

    def __init__(self, source: Source, requests: Callable[[], Iterable[Request]], workers: int = 0, pin: bool = False) -> None:
        self.source, self.requests = source, requests
        self._pool = None if workers == 0 else DataLoader(
            _Requested(source), sampler=_Again(requests), batch_size=None, collate_fn=_as_is, num_workers=workers, persistent_workers=True,
            pin_memory=pin, generator=torch.Generator(),  # a generator of its own: the default one must not move when workers start
        )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        """Start anew, from where ``requests`` says; nothing is read before the first ``next``."""
        if self._pool is not None:
            try:
                yield from self._pool
            except Exception:
                self.close()
                raise
        else:
            for request in self.requests():
                yield assemble(self.source, request)

    def close(self) -> None:
        """Stop the workers; iterating starts new ones.

        Left to the garbage collector, their queues may die first, and the main process waits five seconds for each worker.
        """
        if self._pool is not None and self._pool._iterator is not None:
            running: Any = self._pool._iterator
            running._shutdown_workers()  # as Lightning does with a torch DataLoader
            self._pool._iterator = None


class SizedLoader(Loader):
    """A `Loader` whose requests are a list.

    Args:
        source, workers, pin: as in `Loader`.
        requests: the batches, in order.
    """

    def __init__(self, source: Source, requests: list[Request], workers: int = 0, pin: bool = False) -> None:
        super().__init__(source, requests.__iter__, workers, pin)
        self._length = len(requests)

    def __len__(self) -> int:
        """Number of batches."""
        return self._length


class _Requested(Dataset):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, request: Request) -> Batch:
        return assemble(self.source, request)


class _Again:
    def __init__(self, requests: Callable[[], Iterable[Request]]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests())


def _as_is(batch: Any) -> Any:
    return batch
