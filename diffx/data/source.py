"""Sources: what a DataModule reads from. The whole contract is a length and a batched ``fetch``; `Items` makes it from single items."""

from __future__ import annotations

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from .order import Request

__all__ = ["Batch", "Items", "SettingError", "Source", "assemble", "stack"]

Batch: TypeAlias = dict[str, Any]
"""``{"x": (B, C, *), "label": (B,) int64, "text": list[str], "index": (B,) int64, ...}``; only "x" and "index" are always there."""

log = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """Map-style data that is read in batches."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Read the items at ``indices`` ``(B,)`` int64 as one batch.

        The answer may depend on nothing but the arguments: augmentation is keyed by (seed, epoch, index). Pictures are uint8 in [0, 255]
        (made to [-1, 1] on the device) or floats in [-1, 1].
        """
        ...


class SettingError(ValueError):
    """The settings do not fit the data; never mistaken for an unreadable item, hence never skipped."""


class Items(ABC):
    """A source that reads item by item and stacks.

    While an item is read, the default generators of torch (CPU), numpy and Python are seeded by (seed, "augment", epoch, index), so that
    any random transform gives the same result in the main process, in each worker and after a resume.

    Args:
        seed: key of the augmentation.
        classes: labels must lie in [0, classes); None = not checked.
        on_error: "raise" stops at an unreadable item; "skip" takes the next readable index instead, always the same one.
        max_bad: with "skip", the run stops when more than this fraction of the items is unreadable.

    Attributes:
        bad_list: file that lists the unreadable items of all processes and runs in a folder; None = only counted in this process.
    """

    def __init__(
        self, *, seed: int = 0, classes: int | None = None, on_error: Literal["raise", "skip"] = "raise", max_bad: float = 0.01
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.seed, self.classes, self.on_error, self.max_bad = seed, classes, on_error, max_bad
        self.bad_list: Path | None = None
        self._bad: set[str] = set()

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def item(self, index: int) -> Mapping[str, Any]:
        """Read one item: "x" ``(C, *)``, and "label" (int), "text" (str) or further names as the data has them.

        Raises:
            Exception: any error means that the item is unreadable, except `SettingError`.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the item in messages: its path, or its place in the data set."""

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Read and stack the items at ``indices``; see `Source.fetch`.

        Raises:
            ValueError: an item is unreadable ("raise"), too many are ("skip"), a label is out of range, or the shapes differ.
        """
        with _defaults_kept():
            items = [self._read(index, epoch) for index in indices.tolist()]
        shapes = {tuple(item["x"].shape): item["index"] for item in items}
        if len(shapes) > 1:
            (one, i), (other, j), *_ = shapes.items()
            raise SettingError(f"images differ in size: {one} in {self.name(i)}, {other} in {self.name(j)}; set size= to make them equal")
        return stack(items)

    def _read(self, index: int, epoch: int) -> Batch:
        for at in self.substitutes(index):
            _seed_defaults(rng.key(self.seed, "augment", epoch, at))
            try:
                item = self.item(at)
            except (SettingError, MemoryError):
                raise
            except Exception as error:
                self._unreadable(at, error)
                continue
            label = item.get("label", 0)
            if self.classes is not None and not 0 <= label < self.classes:
                raise SettingError(
                    f"labels must lie in [0, {self.classes}), got {label} in {self.name(at)}; set classes={label + 1} or fix the data set"
                )
            return {**item, "index": at}
        raise ValueError(f"none of the {len(self)} items is readable, the first one tried is {self.name(index)}")

    def substitutes(self, index: int) -> Iterator[int]:
        """The item itself, then those that stand in for it, in order, when it cannot be read."""
        return chain(range(index, len(self)), range(index))

    def _unreadable(self, index: int, error: Exception) -> None:
        name, reason = self.name(index), " ".join(f"{type(error).__name__}: {error}".split())
        if self.on_error == "raise":
            raise ValueError(f"{name} cannot be read ({reason}); repair or remove it, or set on_error='skip'") from error
        if name in self._bad:
            return
        log.warning("skipping %s (%s)", name, reason)
        self._bad.add(name)
        if self.bad_list is not None:
            self._bad |= _list_bad(self.bad_list, name, reason)
        if len(self._bad) > self.max_bad * len(self):
            where = f", listed in {self.bad_list}" if self.bad_list is not None else ""
            raise ValueError(
                f"{len(self._bad)} of {len(self)} items cannot be read{where}; the limit is max_bad={self.max_bad}; "
                f"the latest is {name} ({reason})"
            ) from error


def stack(items: list[Batch]) -> Batch:
    """Make a batch of single items: numbers become int64 or float32 ``(B,)``, tensors are stacked, all else stays a list."""
    batch: Batch = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, (bool, int, float, np.number)):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


def assemble(source: Source, request: Request) -> Batch:
    """Read one batch; "index" is the position in the source."""
    parts = []
    for epoch, indices in request:
        part = source.fetch(indices, epoch)
        part.setdefault("index", torch.from_numpy(indices))
        parts.append(part)
    return parts[0] if len(parts) == 1 else {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(values: list[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return [entry for value in values for entry in value]
    if values[0].ndim == 3:  # (B, K, D): K slots per item, as many as each part needed; empty ones are 0
        slots = max(value.shape[1] for value in values)
        values = [F.pad(value, (0, 0, 0, slots - value.shape[1])) for value in values]
    return torch.cat(values)


def _list_bad(path: Path, name: str, reason: str) -> set[str]:
    """Append to the list and return all names in it: the file is what ranks, workers and resumed runs have in common."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {line.split("\t")[0] for line in path.read_text().splitlines()} if path.exists() else set()
    if name not in known:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{name}\t{reason}\n".encode())  # one write in append mode: lines of several processes do not mix
        finally:
            os.close(file)
    return known | {name}


def _seed_defaults(key: int) -> None:
    torch.default_generator.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)


@contextmanager
def _defaults_kept() -> Iterator[None]:
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
