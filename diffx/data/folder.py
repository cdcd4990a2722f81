"""`ImageFolder`: the user's own pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..recipes import recorded
from .listing import Layout, Listing, list_pictures
from .module import DataModule
from .order import split
from .pictures import PictureReader
from .source import Items

__all__ = ["FolderItems", "ImageFolder"]


class FolderItems(Items):
    """A source over listed picture files.

    Args:
        listing: paths, labels and texts.
        reader: makes the picture.
        **options: as in `diffx.data.Items`.
    """

    def __init__(self, listing: Listing, reader: PictureReader, **options: Any) -> None:
        super().__init__(classes=listing.classes, **options)
        self.listing, self.reader, self.class_names = listing, reader, listing.class_names

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.listing.paths)

    def name(self, index: int) -> str:
        """Path of the picture."""
        return str(self.listing.paths[index])

    def item(self, index: int) -> dict[str, Any]:
        """Read the picture; add its label and text."""
        item: dict[str, Any] = {"x": self.reader.open(self.listing.paths[index])}
        if self.listing.labels is not None:
            item["label"] = self.listing.labels[index]
        if self.listing.texts is not None:
            item["text"] = self.listing.texts[index]
        return item


@recorded
class ImageFolder(DataModule):
    """Pictures below a folder, in the sorted order of their paths.

    | layout | what lies in the folder | gives |
    |---|---|---|
    | "classes" | one sub-folder per class, pictures at any depth below it | label |
    | "captions" | beside each ``name.png`` a ``name.txt`` | text |
    | "metadata" | ``metadata.jsonl``, per line ``{"file_name": ..., "text": ..., "label": ...}``, the last two optional | text, label |
    | "plain" | pictures at any depth | neither |

    Args:
        root: the folder.
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels; the largest centred box of that aspect is resampled with an antialiased
            bicubic filter. None = as they are, all alike.
        layout: as in the table; "auto" takes metadata if there is such a file, captions if a picture has one, classes if all pictures lie
            in sub-folders, plain if none does.
        val: name of a sub-folder with validation pictures (training then reads the sub-folder ``train`` if there is one, else all the
            rest; without such a sub-folder there is no validation), or the fraction that a fixed permutation holds out; in [0, 1).
        channels: 3 = RGB, 1 = grey; transparency is laid over white.
        flip: mirror training pictures left-right with probability 1/2.
        draft: let the JPEG decoder reduce while it decodes: faster, slightly different pixels.
        on_error: "raise" stops at an unreadable picture; "skip" takes the next one and lists it in ``bad_files.txt`` of the run folder.
        max_bad: with "skip", the fraction of unreadable pictures that stops the run.
        num_workers, seed: as in `DataModule`.

    Raises:
        FileNotFoundError: no such folder, no pictures in it, or a metadata line names a missing file.
        ValueError: a caption without picture or the reverse, a broken metadata line, an unreadable picture, an unknown validation class.
    """

    def __init__(
        self, root: str | Path, batch_size: int, *, size: int | tuple[int, int] | None = None, layout: Layout = "auto",
        val: str | float = "val", channels: int = 3, flip: bool = False, draft: bool = False,
        on_error: Literal["raise", "skip"] = "raise", max_bad: float = 0.01, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        self.root, self.layout, self.held = Path(root), layout, val
        self.readers = tuple(PictureReader(size, channels, mirrored, draft) for mirrored in (flip, False))
        self.options = {"seed": seed, "on_error": on_error, "max_bad": max_bad}

    def sources(self) -> tuple[FolderItems, FolderItems | None]:
        """List the pictures and part them."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}; give the folder that holds the pictures")
        train, val = self._listings()
        held = None if val is None else FolderItems(val, self.readers[1], **self.options)
        return FolderItems(train, self.readers[0], **self.options), held

    def _listings(self) -> tuple[Listing, Listing | None]:
        if not isinstance(self.held, str):
            whole = list_pictures(self.root, self.layout)
            train, val = (_rows(whole, rows) for rows in split(len(whole.paths), self.held))
            return train, val if val.paths else None
        folder = self.root / self.held
        if not folder.is_dir():
            return list_pictures(self.root, self.layout), None
        beside = self.root / "train"
        train = list_pictures(beside, self.layout) if beside.is_dir() else list_pictures(self.root, self.layout, without=self.held)
        return train, list_pictures(folder, train.layout, like=train)


def _rows(listing: Listing, rows: np.ndarray) -> Listing:
    def take(values: list[Any] | None) -> Any:
        return None if values is None else [values[row] for row in rows.tolist()]

    return replace(listing, paths=take(listing.paths), labels=take(listing.labels), texts=take(listing.texts))
