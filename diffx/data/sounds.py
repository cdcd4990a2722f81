"""Recorded sound: `SoundFolder` for files, `SoundArrays` for recordings in one ``.npz``. Nothing is resampled or mixed unasked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..audio import duration, pitch_vector, read_sound
from ..audio.files import SUFFIXES
from ..recipes import recorded
from .arrays import described, named_arrays
from .listing import Kind, Layout, Listing, list_files
from .module import DataModule
from .order import split as split_rows
from .source import Items, SettingError

__all__ = ["SoundArrays", "SoundFolder", "SoundItems"]

SOUNDS = Kind("sound", "sounds", SUFFIXES)
Crop = Literal["random", "start"]


@dataclass(frozen=True)
class Shape:
    """What every clip must be.

    Args:
        rate: samples per second.
        channels: number of channels.
        length: samples.
        crop: "random" cuts a clip out anywhere, "start" at the beginning.
        pad: recordings that are too short are followed by silence; otherwise they are refused.
        mix: recordings of several channels are averaged where one is asked for; otherwise they are refused.
        quietest: root mean square in dB of full scale below which a clip counts as silent and is refused.
        turn: turn the sign of every other training clip, at random: what nobody hears is more data.
    """

    rate: int
    channels: int
    length: int
    crop: Crop = "random"
    pad: bool = False
    mix: bool = False
    quietest: float = -60.0
    turn: bool = False

    def __post_init__(self) -> None:
        if self.rate < 1 or self.channels not in (1, 2) or self.length < 1:
            raise ValueError(
                f"sample_rate and length must be positive and channels 1 or 2, got {self.rate}, {self.length}, {self.channels}"
            )
        if self.crop not in ("random", "start"):
            raise ValueError(f"crop must be 'random' or 'start', got {self.crop!r}")

    def start(self, frames: int, name: str) -> int:
        """Where in a recording of ``frames`` samples a clip begins."""
        if frames < self.length and not self.pad:
            raise SettingError(f"{name} has {frames} samples and clips have {self.length}; remove it, lower length, or set pad=true")
        room = max(0, frames - self.length)
        return int(torch.randint(room + 1, ())) if self.crop == "random" else 0

    def checked(self, x: Tensor, rate: int, name: str) -> Tensor:
        """A clip (C, length) of what was read, in float32.

        Raises:
            SettingError: another rate or number of channels.
            ValueError: silence, numbers that are not finite, or beyond full scale.
        """
        if rate != self.rate:
            raise SettingError(
                f"{name} has {rate} samples per second, expected {self.rate}; nothing is resampled here: "
                f"convert the recordings, or set sample_rate={rate}"
            )
        if len(x) != self.channels and self.mix and self.channels == 1:
            x = x.mean(0, keepdim=True)
        if len(x) != self.channels:
            way = "set mix=true to average them" if self.channels == 1 else f"set channels={len(x)}"
            raise SettingError(f"{name} has {len(x)} channels, expected {self.channels}; {way}")
        x = torch.nn.functional.pad(x, (0, self.length - x.shape[-1]))
        if not x.isfinite().all() or x.abs().max() > 1:
            raise ValueError(f"values must lie in [-1, 1], got a peak of {x.abs().max():g}")
        level = 20 * x.square().mean().sqrt().clamp_min(1e-9).log10().item()
        if level < self.quietest:
            raise ValueError(f"a clip of {level:.0f} dB is silence, the quietest allowed is {self.quietest:g} dB")
        return -x if self.turn and torch.rand(()) < 0.5 else x


class SoundItems(Items):
    """A source over recordings; a subclass says in `recording` where they are.

    Args:
        shape: what clips must be.
        columns: name -> one value per recording: "label", "text", "note" or others.
        class_names: one name per class, or None.
        **options: as in `diffx.data.Items`.
    """

    def __init__(
        self, shape: Shape, columns: Mapping[str, Sequence[Any]], class_names: Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.shape, self.columns, self.class_names = shape, dict(columns), class_names

    @abstractmethod
    def recording(self, index: int) -> tuple[Tensor, int]:
        """The clip of a recording (C, <= length), cut out as ``shape`` says, and its rate."""

    def item(self, index: int) -> dict[str, Any]:
        """Read and check the clip; add what the columns say."""
        x, rate = self.recording(index)
        told = {name: column[index] for name, column in self.columns.items()}
        if "note" in told:
            told["pitch"] = pitch_vector(torch.tensor([float(told["note"])]))[0]
        return {"x": self.shape.checked(x, rate, self.name(index)), **told}


class FileItems(SoundItems):
    """A source over listed sound files."""

    def __init__(self, listing: Listing, shape: Shape, **options: Any) -> None:
        columns = {name: column for name, column in (("label", listing.labels), ("text", listing.texts)) if column is not None}
        super().__init__(shape, columns, listing.class_names, classes=listing.classes, **options)
        self.paths = listing.paths

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self.paths[index])

    def recording(self, index: int) -> tuple[Tensor, int]:
        """Read the part of the file that is asked for."""
        start = self.shape.start(duration(self.paths[index]).frames, self.name(index))
        return read_sound(self.paths[index], start, self.shape.length)


class RowItems(SoundItems):
    """A source over recordings in memory, (N, C, L) of integers or floats."""

    def __init__(
        self, sounds: np.ndarray, rate: int, rows: np.ndarray, shape: Shape, columns: Mapping[str, np.ndarray], **options: Any
    ) -> None:
        super().__init__(shape, {name: column[rows].tolist() for name, column in columns.items()}, **options)
        self.sounds, self.rate, self.rows = sounds, rate, rows

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Place in the array."""
        return f"recording {self.rows[index]}"

    def recording(self, index: int) -> tuple[Tensor, int]:
        """Cut the clip out and divide integers by their full scale."""
        whole = self.sounds[self.rows[index]]
        start = self.shape.start(whole.shape[-1], self.name(index))
        clip = whole[:, start : start + self.shape.length]
        scale = -float(np.iinfo(clip.dtype).min) if clip.dtype.kind == "i" else 1.0
        return torch.from_numpy(clip.astype(np.float32) / scale), self.rate


