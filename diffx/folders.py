"""Checkpoints that are folders: each rank writes its own part of sharded tensors, so that none ever holds the whole model.

Sharded tensors lie in files of ``torch.distributed.checkpoint``, everything else of the checkpoint in one file like any other
(`REST`), and a list of all files with their checksums (`diffx.files.MANIFEST`) is written last. The folder takes its name when it is
complete. It can be read by any number of ranks, sharded or not.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from . import files
from .dtensors import is_sharded

__all__ = ["REST", "read", "rest", "save"]

REST = "rest.pt"
MARK = "_sharded_"  # {MARK: name} stands in the rest for the sharded tensor of that name


def save(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint of sharded tensors; every rank must call it, with the same path on a file system that all ranks see.

    Raises:
        OSError: on all ranks, if one of them cannot write; the folder of that name, if there was one, is as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    first = dist.get_rank() == 0
    tensors: dict[str, Tensor] = {}
    others = _parted(checkpoint, (), tensors)
    _together(path, lambda: _emptied(temporary) if first else None)
    try:
        torch.distributed.checkpoint.save(tensors, storage_writer=FileSystemWriter(temporary, sync_files=True))
    except BaseException as error:
        raise OSError(None, f"cannot write {path}: {_reason(error)}") from error  # torch tells all ranks
    sums = _together(path, lambda: files.checksums(temporary, f"__{dist.get_rank()}_*"))
    _together(path, lambda: _finish(others, temporary, path, sums) if first else None)


def _finish(others: Any, temporary: Path, path: Path, sums: list[dict[str, list[int]]]) -> None:
    files.save_checkpoint(others, temporary / REST)
    listed = {name: entry for part in sums for name, entry in part.items()}
    files.seal(temporary, {**listed, **files.checksums(temporary, REST), **files.checksums(temporary, ".metadata")})
    files.put(temporary, path)


def read(path: str | os.PathLike, mesh: Any = None) -> dict[str, Any]:
    """The checkpoint in a folder.

    Args:
        path: the folder.
        mesh: one-dimensional mesh over which its sharded tensors are shared out along their first axis (every rank must call then);
            None reads them whole, by this process alone.

    Raises:
        ValueError: the list of tensors holds more than that.
    """
    reader = _Reader(path)
    tensors = {name: _empty(entry, mesh) for name, entry in _listed(path).items()}
    if tensors:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            torch.distributed.checkpoint.load(tensors, storage_reader=reader, no_dist=mesh is None)
    return _joined(rest(path), tensors)


def rest(path: str | os.PathLike) -> dict[str, Any]:
    """What of the checkpoint in a folder is not sharded: counters and recipe, the state of schedules; marks stand for sharded tensors."""
    return torch.load(Path(path) / REST, map_location="cpu", mmap=True, weights_only=True)


def _parted(tree: Any, at: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    """``tree`` with marks for its sharded tensors, which go to ``tensors``."""
    if isinstance(tree, Mapping):
        return {name: _parted(value, (*at, name), tensors) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_parted(value, (*at, i), tensors) for i, value in enumerate(tree))
    if not is_sharded(tree):
        return tree
    name = "/".join(map(str, at))
    tensors[name] = tree.detach()
    return {MARK: name}


def _joined(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, Mapping):
        return tensors[tree[MARK]] if tree.keys() == {MARK} else {name: _joined(value, tensors) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_joined(value, tensors) for value in tree)
    return tree


def _empty(entry: TensorStorageMetadata, mesh: Any) -> Tensor:
    if mesh is None:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    from torch.distributed.tensor import Shard, zeros

    return zeros(entry.size, dtype=entry.properties.dtype, device_mesh=mesh, placements=[Shard(0)])


def _listed(path: str | os.PathLike) -> dict[str, TensorStorageMetadata]:
    listed = _Reader(path).read_metadata().state_dict_metadata
    if other := [name for name, entry in listed.items() if not isinstance(entry, TensorStorageMetadata)]:
        raise ValueError(f"{path} holds {other[0]!r}, which is no tensor")
    return cast(dict[str, TensorStorageMetadata], listed)


class _Reader(FileSystemReader):
    """Reads the list of tensors, which torch pickles, without running what a stranger may have put there."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _PlainUnpickler(file).load()
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


PLAIN = {
    "torch.distributed.checkpoint.metadata": "Metadata TensorStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex "
                                             "StorageMeta _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.serialization": "_get_layout",
    "torch": "Size float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool",
    "pathlib": "Path PosixPath WindowsPath",
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in PLAIN.get(module, "").split():
            raise ValueError(f"a list of tensors may not ask for {module}.{name}")
        return super().find_class(module, name)


def _emptied(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _together(path: Path, step: Callable[[], Any]) -> list[Any]:
    """What ``step`` gives on each rank; if it fails on one, all raise."""
    outcome: tuple[Any, str | None]
    try:
        outcome = step(), None
    except Exception as error:  # whatever it is, the others wait
        outcome = None, _reason(error)
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, outcome)
    if failed := [f"rank {rank}: {error}" for rank, (_, error) in enumerate(box) if error is not None]:
        raise OSError(None, f"cannot write {path}: {failed[0]}")
    return [made for made, _ in box]


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1]
