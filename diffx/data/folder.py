"""`ImageFolder`: the user's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..recipes import recorded
from ..version import __version__
from .buckets import Size
from .kept import KeptPictures
from .listing import Layout, Listing, list_files
from .order import split
from .picture_module import PictureItems, PictureModule, remembered
from .pictures import PictureReader, size_of

__all__ = ["FolderItems", "ImageFolder"]


class FolderItems(PictureItems):
    """A source over listed picture files.

    Args:
        listing: paths, labels and texts.
        reader: makes the picture.
        cache: file in which the sizes of the pictures are remembered.
        **options: as in `diffx.data.Items`.
    """

    threaded = True

    def __init__(self, listing: Listing, reader: PictureReader, cache: Path, **options: Any) -> None:
        super().__init__(reader, classes=listing.classes, **options)
        self.listing, self.cache, self.class_names = listing, cache, listing.class_names

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.listing.paths)

    def name(self, index: int) -> str:
        """Path of the picture."""
        return str(self.listing.paths[index])

    def item(self, index: int) -> dict[str, Any]:
        """Read the picture; add its label and text."""
        item = self.pictured(index, self.listing.paths[index])
        if self.listing.labels is not None:
            item["label"] = self.listing.labels[index]
        if self.listing.texts is not None:
            item["text"] = self.listing.texts[index]
        return item

    def keep(self, folder: Path) -> None:
        """Keep pictures in ``folder`` from now on, or find them there; of a picture file that changes they are read anew."""
        reader, box = self.reader, self.reader.box
        assert box is not None
        files = [(str(path), *stamp) for path, stamp in zip(self.listing.paths, self._stamps(range(len(self))), strict=True)]
        self.kept = KeptPictures(folder, [files, reader.draft, __version__], len(files), (reader.channels, *box))

    def extent(self, index: int) -> Size:
        """Read the head of the file."""
        return size_of(self.listing.paths[index])

    def extents(self, rows: Sequence[int]) -> list[Size | Exception]:
        """Read the heads of the files that are new or have changed."""
        names = [str(self.listing.paths[row]) for row in rows]
        return remembered(self.cache, names, self._stamps(rows), lambda new: super(FolderItems, self).extents([rows[i] for i in new]))

    def _stamps(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Time of the last change and length of picture files."""
        return [(stat.st_mtime_ns, stat.st_size) for stat in (self.listing.paths[row].stat() for row in rows)]


@recorded
class ImageFolder(PictureModule):
    """Pictures below a folder, in the sorted order of their paths.

    | layout | what lies in the folder | gives |
    |---|---|---|
    | "classes" | one sub-folder per class, pictures at any depth below it | label |
    | "captions" | beside each ``name.png`` a ``name.txt`` | text |
    | "metadata" | ``metadata.jsonl``, per line ``{"file_name": ..., "text": ..., "label": ...}``, the last two optional; or | text, label |
    | | ``metadata.csv`` with a head line that names the same columns | |
    | "plain" | pictures at any depth | neither |

    Args:
        root: the folder.
        batch_size: samples per rank and micro-batch.
        layout: as in the table; "auto" takes metadata if there is such a file, captions if a picture has one, classes if all pictures lie
            in sub-folders, plain if none does.
        val: name of a sub-folder with validation pictures (training then reads the sub-folder ``train`` if there is one, else all the
            rest; without such a sub-folder there is no validation), or the fraction that a fixed permutation holds out; in [0, 1).
        cache: folder, best on a fast disk, in which pictures are kept at their final size once they have been read, so that later epochs
            and runs decode nothing. What comes out is the same with it and without. It needs ``size``.
        options: see `PictureModule`. In buckets, what the pictures measure is remembered in ``.diffx-sizes.npz`` of the folder.

    Raises:
        FileNotFoundError: no such folder, no pictures in it, or a metadata line names a missing file.
        ValueError: a caption without picture or the reverse, a broken metadata line, an unreadable picture, an unknown validation class, a
            cache without one size.
    """

    def __init__(
        self, root: str | Path, batch_size: int, *, layout: Layout = "auto", val: str | float = "val", cache: str | Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=batch_size, **options)
        self.root, self.layout, self.held, self.cache = Path(root), layout, val, cache
        if cache is not None and self.readers[0].box is None:
            raise ValueError("a cache keeps pictures of one size; set size=, or leave the cache out")

    def sources(self) -> tuple[FolderItems, FolderItems | None]:
        """List the pictures and part them."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {self.root}; give the folder that holds the pictures")
        train, val = self._listings()
        return self._items(train, self.readers[0]), None if val is None else self._items(val, self.readers[1])

    def _items(self, listing: Listing, reader: PictureReader) -> FolderItems:
        items = FolderItems(listing, reader, self.root / ".diffx-sizes.npz", **self.reading)
        if self.cache is not None:
            items.keep(Path(self.cache))
        return items

    def _listings(self) -> tuple[Listing, Listing | None]:
        if not isinstance(self.held, str):
            whole = list_files(self.root, self.layout)
            train, val = (whole.rows(rows) for rows in split(len(whole.paths), self.held))
            return train, val if val.paths else None
        folder = self.root / self.held
        if not folder.is_dir():
            return list_files(self.root, self.layout), None
        beside = self.root / "train"
        train = list_files(beside, self.layout) if beside.is_dir() else list_files(self.root, self.layout, without=self.held)
        return train, list_files(folder, train.layout, like=train)
