"""`Arrays`: data that fits into memory, read by batched indexing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..recipes import recorded
from .module import DataModule
from .order import split as split_rows
from .source import Batch

__all__ = ["Arrays", "Memory", "described", "named_arrays"]


@contextmanager
def named_arrays(arrays: str | Path | Mapping[str, np.ndarray]) -> Iterator[Callable[[str], np.ndarray]]:
    """A function from the key of an array to it, of an ``.npz`` file that is open inside the block, or of a mapping.

    Raises:
        FileNotFoundError: no such file.
        ValueError: (by the function) no such key; names those that exist.
    """
    if isinstance(arrays, Mapping):
        yield partial(_array, arrays, described(arrays))
        return
    if not Path(arrays).is_file():
        raise FileNotFoundError(f"no file {arrays}; give the path of an .npz file")
    with np.load(arrays) as opened:
        yield partial(_array, opened, described(arrays))


def _array(arrays: Mapping[str, np.ndarray], where: str, key: str) -> np.ndarray:
    if key not in arrays:
        raise ValueError(f"no array {key!r} in {where}; it holds {sorted(arrays)}")
    return np.asarray(arrays[key])


def described(arrays: str | Path | Mapping[str, np.ndarray]) -> str:
    """What messages call the arrays."""
    return "the given arrays" if isinstance(arrays, Mapping) else str(arrays)


class Memory:
    """A source of tensors in memory; a batch is one indexing operation.

    Args:
        x: ``(N, C, *)`` uint8 or float32 in [-1, 1].
        label: ``(N,)`` int64, or None.
        text: N captions, or None.
        classes: labels lie in [0, classes); None takes the largest label.
        class_names: one name per class, or None.
        columns: name -> N texts, or a tensor of N rows, that batches have besides; of three and more axes they are pictures like ``x``.
        flip: mirror the last axis of pictures with probability 1/2, keyed by (seed, epoch, index).
        seed: key of the flips.

    Raises:
        ValueError: lengths differ, labels lie outside [0, classes), or names and classes disagree.
    """

    def __init__(
        self, x: Tensor, label: Tensor | None = None, text: Sequence[str] | None = None, *, classes: int | None = None,
        class_names: Sequence[str] | None = None, columns: Mapping[str, Tensor | Sequence[str]] | None = None, flip: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.columns = dict(columns or {})
        for name, values in (("labels", label), ("captions", text), *self.columns.items()):
            if values is not None and len(values) != len(x):
                raise ValueError(f"{len(x)} images, but {len(values)} {name}; each image needs one")
        if label is not None and len(label):
            classes = classes or (len(class_names) if class_names is not None else int(label.max()) + 1)
            if not 0 <= int(label.min()) <= int(label.max()) < classes:
                raise ValueError(
                    f"labels must lie in [0, {classes}), got {int(label.min())} to {int(label.max())}; set classes or fix the data set"
                )
        if class_names is not None and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class names for {classes} classes")
        self.x, self.label, self.text = x, label, text
        self.classes, self.class_names, self.flip, self.seed = classes, class_names, flip, seed
        self._flips: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        """Number of items."""
        return len(self.x)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Index the tensors; see `diffx.data.Source`."""
        rows = torch.from_numpy(indices)
        mirrored = self._mirrored(epoch)[indices] if self.flip else None
        batch: Batch = {"x": _taken(self.x, indices, mirrored), "index": rows}
        if self.label is not None:
            batch["label"] = self.label.index_select(0, rows)
        if self.text is not None:
            batch["text"] = [self.text[row] for row in indices.tolist()]
        for name, values in self.columns.items():
            batch[name] = _taken(values, indices, mirrored) if isinstance(values, Tensor) else [values[row] for row in indices.tolist()]
        return batch

    def part(self, rows: np.ndarray, flip: bool, seed: int) -> Memory:
        """The items at ``rows``, mirrored or not."""
        at = torch.from_numpy(rows)

        def of(values: Any) -> Any:
            if values is None or len(rows) == len(self):
                return values
            return values[at] if isinstance(values, Tensor) else [values[row] for row in rows]

        columns = {name: of(values) for name, values in self.columns.items()}
        return Memory(of(self.x), of(self.label), of(self.text), classes=self.classes, class_names=self.class_names, columns=columns,
                      flip=flip, seed=seed)  # fmt: skip

    def _mirrored(self, epoch: int) -> np.ndarray:
        if self._flips[0] != epoch:  # drawn for the whole epoch at once: still a function of (seed, epoch, index)
            self._flips = epoch, (torch.rand(len(self), generator=rng.generator(self.seed, "augment", epoch)) < 0.5).numpy()
        return self._flips[1]


