"""`Mapped`: any data set with a length and an index, and `TorchvisionSet`: those that torchvision knows by name."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..recipes import recorded
from .buckets import Size
from .order import split
from .picture_module import PictureItems, PictureModule
from .pictures import PictureReader, size_of
from .source import SettingError

__all__ = ["Mapped", "MappedItems", "TorchvisionSet"]

Key = str | int | None


class MappedItems(PictureItems):
    """A source over a map-style data set.

    Args:
        dataset: has ``len`` and ``dataset[i]``, a mapping or a tuple.
        reader: makes the picture.
        image, label, text: key (of a mapping) or place (in a tuple) of each; None = not there. Of several texts one is drawn.
        rows: the items that belong to this source; None = all.
        class_names: one name per class, or None.
        **options: as in `diffx.data.Items`.
    """

    def __init__(
        self, dataset: Any, reader: PictureReader, *, image: str | int = "image", label: Key = "label", text: Key = None,
        rows: np.ndarray | None = None, class_names: Sequence[str] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(reader, **options)
        self.dataset, self.class_names = dataset, class_names
        self.image, self.label, self.text = image, label, text
        self.rows = np.arange(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        """Number of items."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """The item's place in the data set."""
        return f"item {self.rows[index]} of {type(self.dataset).__name__}"

    def item(self, index: int) -> dict[str, Any]:
        """Read picture, label and text."""
        sample = self.dataset[int(self.rows[index])]
        item = self.pictured(index, self._get(sample, self.image, "image"))
        if self.label is not None:
            item["label"] = self._integer(self._get(sample, self.label, "label"), index)
        if self.text is not None:
            text = self._get(sample, self.text, "text")
            item["text"] = text if isinstance(text, str) else text[int(torch.randint(len(text), ()))]
        return item

    def extent(self, index: int) -> Size:
        """Read the whole item: the data set offers no other way."""
        return size_of(self._get(self.dataset[int(self.rows[index])], self.image, "image"))

    def _get(self, sample: Any, key: str | int, role: str) -> Any:
        present = list(sample) if isinstance(sample, Mapping) else list(range(len(sample)))
        if key not in present:
            raise SettingError(f"samples of {type(self.dataset).__name__} have no {key!r}; set {role}= to one of {present}")
        return sample[key]

    def _integer(self, label: Any, index: int) -> int:
        try:
            return operator.index(label)
        except TypeError:
            raise SettingError(f"labels must be integers, got {label!r} in {self.name(index)}; make them numbers, or read none") from None


@recorded
class Mapped(PictureModule):
    """Any map-style data set object, a Hugging Face ``datasets.Dataset`` among them.

    Pictures may be Pillow pictures, uint8 arrays ``(H, W)`` or ``(H, W, C)``, uint8 tensors ``(C, H, W)`` (all resized as in
    `PictureReader`), or float data ``(C, H, W)`` in [-1, 1] (taken as it is). Random transforms of the data set itself are repeatable as
    long as they draw from the default generators of torch, numpy or Python.

    Args:
        dataset: has ``len`` and ``dataset[i]``, a mapping or a tuple.
        batch_size: samples per rank and micro-batch.
        val: another data set for validation, or the fraction that a fixed permutation holds out; in [0, 1).
        image, label, text: key (of a mapping) or place (in a tuple) of each; None = not there. Of several texts one is drawn.
        classes: number of classes; None = from the data set's ``features`` (Hugging Face) or ``classes`` (torchvision), else unknown.
        options: see `PictureModule`. In buckets, each start reads all pictures once.

    Raises:
        ValueError: a key is missing, an item is unreadable, a label is no integer or outside [0, classes), sizes differ.
    """

    def __init__(
        self, dataset: Any, batch_size: int, *, val: Any = 0.0, image: str | int = "image", label: Key = "label", text: Key = None,
        classes: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, **options)
        self.dataset, self.held = dataset, val
        self.columns = {"image": image, "label": label, "text": text, "classes": classes}

    def sources(self) -> tuple[MappedItems, MappedItems | None]:
        """Wrap the data set and part it."""
        if not hasattr(self.dataset, "__len__") or not hasattr(self.dataset, "__getitem__"):
            raise TypeError(f"the data set needs len() and an index, {type(self.dataset).__name__} has not both; is it a stream?")
        options = _with_classes(self.columns, self.dataset) | self.reading
        if not isinstance(self.held, (int, float)):
            return MappedItems(self.dataset, self.readers[0], **options), MappedItems(self.held, self.readers[1], **options)
        rows, held = split(len(self.dataset), self.held)
        val = MappedItems(self.dataset, self.readers[1], rows=held, **options) if len(held) else None
        return MappedItems(self.dataset, self.readers[0], rows=rows, **options), val


