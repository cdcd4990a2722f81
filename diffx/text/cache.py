"""Frozen encoders that remember: each text is encoded once, whatever the number of epochs, runs and processes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..recipes import recorded
from ..recipes.record import public_name
from .encoder import Encoded, Row, TextEncoder, Tokenized
from .library import precision
from .store import Entry, Store

__all__ = ["Cached"]

FORMAT = 1
MISSES = ("write", "encode", "raise")


@recorded
class Cached(TextEncoder):
    """A frozen encoder in front of a folder of its embeddings. Everything else (dropping, the choice of captions) happens after it.

    Embeddings are rounded to ``dtype`` also when they were just computed, so that a hit equals the miss before it. New texts are kept while
    training only; sampling never writes. They are written every ``shard`` texts and when the process ends; a killed one loses at most so
    many and damages nothing. Which texts shared a batch when they were encoded may show in the last bit: for runs that must repeat exactly,
    `fill` the folder first.

    Several processes may use a folder at once. A folder that belongs to another encoder, or to the same one with other weights or settings,
    is refused.

    Args:
        encoder: a frozen encoder of text.
        folder: of the embeddings; one per encoder.
        dtype: ``"bfloat16"`` (relative error at most 2^-8) or ``"float32"``.
        on_miss: what happens to a text that is not there: ``"write"`` encodes and keeps it, ``"encode"`` only encodes it, ``"raise"``
            refuses.
        shard: texts per file.

    Raises:
        ValueError: an encoder that is trained along, an unknown option, a folder of another encoder; when encoding, a text that is missing
            under ``"raise"``, or embeddings that are not finite.
    """

    def __init__(
        self, encoder: TextEncoder, folder: str | Path, *, dtype: Literal["bfloat16", "float32"] = "bfloat16",
        on_miss: Literal["write", "encode", "raise"] = "write", shard: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__(max_len=encoder.max_len, pad=encoder.pad, reads=encoder.reads, trainable=False)
        if encoder.trainable:
            raise ValueError(f"{type(encoder).__name__} is trained along, so its embeddings change with every step; only frozen encoders "
                             "can be cached")  # fmt: skip
        if on_miss not in MISSES or shard < 1 or dtype not in ("bfloat16", "float32"):
            raise ValueError(f"on_miss must be one of {MISSES}, dtype bfloat16 or float32 and shard at least 1; got {on_miss!r}, {dtype!r} "
                             f"and {shard}")  # fmt: skip
        self.encoder, self.on_miss, self.shard = encoder, on_miss, shard
        self.dim, self.pooled_dim, self.pad_id, self.counts = encoder.dim, encoder.pooled_dim, encoder.pad_id, encoder.counts
        self.kind = precision(dtype)
        about = {"format": FORMAT, "encoder": public_name(type(encoder)), "fingerprint": encoder.fingerprint, "dtype": dtype}
        self.store = Store(folder, about)
        self._new: dict[bytes, Entry] = {}
        self.freeze()
        weakref.finalize(self, _write, self.store, self._new)  # runs when the process ends, too

    @property
    def fingerprint(self) -> str:
        """That of the encoder: a checkpoint does not care whether its embeddings were cached."""
        return self.encoder.fingerprint

    def train(self, mode: bool = True) -> Cached:
        """As in torch; the encoder stays in evaluation mode. Only in training mode new texts are kept."""
        nn.Module.train(self, mode)
        return self

    def settings(self) -> Mapping[str, Any]:
        return self.encoder.settings()

    def rows(self, texts: Sequence[str]) -> list[Row]:
        return self.encoder.rows(texts)

    def embed(self, ids: Tensor) -> Tensor:
        return self.encoder.embed(ids)

    def states(self, tokens: Tokenized, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.encoder.states(tokens, inputs_embeds)

    def forward(self, inputs: Sequence[str] | Tokenized, *, inputs_embeds: Tensor | None = None) -> Encoded:
        """See `encode`; tokens and given embeddings pass the cache by."""
        if isinstance(inputs, Tokenized) or inputs_embeds is not None:
            return super().forward(inputs, inputs_embeds=inputs_embeds)
        if isinstance(inputs, str) or not len(inputs):
            self.tokenize(inputs)  # says what is wrong
        keys = [self.store.key(text) for text in inputs]
        missing = self._missing(dict(zip(keys, inputs, strict=True)))
        made = self._encoded(missing) if missing else {}
        if made and self.on_miss == "write" and self.training:
            self._new.update(made)
            if len(self._new) >= self.shard:
                _write(self.store, self._new)
        return self._joined([made.get(key) or self._new.get(key) or self.store.get(key) for key in keys])

    def fill(self, texts: Sequence[str], batch: int = 64) -> int:
        """Encode and write all texts that are missing, ``batch`` at once; give back how many there were.

        Several processes share the work by taking a part of the texts each, e.g. ``texts[rank::world]``.
        """
        missing = self._missing({self.store.key(text): text for text in texts})
        keys = list(missing)
        for start in range(0, len(keys), batch):
            self._new.update(self._encoded({key: missing[key] for key in keys[start : start + batch]}))
            if len(self._new) >= self.shard:
                _write(self.store, self._new)
        self.flush()
        return len(keys)

    def flush(self) -> None:
        """Write what was kept so far."""
        _write(self.store, self._new)

    def _missing(self, texts: Mapping[bytes, str]) -> dict[bytes, str]:
        def away() -> dict[bytes, str]:
            return {key: text for key, text in texts.items() if key not in self._new and key not in self.store}

        if not (missing := away()):
            return missing
        self.store.refresh()  # another process may have written them
        if (missing := away()) and self.on_miss == "raise":
            raise ValueError(f"the cache {self.store.folder} lacks {len(missing)} texts, the first being {next(iter(missing.values()))!r}; "
                             "fill() it, or set on_miss to 'write' or 'encode'")  # fmt: skip
        return missing

    def _encoded(self, texts: Mapping[bytes, str]) -> dict[bytes, Entry]:
        with torch.no_grad():
            tokens, mask, pooled = self.encoder.encode(list(texts.values()))
        tokens, mask, pooled = tokens.to("cpu", self.kind), mask.cpu(), None if pooled is None else pooled.to("cpu", self.kind)
        entries = {}
        for row, (key, text) in enumerate(texts.items()):
            entries[key] = Entry(tokens[row, mask[row]], None if pooled is None else pooled[row].clone())
            if not all(part.isfinite().all() for part in entries[key] if part is not None):
                raise ValueError(f"{type(self.encoder).__name__} gives embeddings of {text!r} that are not finite; they cannot be cached")
        return entries

    def _joined(self, entries: Sequence[Entry]) -> Encoded:
        lengths = torch.tensor([len(entry.tokens) for entry in entries])
        length = int(lengths.max()) if self.pad == "longest" else self.max_len
        tokens = torch.zeros(len(entries), length, self.dim)
        for row, entry in enumerate(entries):
            tokens[row, : len(entry.tokens)] = entry.tokens
        pooled = None if self.pooled_dim is None else torch.stack([entry.pooled.float() for entry in entries if entry.pooled is not None])
        mask = torch.arange(length) < lengths[:, None]
        return Encoded(tokens.to(self.device), mask.to(self.device), None if pooled is None else pooled.to(self.device))


def _write(store: Store, entries: dict[bytes, Entry]) -> None:
    if entries:
        store.put(entries)
        entries.clear()
