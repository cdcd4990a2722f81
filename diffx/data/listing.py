"""What lies in a folder of pictures or sounds: paths, labels and texts, in a sorted order."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

__all__ = ["PICTURES", "Kind", "Layout", "Listing", "list_files"]

log = logging.getLogger(__name__)

Layout: TypeAlias = Literal["auto", "classes", "captions", "metadata", "plain"]
METADATA = ("metadata.jsonl", "metadata.csv")


class Kind(NamedTuple):
    """A kind of files.

    Attributes:
        one, many: what messages call one and several of them.
        suffixes: endings of their names, in small letters.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]


PICTURES = Kind("picture", "pictures", (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


@dataclass(frozen=True)
class Listing:
    """Files of one kind in one folder.

    Args:
        layout: how the folder was read; never "auto".
        paths: the files.
        labels: class of each, or None.
        texts: caption of each, or None.
        classes: labels lie in [0, classes); None without labels.
        class_names: one name per class, or None.
    """

    layout: Layout
    paths: list[Path]
    labels: list[int] | None = None
    texts: list[str] | None = None
    classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def rows(self, rows: np.ndarray) -> Listing:
        """The part of it at ``rows``."""

        def take(values: list[Any] | None) -> Any:
            return None if values is None else [values[row] for row in rows.tolist()]

        return replace(self, paths=take(self.paths), labels=take(self.labels), texts=take(self.texts))


def list_files(
    root: Path, layout: Layout = "auto", *, kind: Kind = PICTURES, without: str | None = None, like: Listing | None = None
) -> Listing:
    """List the files of a kind below ``root``; hidden files and folders do not count.

    Args:
        root: the folder.
        layout: see `ImageFolder`.
        kind: which files count.
        without: a sub-folder to leave out.
        like: the training listing whose classes a validation folder must keep to.

    Raises:
        FileNotFoundError: there are no such files, or a metadata line names a missing one.
        ValueError: unknown layout, captions and files that do not match, a broken metadata line, or a class that ``like`` lacks.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
    files = sorted(_files(root, without), key=lambda path: path.relative_to(root).as_posix())
    paths = [path for path in files if path.suffix.lower() in kind.suffixes]
    if not paths:
        raise FileNotFoundError(f"no {kind.many} below {root}; their names must end in {', '.join(kind.suffixes)}")
    texts = [path for path in files if path.suffix == ".txt"]
    layout = _guess(root, paths, texts, kind) if layout == "auto" else layout
    if layout == "classes":
        return _by_class(root, paths, like)
    if layout == "captions":
        return _by_caption(paths, texts, kind)
    return _by_metadata(root, like) if layout == "metadata" else Listing("plain", paths)


def _files(root: Path, without: str | None) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not (here == root and name == without)]
        yield from (here / name for name in names if not name.startswith("."))


def _guess(root: Path, paths: list[Path], texts: list[Path], kind: Kind) -> Layout:
    if any((root / name).is_file() for name in METADATA):
        return "metadata"
    if {text.with_suffix("") for text in texts} & {path.with_suffix("") for path in paths}:
        return "captions"
    loose = [path for path in paths if path.parent == root]
    if 0 < len(loose) < len(paths):
        raise ValueError(
            f"{len(loose)} {kind.many} lie in {root}, {len(paths) - len(loose)} in its sub-folders; set layout='classes' or 'plain'"
        )
    return "plain" if loose else "classes"


def _by_class(root: Path, paths: list[Path], like: Listing | None) -> Listing:
    if loose := [path for path in paths if path.parent == root]:
        raise ValueError(f"{loose[0]} lies in no class folder; move it into one, or set layout='plain'")
    return Listing("classes", paths, **_numbered([path.relative_to(root).parts[0] for path in paths], like, str(root)))


def _by_caption(paths: list[Path], texts: list[Path], kind: Kind) -> Listing:
    names, captions = {path.with_suffix("") for path in paths}, {text.with_suffix("") for text in texts}
    _none_left([t for t in texts if t.with_suffix("") not in names], f"caption files without a {kind.one} of the same name")
    _none_left([p for p in paths if p.with_suffix("") not in captions], f"{kind.many} without a caption file of the same name")
    stripped = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    _count_empty(stripped, paths)
    return Listing("captions", paths, texts=stripped)


def _by_metadata(root: Path, like: Listing | None) -> Listing:
    found = [root / name for name in METADATA if (root / name).is_file()]
    if len(found) != 1:
        if found:
            raise ValueError(f"{found[0]} and {found[1]} both say what lies in the folder; keep one")
        raise FileNotFoundError(f"no {root / METADATA[0]}; it holds one JSON object per file: {{'file_name': ..., 'text': ..., 'label': "
                                f"...}}; {METADATA[1]} with such columns serves as well")  # fmt: skip
    (file,) = found
    rows = _table(file) if file.suffix == ".csv" else _lines(file)
    rows.sort(key=lambda row: row["file_name"])
    paths = [root / row["file_name"] for row in rows]
    _none_left([path for path in paths if not path.is_file()], f"files named in {file} do not exist", FileNotFoundError)
    texts, labels = (_column(rows, name, file) for name in ("text", "label"))
    _none_left([text for text in texts or [] if not isinstance(text, str)], f"texts in {file} are no strings")
    _count_empty(texts or [], paths)
    return Listing("metadata", paths, texts=texts, **(_numbered(labels, like, str(file)) if labels is not None else {}))


def _table(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file; an empty label is none, digits are a number."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    for i, row in enumerate(rows, 2):
        if not row.get("file_name") or None in row:
            raise ValueError(f"{file}:{i} names no file or has more fields than the head line; the columns are {[*rows[0]]}")
        label = row.get("label")
        row["label"] = int(label) if label and label.isdecimal() else label or None
    return rows


def _lines(file: Path) -> list[dict[str, Any]]:
    return [_row(line, f"{file}:{i}") for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}); each line is one object") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError(f'{where} has no "file_name"; got {line.strip()[:80]}')
    return row


def _column(rows: list[dict[str, Any]], name: str, file: Path) -> list[Any] | None:
    missing = [row["file_name"] for row in rows if row.get(name) is None]
    if 0 < len(missing) < len(rows):
        raise ValueError(f'{len(missing)} of {len(rows)} lines in {file} have no "{name}", the first is for {missing[0]}; give all or none')
    return None if missing else [row[name] for row in rows]


def _numbered(labels: list[Any], like: Listing | None, where: str) -> dict[str, Any]:
    """Labels as numbers: names are counted in sorted order, or in the order of ``like``."""
    if all(type(label) is int and label >= 0 for label in labels):
        return {"labels": labels, "classes": like.classes if like else max(labels) + 1}
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels in {where} must be all names or all integers >= 0")
    names = like.class_names if like and like.class_names else tuple(sorted(set(labels)))
    _none_left(sorted(set(labels) - set(names)), f"classes in {where} do not occur in training")
    number = {name: i for i, name in enumerate(names)}
    return {"labels": [number[label] for label in labels], "classes": len(names), "class_names": names}


def _count_empty(texts: list[str], paths: list[Path]) -> None:
    empty = [path for path, text in zip(paths, texts, strict=False) if not text.strip()]
    if empty:
        log.warning("%d of %d captions are empty, the first is that of %s", len(empty), len(texts), empty[0])


def _none_left(wrong: list[Any], what: str, error: Callable[[str], Exception] = ValueError) -> None:
    if wrong:
        shown = ", ".join(map(str, wrong[:3])) + (", ..." if len(wrong) > 3 else "")
        raise error(f"{len(wrong)} {what}: {shown}; add what is missing or remove these")