class Sounds(DataModule):
    """What the modules of recorded sound have in common.

    Batches hold "x" ``(B, channels, length)`` in [-1, 1] and, where the data has them, "label", "text", "note" ``(B,)`` (MIDI) and "pitch"
    ``(B, 3)`` (`diffx.audio.pitch_vector`). Validation clips are cut at the beginning.

    Args:
        batch_size: samples per rank and micro-batch.
        sample_rate: that all recordings must have, in samples per second.
        length: samples of a clip.
        channels: 1 or 2.
        crop: "random" cuts training clips out anywhere, keyed by (seed, epoch, index); "start" at the beginning.
        pad: follow recordings that are too short by silence instead of refusing them.
        mix: average the channels of recordings that have more than the one asked for, instead of refusing them.
        quietest: root mean square in dB of full scale below which a clip is refused as silence.
        turn: turn the sign of training clips with probability 1/2.
        pitch_range: ``{"low": Hz, "high": Hz}`` that notes are looked for in, where the data tells notes.
        on_error, max_bad: what happens to unreadable or silent recordings, as in `diffx.data.Items`.
        num_workers, seed: as in `DataModule`.
    """

    def __init__(
        self, batch_size: int, *, sample_rate: int, length: int, channels: int = 1, crop: Crop = "random", pad: bool = False,
        mix: bool = False, quietest: float = -60.0, turn: bool = False, pitch_range: Mapping[str, float] | None = None,
        on_error: Literal["raise", "skip"] = "raise", max_bad: float = 0.01, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        self.sample_rate, self.pitch_range = sample_rate, dict(pitch_range or {})
        self.clip = Shape(sample_rate, channels, length, crop, pad, mix, quietest, turn)
        self.reading: dict[str, Any] = {"on_error": on_error, "max_bad": max_bad, "seed": seed}

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """What training and validation clips must be."""
        return self.clip, replace(self.clip, crop="start", turn=False)


@recorded
class SoundFolder(Sounds):
    """Sound files below a folder, in the sorted order of their paths.

    Layouts are those of `ImageFolder`, with sounds for pictures: class folders, captions beside the files, a metadata file, or none.

    Args:
        root: the folder.
        batch_size: samples per rank and micro-batch.
        layout: "auto", "classes", "captions", "metadata" or "plain".
        val: fraction that a fixed permutation holds out; in [0, 1).
        **options: see `Sounds`.

    Raises:
        FileNotFoundError: no such folder, or no sounds in it.
        ModuleNotFoundError: files that need soundfile, which is not installed.
        ValueError: a recording of another rate or number of channels, too short, silent or unreadable.
    """

    def __init__(self, root: str | Path, batch_size: int, *, layout: Layout = "auto", val: float = 0.0, **options: Any) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.root, self.layout, self.held = Path(root), layout, val

    def sources(self) -> tuple[FileItems, FileItems | None]:
        """List the files and part them."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}; give the folder that holds the sounds")
        whole = list_files(self.root, self.layout, kind=SOUNDS)
        parts = [whole.rows(rows) for rows in split_rows(len(whole.paths), self.held)]
        train, val = (FileItems(part, shape, **self.reading) for part, shape in zip(parts, self.shapes, strict=True))
        return train, val if len(val) else None


@recorded
class SoundArrays(Sounds):
    """Recordings of one length in an ``.npz`` file, or in a mapping from names to arrays.

    Args:
        arrays: path of the file, or the mapping.
        batch_size: samples per rank and micro-batch.
        sounds: key of int16 or int32 ``(N, L)`` or ``(N, C, L)``, or of floats in [-1, 1].
        rate: key of the samples per second of the recordings.
        labels: key of integers ``(N,)``; None = no labels.
        notes: key of MIDI notes ``(N,)``; None = no notes.
        captions: key of strings ``(N,)``; None = no texts.
        class_names: the names, or the key of an array with them.
        split: key of integers ``(N,)``, 0 = training, 1 = validation; None = see ``val``.
        val: without ``split``, the fraction that a fixed permutation holds out; in [0, 1).
        **options: see `Sounds`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key is missing (named, with those that exist), a shape, type or rate is not as said, a clip is silent.
    """

    def __init__(
        self, arrays: str | Path | Mapping[str, np.ndarray], batch_size: int, *, sounds: str = "audio", rate: str = "sample_rate",
        labels: str | None = None, notes: str | None = None, captions: str | None = None, class_names: str | Sequence[str] | None = None,
        split: str | None = None, val: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, **options)
        self.arrays, self.sounds, self.rate, self.split, self.held, self.given_names = arrays, sounds, rate, split, val, class_names
        self.columns = {name: key for name, key in (("label", labels), ("note", notes), ("text", captions)) if key is not None}

    def sources(self) -> tuple[RowItems, RowItems | None]:
        """Read the arrays and part them."""
        with named_arrays(self.arrays) as get:
            return self._parted(get)

    def _parted(self, get: Callable[[str], np.ndarray]) -> tuple[RowItems, RowItems | None]:
        where = described(self.arrays)
        sounds = get(self.sounds)
        if sounds.ndim not in (2, 3) or sounds.dtype.kind not in "if" or sounds.dtype == np.int8:
            raise ValueError(f"sounds must be int16, int32 or float, (N, L) or (N, C, L), got {sounds.dtype} {sounds.shape} in {where}")
        sounds = sounds[:, None] if sounds.ndim == 2 else sounds
        columns = {name: get(key) for name, key in self.columns.items()}
        if wrong := [name for name, column in columns.items() if column.shape != (len(sounds),)]:
            raise ValueError(f"{len(sounds)} sounds, but {wrong[0]}s of shape {columns[wrong[0]].shape} in {where}; each sound needs one")
        names = [str(name) for name in (get(self.given_names) if isinstance(self.given_names, str) else self.given_names or ())]
        classes = (len(names) or int(columns["label"].max()) + 1) if "label" in columns else None
        marks = None if self.split is None else get(self.split)
        parts = split_rows(len(sounds), self.held) if marks is None else (np.flatnonzero(marks == 0), np.flatnonzero(marks == 1))
        train, val = (
            RowItems(sounds, int(get(self.rate)), rows, shape, columns, classes=classes, class_names=names or None, **self.reading)
            for rows, shape in zip(parts, self.shapes, strict=True)
        )
        return train, val if len(val) else None
