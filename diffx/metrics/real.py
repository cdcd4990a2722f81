"""Real items of a DataModule, gathered to be compared with samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from .. import rng
from ..data import normalise

__all__ = ["asked_rows", "real_items", "take"]


def real_items(data: L.LightningDataModule, limit: int = 10_000) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Training and held-out items of a DataModule as two big batches on the CPU, ``"x"`` (N, *) in [-1, 1]; no held-out ones give None.

    diffx's own DataModules are read by item, from any other one pass over its loaders is read, up to ``limit`` items.

    Raises:
        ValueError: there are no training items.
        TypeError: batches of a foreign DataModule are no mappings with "x".
    """
    if hasattr(data, "train") and hasattr(data.train, "fetch"):
        parts = [_fetched(source, limit) for source in (data.train, data.val)]
    else:
        if data.trainer is None:
            data.prepare_data()
            data.setup("fit")
        parts = [_loaded(data, stage, limit) for stage in ("train", "val")]
    train, held_out = ({} if part is None else part for part in parts)
    if not len(train.get("x", ())):
        raise ValueError(f"{type(data).__name__} gives no training items, so there is nothing to compare samples with")
    return train, held_out or None


def asked_rows(real: Mapping[str, Any], n: int) -> Tensor:
    """Rows (n,) of the real items whose conditions ``n`` samples are asked for: in turn, classes balanced where there are labels."""
    label = real.get("label")
    if label is None:
        return torch.arange(n) % len(real["x"])
    classes = label.unique()
    wanted = classes[torch.arange(n) % len(classes)]
    rows = torch.empty(n, dtype=torch.int64)
    for c in classes:
        own = (label == c).nonzero()[:, 0]
        rows[wanted == c] = own[torch.arange(int((wanted == c).sum())) % len(own)]
    return rows


def take(items: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The items at ``rows`` (n,): tensors and lists alike."""
    return {key: column[rows] if isinstance(column, Tensor) else [column[i] for i in rows.tolist()] for key, column in items.items()}


def _fetched(source: Any, limit: int) -> dict[str, Any] | None:
    if source is None:
        return None
    rows = rng.permutation(len(source), "evaluate")[:limit].sort().values
    parts = [dict(source.fetch(part.numpy(), 0)) for part in rows.split(256)]
    return _joined(
        [{name: normalise(v) if isinstance(v, Tensor) and v.dtype == torch.uint8 else v for name, v in part.items()} for part in parts]
    )


def _loaded(data: L.LightningDataModule, stage: str, limit: int) -> dict[str, Any] | None:
    if not is_overridden(f"{stage}_dataloader", data):
        return None
    loader = getattr(data, f"{stage}_dataloader")()
    parts: list[Mapping[str, Any]] = []
    for batch in (loader[0] if isinstance(loader, list) and loader else loader) or ():
        if not isinstance(batch, Mapping) or "x" not in batch:
            raise TypeError(
                f'{type(data).__name__} gives batches of type {type(batch).__name__}; they must be mappings with "x" and, if known, "label"'
            )
        parts.append(data.on_after_batch_transfer(batch, 0))
        if sum(len(part["x"]) for part in parts) >= limit:
            break
    joined = _joined(parts) if parts else None
    return joined and {key: value[:limit] for key, value in joined.items()}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def join(values: Iterable[Any]) -> Any:
        values = list(values)
        return torch.cat(values).cpu() if isinstance(values[0], Tensor) else [entry for value in values for entry in value]

    return {key: join(part[key] for part in parts) for key in parts[0]}
