"""Embeddings in a folder: shards that are there whole or not at all, an index of their keys, any number of readers and writers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import files

__all__ = ["Entry", "Store"]

log = logging.getLogger(__name__)

ABOUT = "encoder.json"
KEY = 16  # bytes of a key


class Entry(NamedTuple):
    """What is kept of one text.

    Args:
        tokens: (L, D) states at its real tokens.
        pooled: (P,) or None.
    """

    tokens: Tensor
    pooled: Tensor | None


class _Place(NamedTuple):
    shard: Path
    row: int
    start: int
    stop: int


class Store:
    """A folder of embeddings of one encoder.

    ``encoder.json`` says whose. Each shard is a safetensors file: the tokens of its texts one after the other, their lengths, their keys
    and pooled vectors. A shard is written beside its place and renamed, under a name that is the hash of its keys. So nobody needs a lock:
    a killed writer leaves nothing that counts, two that write the same texts write the same file, and a key found in several shards is read
    from the first.

    Args:
        folder: made when the first shard is written.
        about: plain types that say what encoder this is.

    Raises:
        ValueError: the folder holds embeddings of another encoder.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = Path(folder), dict(about)
        self._places: dict[bytes, _Place] = {}
        self._read: set[Path] = set()
        self._check()
        self.refresh()

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def key(self, text: str) -> bytes:
        """Name of a text: hash of the encoder and of the text's bytes."""
        encoder = json.dumps(self.about, sort_keys=True).encode()
        return hashlib.blake2b(hashlib.sha256(encoder).digest() + text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()

    def refresh(self) -> None:
        """Read the keys of shards that were not there before; a damaged one is passed over with a line in the log."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._read):
            self._read.add(path)
            try:
                with safe_open(path, framework="np") as shard:
                    keys, ends = shard.get_tensor("keys"), np.cumsum(shard.get_tensor("lengths"))
            except (SafetensorError, OSError) as error:
                log.warning("%s is damaged and will not be used (%s); delete it", path, error)
                continue
            for row, (key, stop) in enumerate(zip(keys, ends.tolist(), strict=True)):
                start = int(ends[row - 1]) if row else 0
                self._places.setdefault(key.tobytes(), _Place(path, row, start, stop))

    def get(self, key: bytes) -> Entry:
        """The embeddings of a text.

        Raises:
            KeyError: they are not here.
        """
        place = self._places[key]
        shard = _opened(str(place.shard))
        pooled = shard.get_slice("pooled")[place.row] if "pooled" in shard.keys() else None  # noqa: SIM118, it is no mapping
        return Entry(shard.get_slice("tokens")[place.start : place.stop], pooled)

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Write what is not here yet, as one shard.

        Raises:
            OSError: it cannot be written.
            ValueError: another encoder took the folder in the meantime.
        """
        self.refresh()
        fresh = {key: entry for key, entry in entries.items() if key not in self}
        if not fresh:
            return
        if not (self.folder / ABOUT).is_file():
            files.write(self.folder / ABOUT, lambda file: file.write(json.dumps(self.about, indent=1).encode()))
        self._check()
        keys = sorted(fresh)
        shard = {
            "keys": torch.tensor([list(key) for key in keys], dtype=torch.uint8),
            "lengths": torch.tensor([len(fresh[key].tokens) for key in keys], dtype=torch.int32),
            "tokens": torch.cat([fresh[key].tokens for key in keys]),
        }
        if (pooled := [entry.pooled for entry in (fresh[key] for key in keys) if entry.pooled is not None]) and len(pooled) == len(keys):
            shard["pooled"] = torch.stack(pooled)
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
        data = save(shard)
        files.write(self.folder / f"{name}.safetensors", lambda file: file.write(data))
        self.refresh()

    def _check(self) -> None:
        path = self.folder / ABOUT
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no description of an encoder ({error}); delete the folder or name another") from error
        if found != self.about:
            raise ValueError(f"the cache {self.folder} holds embeddings of {_named(found)}, but this is {_named(self.about)}; give each "
                             "encoder a folder of its own")  # fmt: skip


@lru_cache(maxsize=64)
def _opened(path: str) -> Any:
    return safe_open(path, framework="pt")


def _named(about: Any) -> str:
    if not isinstance(about, dict):
        return "something else"
    print_ = str(about.get("fingerprint"))[:12]
    return f"{about.get('encoder')} (fingerprint {print_}, {about.get('dtype')}, format {about.get('format')})"
