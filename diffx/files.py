"""Files that are there whole or not at all: written beside their place, flushed, read back, then renamed.

A killed process or a full disk leaves the previous file as it was. Checkpoints are zip archives with a checksum per record, or folders
with a list of their files' checksums (see `diffx.folders`), so a damaged one is recognised, and `latest` answers with the newest good one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch

__all__ = ["MANIFEST", "checksums", "is_folder", "latest", "link", "prune", "put", "save_checkpoint", "seal", "unused", "verify", "write"]

MANIFEST = "files.json"  # what makes a folder a checkpoint

PathLike = str | os.PathLike

log = logging.getLogger(__name__)


def write(path: PathLike, save: Callable[[BinaryIO], Any], check: Callable[[Path], None] | None = None) -> None:
    """Write a file atomically: ``save`` fills a temporary file in its folder, ``check`` may reject it, then it takes the name ``path``.

    Raises:
        OSError: with the path and the reason, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        _make_room(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _write_failure(error)
        if reason is None:
            raise
        raise OSError(getattr(reason, "errno", None), f"cannot write {path}: {getattr(reason, 'strerror', None) or reason}") from error


def unused(path: PathLike) -> Path:
    """The path itself, or with the first number behind its stem (``name-2.png``) under which there is nothing yet."""
    path = Path(path)
    names = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def link(target: PathLike, name: PathLike) -> None:
    """Let ``name`` stand for the file ``target`` too: a hard link, or a copy where the file system has none; replaced atomically.

    Of a folder the files are linked, and ``name`` is missing for a moment while it is replaced; ``target`` never is.
    """
    target, name = Path(target), Path(name)
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    if target.is_dir():
        temporary.mkdir()
        for part in target.iterdir():
            link(part, temporary / part.name)
        put(temporary, name)
        return
    _make_room(name)
    try:
        temporary.unlink(missing_ok=True)
        os.link(target, temporary)
    except OSError:
        with open(target, "rb") as source:
            write(name, lambda file: _copy(source, file))
        return
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # renaming a link onto the same file leaves both names
    _sync_folder(name.parent)


def put(temporary: Path, path: Path) -> None:
    """Give a folder, complete and beside its place, its name; what had the name before goes."""
    old = _aside(path) if path.exists() else None
    os.replace(temporary, path)
    _sync_folder(path.parent)
    if old is not None:
        _remove(old)


def is_folder(path: PathLike) -> bool:
    """Whether this is a checkpoint that is a folder."""
    return (Path(path) / MANIFEST).is_file()


def checksums(folder: Path, pattern: str) -> dict[str, list[int]]:
    """Size and CRC-32 of the files of a folder by their names."""
    return {path.name: _checksum(path) for path in sorted(folder.glob(pattern))}


def seal(folder: Path, sums: dict[str, list[int]]) -> None:
    """Write the list of a checkpoint's files, which makes the folder a checkpoint."""
    write(folder / MANIFEST, lambda file: file.write(json.dumps(sums, indent=1).encode()))
    _sync_folder(folder)


def save_checkpoint(checkpoint: dict[str, Any], path: PathLike) -> None:
    """Write a checkpoint atomically and read it back before it takes its name.

    Raises:
        OSError: it cannot be written, or what was read back is damaged.
        TypeError: it holds more than tensors and plain types, so that it could not be loaded safely.
    """
    write(path, lambda file: torch.save(checkpoint, file), _check)


def verify(path: PathLike) -> None:
    """Compare every record of a checkpoint with its checksum, and see that its pickle builds tensors and plain types only.

    Nothing is built, so this costs little more than reading the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds more, with the reason.
    """
    path = Path(path)
    if path.is_dir():
        _verify_folder(path)
        return
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    unsafe: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() or next((entry.filename for entry in archive.infolist() if entry.external_attr), None)
        if bad is None:  # (torch reads an entry that is marked as a folder as whatever was in memory)
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a damaged archive can fail in any of the decoders below
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint: {reason}") from error
    if bad is not None:
        raise ValueError(f"{path} is damaged: the checksum or an attribute of {bad} does not match")
    if unsafe:
        raise ValueError(f"{path} is damaged or no checkpoint: it holds {', '.join(sorted(unsafe))}, not tensors and plain types only")


def latest(folder: PathLike) -> Path | None:
    """The newest good checkpoint of a folder: ``last.ckpt``, else the good ``*.ckpt`` written last; None when there is none.

    A damaged file is passed over with one line in the log.
    """
    folder = Path(folder)
    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=_age, reverse=True):
        try:
            verify(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if damaged:
            log.warning("%s; falling back to %s", "; ".join(damaged), path)
        return path
    if damaged:
        log.warning("%s; no good checkpoint is left in %s", "; ".join(damaged), folder)
    return None


def prune(folder: PathLike, keep: int | None = None) -> None:
    """Delete the temporary files that killed processes left behind and, with ``keep``, all but that many of the newest ``step_*.ckpt``."""
    old = [] if keep is None else sorted(Path(folder).glob("step_*.ckpt"), key=_age)[:-keep]
    for path in [*Path(folder).glob(".*.tmp"), *old]:
        _remove(path)


def _aside(path: Path) -> Path:
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    os.replace(path, old)
    return old


def _make_room(path: Path) -> None:
    """A file cannot replace a folder."""
    if path.is_dir():
        _remove(_aside(path))


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _checksum(path: Path) -> list[int]:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def _verify_folder(folder: Path) -> None:
    if not is_folder(folder):
        raise ValueError(f"{folder} is damaged or no checkpoint: it has no {MANIFEST}, which is written last")
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        bad = [name for name, entry in listed.items() if not (folder / name).is_file() or _checksum(folder / name) != entry]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    if bad:
        raise ValueError(f"{folder} is damaged: {bad[0]} is missing or its checksum does not match")


def _age(path: Path) -> tuple[bool, int, int]:
    """Order of writing, not of step numbers: a run resumed from an older checkpoint writes lower numbers later."""
    step = re.search(r"(\d+)$", path.stem)
    return path.name == "last.ckpt", path.stat().st_mtime_ns, int(step[1]) if step else -1


def _check(path: Path) -> None:
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise TypeError(f"a checkpoint may hold tensors and plain types only, but this one holds {', '.join(sorted(unsafe))}; "
                        "leave it out of hyper-parameters and callback states")  # fmt: skip
    try:
        verify(path)
    except ValueError as error:
        raise OSError(None, f"what was written cannot be read back ({error})") from error


def _write_failure(error: BaseException) -> BaseException | None:
    """The error of the disk behind an exception: torch's archive writer hides it behind one of its own."""
    cause = error.__context__
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "inline_container" in str(error)):
        return cause if isinstance(cause, OSError) else error
    return None


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while block := source.read(1 << 24):
        target.write(block)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
