"""Sets of precomputed tensors on disk: latents, token ids.

A set is a folder with ``manifest.json`` and files ``00000.safetensors``, ``00001.safetensors``, ... Row ``i`` of the set is one item; each
file holds the same number of rows (the last one fewer) of every *column*: a tensor whose first axis counts the rows, or texts. The
manifest says what the set is (``about``), how many rows it will have (``count``), and of every finished file its rows, bytes and SHA-256.

A file enters the manifest after it has been written and flushed, and both are replaced atomically: a killed writer loses at most the rows
of one file, and goes on where the manifest ends. Rows go to files by their number alone, so a set that was interrupted equals one that was
not, byte for byte, if each row is a function of its number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import files

__all__ = ["Columns", "Precomputed", "PrecomputedWriter"]

Columns: TypeAlias = Mapping[str, Tensor | Sequence[str]]
"""Rows by the name of their column: tensors ``(B, *)`` and lists of B texts."""
SCHEMA = 1
MANIFEST = "manifest.json"
ENDS = ".ends"  # "text" is stored as its UTF-8 bytes one after the other, and "text.ends" (B,) tells where each text ends


class Precomputed:
    """A finished set, read row by row; files are mapped into memory when they are first needed.

    Args:
        folder: the set.
        verify: compare every file with its checksum, which reads all of them once; their presence and size are always checked.

    Attributes:
        about: what the writer said about the set.

    Raises:
        FileNotFoundError: there is no set, or one of its files is missing.
        ValueError: the set is unfinished or of a newer format, or a file is damaged.
    """

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        manifest = _read(self.folder)
        if manifest is None:
            raise FileNotFoundError(f"no {MANIFEST} in {self.folder}; name the folder of a set that was written before")
        self.about: Mapping[str, Any] = manifest["about"]
        self._files = manifest["files"]
        _check_files(self.folder, self._files, checksums=verify)
        self._ends = np.fromiter(accumulate(entry["rows"] for entry in self._files), dtype=np.int64)
        if len(self) != manifest["count"]:
            raise ValueError(f"{self.folder} holds {len(self)} of {manifest['count']} rows; finish it by the command that began it")
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, indices: np.ndarray) -> dict[str, Tensor | list[str]]:
        """The rows at ``indices`` ``(B,)``, in that order, as stored."""
        where = np.searchsorted(self._ends, indices, side="right")
        taken = np.argsort(where, kind="stable")  # row of the answer for each row that is gathered file by file
        parts: dict[str, list[Any]] = {}
        for number in np.unique(where).tolist():
            file = self._mapped(number)
            inside = indices[where == number] - (self._ends[number] - self._files[number]["rows"])
            for name in _columns(file):
                parts.setdefault(name, []).append(_take(file, name, inside))
        back = np.argsort(taken, kind="stable")
        return {name: _joined(values, back) for name, values in parts.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes open the files themselves."""
        return {**self.__dict__, "_open": {}}

    def _mapped(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            from safetensors.torch import load_file

            self._open[number] = load_file(self.folder / self._files[number]["file"])
        return self._open[number]


class PrecomputedWriter:
    """Writes a set, or goes on writing one that was interrupted.

    Args:
        folder: the set; made if it is not there.
        about: plain data that says what the set is. One that is already there must have been begun with the same.
        count: rows that the finished set will have.
        rows: rows per file.

    Attributes:
        done: rows that are safely on disk; `add` expects the rows from there on.

    Raises:
        ValueError: the folder holds another set, with each difference and both sides of it; or a file of it is damaged.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any], count: int, rows: int = 8192) -> None:
        if count < 1 or rows < 1:
            raise ValueError(f"a set needs at least one row and one row per file, got count={count} and rows={rows}")
        self.folder, self.count, self.per_file = Path(folder), count, rows
        head = {"schema": SCHEMA, "about": json.loads(json.dumps(dict(about))), "count": count, "rows_per_file": rows}
        found = _read(self.folder)
        if found is not None:
            there = {key: value for key, value in found.items() if key != "files"}
            if differences := list(_differences(there, head)):
                raise ValueError(f"{self.folder} holds another set: {'; '.join(differences)}. Choose another folder or delete this one")
            _check_files(self.folder, found["files"], checksums=True)
        files.prune(self.folder)
        self._manifest = found or {**head, "files": []}
        self._waiting: list[Columns] = []
        self._save()

    @property
    def done(self) -> int:
        """Rows in finished files."""
        return sum(entry["rows"] for entry in self._manifest["files"])

    def pieces(self, size: int) -> list[range]:
        """The rows that are still to be written, in runs of at most ``size`` that never cross from one file into the next."""
        ends = [min(start + self.per_file, self.count) for start in range(self.done, self.count, self.per_file)]
        starts = [self.done, *ends]
        return [range(a, min(a + size, end)) for start, end in zip(starts, ends, strict=False) for a in range(start, end, size)]

    def add(self, columns: Columns) -> None:
        """Take the next rows; a file is written as soon as it is full, or all rows are there.

        Raises:
            ValueError: the columns differ in length, or the rows go beyond the end of a file (see `pieces`).
            OSError: the disk is full or cannot be written.
        """
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"all columns must have as many rows, got { {name: len(values) for name, values in columns.items()} }")
        self._waiting.append(columns)
        here, full = sum(len(next(iter(part.values()))) for part in self._waiting), min(self.per_file, self.count - self.done)
        if here > full:
            raise ValueError(f"{here} rows for a file of {full}; add the rows in the runs that pieces() gives")
        if here == full:
            self._flush(here)

    def _flush(self, rows: int) -> None:
        from safetensors.torch import save

        content = save({name: tensor for column in self._waiting[0] for name, tensor in self._packed(column).items()})
        name = f"{len(self._manifest['files']):05d}.safetensors"
        files.write(self.folder / name, lambda file: file.write(content))
        entry = {"file": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self._manifest["files"].append(entry)
        self._waiting = []
        self._save()

    def _packed(self, column: str) -> dict[str, Tensor]:
        values = [part[column] for part in self._waiting]
        if isinstance(values[0], Tensor):
            return {column: torch.cat([value.cpu() for value in values if isinstance(value, Tensor)]).contiguous()}
        texts = [text.encode() for value in values for text in value]
        ends = torch.tensor(list(accumulate(map(len, texts))), dtype=torch.int64)
        return {column: torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy()), column + ENDS: ends}

    def _save(self) -> None:
        text = json.dumps(self._manifest, indent=1, sort_keys=True) + "\n"
        files.write(self.folder / MANIFEST, lambda file: file.write(text.encode()))


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of a precomputed set ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, this diffx reads {SCHEMA}; write the set again or install the diffx that wrote it")
    return manifest


def _check_files(folder: Path, entries: Sequence[Mapping[str, Any]], *, checksums: bool) -> None:
    for entry in entries:
        path = folder / entry["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though {MANIFEST} lists it; bring it back, or delete {folder} and write it again")
        size = path.stat().st_size
        if size != entry["bytes"] or (checksums and _sha256(path) != entry["sha256"]):
            said = f"{size} bytes instead of {entry['bytes']}" if size != entry["bytes"] else "its checksum does not match"
            raise ValueError(f"{path} is damaged: {said}; delete {folder} and write it again")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(there: Any, here: Any, at: str = "") -> list[str]:
    """Where two trees of plain data differ: ``codec.sha256 is 'a' there and 'b' here``."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        return [line for key in keys for line in _differences(there.get(key), here.get(key), f"{at}.{key}" if at else key)]
    return [] if there == here else [f"{at} is {there!r} there and {here!r} here"]


def _columns(file: Mapping[str, Tensor]) -> list[str]:
    return [name for name in file if not name.endswith(ENDS)]


def _take(file: Mapping[str, Tensor], name: str, rows: np.ndarray) -> Tensor | list[str]:
    column, ends = file[name], file.get(name + ENDS)
    if ends is None:
        return column[torch.from_numpy(rows)]
    bounds = [(int(ends[row - 1]) if row else 0, int(ends[row])) for row in rows.tolist()]
    return [column[start:end].numpy().tobytes().decode() for start, end in bounds]


def _joined(values: Sequence[Any], order: np.ndarray) -> Tensor | list[str]:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))[torch.from_numpy(order)]
    flat = [text for value in values for text in value]
    return [flat[i] for i in order.tolist()]