@recorded
class TorchvisionSet(PictureModule):
    """An image data set of torchvision, by name.

    Args:
        name: name in ``torchvision.datasets``, e.g. "CIFAR10".
        root: folder of the data.
        batch_size: samples per rank and micro-batch.
        download: fetch the data if it is missing (one process per node does).
        train, val: which split each source reads, for sets with a ``split`` argument; sets with ``train=True/False`` need no words.
            ``val=None`` = no validation.
        label: whether the second entry of a sample is a class; False ignores it.
        classes: number of classes; None = from the data set's ``classes``, else unknown.
        options: further arguments of the data set's constructor.
        common: see `PictureModule`. In buckets, each start reads all pictures once.

    Raises:
        ValueError: torchvision has no such set (the nearest name is given).
        FileNotFoundError: the data is not under ``root``.
    """

    def __init__(
        self, name: str, root: str | Path, batch_size: int, *, download: bool = False, train: str = "train", val: str | None = "test",
        label: bool = True, classes: int | None = None, options: Mapping[str, Any] | None = None, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, **common)
        self.set_name, self.root, self.download, self.splits = name, root, download, (train, val)
        self.extra = dict(options or {})
        self.columns = {"image": 0, "label": 1 if label else None, "classes": classes}

    def prepare_data(self) -> None:
        """Download where it was asked for, in one process per node."""
        if self.download:
            self.sources()
        super().prepare_data()

    def sources(self) -> tuple[MappedItems, MappedItems | None]:
        """Open the training and the validation split."""
        from torchvision import datasets

        if self.set_name not in datasets.__all__:
            near = difflib.get_close_matches(self.set_name, datasets.__all__, 1, cutoff=0)
            raise ValueError(f"torchvision has no data set {self.set_name!r}; did you mean {near[0]!r}?")
        kind = getattr(datasets, self.set_name)
        known = inspect.signature(kind).parameters
        opened = [self._opened_split(kind, known, part) for part in range(2)]
        options = _with_classes(self.columns, opened[0]) | self.reading
        val = None if opened[1] is None else MappedItems(opened[1], self.readers[1], **options)
        return MappedItems(opened[0], self.readers[0], **options), val

    def _opened_split(self, kind: Any, known: Mapping[str, Any], part: int) -> Any:
        given: dict[str, Any] = {"root": self.root, "download": self.download, "train": part == 0, "split": self.splits[part]}
        if part == 1 and (self.splits[1] is None or not {"train", "split"} & set(known)):
            return None
        try:
            return kind(**{name: value for name, value in given.items() if name in known}, **self.extra)
        except (RuntimeError, FileNotFoundError) as error:
            way = "set download=true to fetch it" if "download" in known else "torchvision cannot download this one; see its documentation"
            raise FileNotFoundError(f"{self.set_name} is not complete under {self.root}: {way} ({error})") from error


def _with_classes(columns: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """Add the class names that a Hugging Face (``features``) or torchvision (``classes``) data set carries, and their number."""
    label, features = columns["label"], getattr(dataset, "features", None)
    feature = features[label] if isinstance(features, Mapping) and label in features else None
    names = getattr(feature, "names", None) or getattr(dataset, "classes", None)
    if label is None or not isinstance(names, (list, tuple)):
        return columns
    return {**columns, "classes": columns["classes"] or len(names), "class_names": [str(name) for name in names]}
