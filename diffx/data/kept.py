"""Pictures that were read once and are kept, as they come out of the reader, in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptPictures"]

log = logging.getLogger(__name__)


class KeptPictures:
    """Rows of pictures of one size on disk, each with a checksum, filled as they come.

    Any number of processes may read and write at once: a row that was half written when its writer was killed fails its checksum and is
    read again from its picture. What cannot be written is not kept.

    Args:
        folder: where the files lie; made if missing. They may be deleted at any time between runs.
        about: what the rows depend on, as JSON can say it: other paths, times or settings have a file of their own.
        count: number of rows.
        shape: of a picture, ``(C, H, W)``.
    """

    def __init__(self, folder: Path, about: Sequence[Any], count: int, shape: Sequence[int]) -> None:
        self.shape, self.count, self.size = tuple(shape), count, prod(shape)
        named = hashlib.sha256(json.dumps([*about, self.shape, count]).encode()).hexdigest()
        self.path = folder / f"{named[:24]}.pictures"
        self.full = False

    @property
    def bytes(self) -> int:
        """Of a row: the checksum plus one in eight bytes, so that an empty row has none, then the pixels."""
        return 8 + self.size

    @cached_property
    def _file(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(file, self.bytes * self.count)  # sparse: what is not written takes no room
        return file

    @cached_property
    def _map(self) -> memoryview:
        return memoryview(mmap.mmap(self._file, self.bytes * self.count, access=mmap.ACCESS_READ))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_map")}  # each process opens its own

    def get(self, row: int) -> Tensor | None:
        """The picture in a row, or None where there is none yet."""
        try:
            held = self._map[row * self.bytes : (row + 1) * self.bytes]
        except OSError as error:
            self._give_up(error)
            return None
        pixels = bytearray(held[8:])  # what is checked is what is given, whoever writes meanwhile
        if int.from_bytes(held[:8], "little") != zlib.crc32(pixels) + 1:
            return None
        return torch.from_numpy(np.frombuffer(pixels, dtype=np.uint8).reshape(self.shape))

    def put(self, row: int, picture: Tensor) -> None:
        """Keep a picture ``(C, H, W)`` uint8; an error of the disk ends the keeping, not the run."""
        if self.full:
            return
        pixels = picture.contiguous().numpy().tobytes()
        try:
            os.pwrite(self._file, (zlib.crc32(pixels) + 1).to_bytes(8, "little") + pixels, row * self.bytes)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self.full:
            log.warning("pictures are not kept in %s any more: %s", self.path.parent, error)
        self.full = True
