"""`ClipFolder`: the user's own clips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ...recipes import recorded
from ..listing import Layout, Listing, list_files
from ..module import DataModule
from ..order import split
from ..pictures import PictureReader
from ..source import Items
from .films import CLIPS, count_frames, frame_files, read_frames

__all__ = ["ClipFolder"]


class ClipItems(Items):
    """A source over clips; items as in `ClipFolder`.

    Args:
        listing: paths, labels and texts.
        reader: makes a frame.
        frames: frames of an item.
        skips: each item takes every n-th frame, n drawn from these as far as they fit.
        flip: mirror items left-right with probability 1/2, all frames alike.
        anywhere: begin at a place drawn at random; otherwise in the middle, with the first of the skips that fits.
        **options: as in `diffx.data.Items`.
    """

    def __init__(
        self, listing: Listing, reader: PictureReader, frames: int, skips: Sequence[int], flip: bool, anywhere: bool, **options: Any
    ) -> None:
        super().__init__(classes=listing.classes, **options)
        self.listing, self.reader, self.class_names = listing, reader, listing.class_names
        self.frames, self.skips, self.flip, self.anywhere = frames, tuple(skips), flip, anywhere

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.listing.paths)

    def name(self, index: int) -> str:
        """Path of the clip."""
        return str(self.listing.paths[index])

    def item(self, index: int) -> dict[str, Any]:
        """Read the frames; add frame rate, label and text."""
        path = self.listing.paths[index]
        there = count_frames(path)
        fitting = [skip for skip in self.skips if (self.frames - 1) * skip < there]
        if not fitting:
            raise ValueError(f"it has {there} frames, {(self.frames - 1) * min(self.skips) + 1} are needed")
        skip = fitting[int(torch.randint(len(fitting), ())) if self.anywhere else 0]
        room = there - (self.frames - 1) * skip
        start = int(torch.randint(room, ())) if self.anywhere else room // 2
        pages = read_frames(path, range(start, start + (self.frames - 1) * skip + 1, skip))
        x = torch.stack([self.reader(page) for page in pages], 1)
        item: dict[str, Any] = {"x": x.flip(-1) if self.flip and torch.rand(()) < 0.5 else x}
        if len(self.skips) > 1:
            item["frame_rate"] = torch.tensor([1 / skip])
        if self.listing.labels is not None:
            item["label"] = self.listing.labels[index]
        if self.listing.texts is not None:
            item["text"] = self.listing.texts[index]
        return item


@recorded
class ClipFolder(DataModule):
    """Clips below a folder, in the sorted order of their paths.

    A clip is an animated picture (GIF, WebP, PNG), a film (MP4 and others; needs PyAV, ``pip install 'diffx[video]'``) or, with
    ``layout="frames"``, a folder in which single pictures lie, in the order of their names. Batches hold "x" ``(B, C, T, H, W)`` uint8,
    "label" or "text" where the layout has them, and with several ``skips`` "frame_rate" ``(B, 1)``, the share of its frames that a clip
    shows: a network may take it as a vector.

    Args:
        root: the folder.
        batch_size: samples per rank and micro-batch.
        frames: frames T of a clip.
        skips: every n-th frame is taken, n drawn for each training clip from those of these numbers that fit it. Validation takes the first
            that fits.
        size: side of the square, or (height, width), in pixels, as in `PictureModule`; None = as they are, all alike.
        channels: 3 = RGB, 1 = grey; transparency is laid over white.
        flip: mirror training clips left-right with probability 1/2, all frames of one alike.
        layout: "frames", or as in `ImageFolder` with clips for pictures.
        val: fraction that a fixed permutation holds out; in [0, 1).
        on_error: "raise" stops at an unreadable or too short clip; "skip" takes the next one, always the same, and lists it in
            ``bad_files.txt`` of the run folder.
        max_bad: with "skip", the fraction of unreadable clips that stops the run.
        num_workers, seed: as in `DataModule`.

    Raises:
        FileNotFoundError: no such folder, or no clips in it.
        ValueError: frames or skips below 1; a clip that cannot be read or is too short.
    """

    def __init__(
        self, root: str | Path, batch_size: int, *, frames: int = 16, skips: Sequence[int] = (1,), size: int | Sequence[int] | None = None,
        channels: int = 3, flip: bool = False, layout: Layout | Literal["frames"] = "auto", val: float = 0.0,
        on_error: Literal["raise", "skip"] = "raise", max_bad: float = 0.01, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        if frames < 1 or not skips or min(skips) < 1:
            raise ValueError(f"frames and skips must be at least 1, got {frames} and {list(skips)}")
        self.root, self.layout, self.held = Path(root), layout, val
        self.reader, self.cut = PictureReader(size, channels), (frames, tuple(skips))
        self.flip = flip
        self.reading: dict[str, Any] = {"seed": seed, "on_error": on_error, "max_bad": max_bad}

    def sources(self) -> tuple[ClipItems, ClipItems | None]:
        """List the clips and part them."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}; give the folder that holds the clips")
        whole = _folders(self.root) if self.layout == "frames" else list_files(self.root, self.layout, kind=CLIPS)
        train, val = (whole.rows(rows) for rows in split(len(whole.paths), self.held))
        held = ClipItems(val, self.reader, *self.cut, False, False, **self.reading) if val.paths else None
        return ClipItems(train, self.reader, *self.cut, self.flip, True, **self.reading), held


def _folders(root: Path) -> Listing:
    """The folders below ``root`` in which pictures lie."""
    found = sorted(Path(folder) for folder, _, _ in os.walk(root, followlinks=True))
    clips = [folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(root).parts) and frame_files(folder)]
    if not clips:
        raise FileNotFoundError(f"no folder with pictures below {root}; with layout='frames' each clip is a folder of its frames")
    return Listing("plain", clips)