def _taken(values: Tensor, indices: np.ndarray, mirrored: np.ndarray | None) -> Tensor:
    taken = values.numpy().take(indices, axis=0)  # numpy copies whole items and wakes no thread pool: 2 to 30 times faster than x[rows]
    if mirrored is not None and taken.ndim > 2:
        taken[mirrored] = taken[mirrored][..., ::-1]
    return torch.from_numpy(taken)


@recorded
class Arrays(DataModule):
    """Arrays in memory: an ``.npz`` file, or a mapping from names to arrays.

    Args:
        arrays: path of the file, or the mapping.
        batch_size: samples per rank and micro-batch.
        images: key of uint8 pictures ``(N, H, W)`` or ``(N, H, W, C)``, of uint8 clips ``(N, T, H, W)`` (T and W above 4) or
            ``(N, T, H, W, C)``, or of float data ``(N, C, *)`` in [-1, 1].
        labels: key of integers ``(N,)``; None = no labels.
        captions: key of strings ``(N,)``; None = no texts.
        split: key of integers ``(N,)``, 0 = training, 1 = validation, others are left out; None = see ``val``.
        val: without ``split``, the fraction that a fixed permutation (the same for all seeds) holds out; in [0, 1).
        classes: number of classes; None = names, or largest label, decide.
        class_names: the names, or the key of an array with them.
        columns: name in batches -> key of an array of strings, of numbers ``(N, D)``, or of pictures like ``images``. So pairs for
            `diffx.techniques.InstructPix2Pix` are given: ``{source: before, instruction: instructions}``.
        flip: mirror training pictures, those of ``columns`` alike, left-right with probability 1/2.
        num_workers, seed: as in `DataModule`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key is missing (named, with those that exist), a shape or type is not as above, labels are out of range.
    """

    def __init__(
        self, arrays: str | Path | Mapping[str, np.ndarray], batch_size: int, *, images: str = "images", labels: str | None = None,
        captions: str | None = None, split: str | None = None, val: float = 0.0, classes: int | None = None,
        class_names: str | Sequence[str] | None = None, columns: Mapping[str, str] | None = None, flip: bool = False,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        self.arrays, self.split, self.held, self.flip = arrays, split, val, flip
        self.images, self.labels, self.captions = images, labels, captions
        self.given_classes, self.given_names, self.columns = classes, class_names, dict(columns or {})

    def sources(self) -> tuple[Memory, Memory | None]:
        """Read the arrays and part them."""
        with named_arrays(self.arrays) as get:
            return self._parted(get)

    def _parted(self, get: Callable[[str], np.ndarray]) -> tuple[Memory, Memory | None]:
        labels, captions, where = (None if key is None else get(key) for key in (self.labels, self.captions, self.split))
        names = get(self.given_names).tolist() if isinstance(self.given_names, str) else self.given_names
        if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iub"):
            raise ValueError(f"labels must be integers (N,), got {labels.dtype} {labels.shape} in {self._where}")
        whole = Memory(
            self._images(get(self.images)), None if labels is None else torch.from_numpy(labels.astype(np.int64)),
            None if captions is None else [str(text) for text in captions.tolist()], classes=self.given_classes, class_names=names,
            columns={name: self._column(get(key)) for name, key in self.columns.items()},
        )  # fmt: skip
        if where is not None and where.shape != (len(whole),):
            raise ValueError(f"split must hold one integer per image: expected ({len(whole)},), got {where.shape} in {self._where}")
        train, val = split_rows(len(whole), self.held) if where is None else (np.flatnonzero(where == 0), np.flatnonzero(where == 1))
        return whole.part(train, self.flip, self.seed), whole.part(val, False, self.seed) if len(val) else None

    def _column(self, values: np.ndarray) -> Tensor | list[str]:
        if values.dtype.kind in "US":
            return [str(text) for text in values.tolist()]
        if values.ndim > 2:
            return self._images(values)
        return torch.from_numpy(values.astype(np.float32) if values.dtype.kind == "f" else values)

    def _images(self, images: np.ndarray) -> Tensor:
        if images.dtype == np.uint8 and images.ndim == 3:
            return torch.from_numpy(images)[:, None]
        if images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 2, 3, 4):
            return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] > 4:  # fewer are channels that stand at the wrong place
            return torch.from_numpy(images)[:, None]
        if images.dtype == np.uint8 and images.ndim == 5 and images.shape[-1] in (1, 2, 3, 4):
            return torch.from_numpy(images).permute(0, 4, 1, 2, 3).contiguous()
        if images.dtype.kind == "f" and images.ndim >= 3:
            return torch.from_numpy(images.astype(np.float32, copy=False))
        raise ValueError(
            f"images must be uint8 (N, H, W) or (N, H, W, C) with C <= 4, clips uint8 (N, T > 4, H, W) or (N, T, H, W, C), or float "
            f"(N, C, *) in [-1, 1]; got {images.dtype} {images.shape} in {self._where}"
        )

    @property
    def _where(self) -> str:
        return described(self.arrays)
