"""Features of real items, kept on disk: evaluations of many checkpoints look at the same real pictures with the same large network."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..files import write
from .features import Features, extract, rows

__all__ = ["remembered"]

log = logging.getLogger(__name__)


def remembered(folder: str | Path) -> Callable[[Features, Tensor], Tensor]:
    """`extract` that keeps in ``folder`` what networks gave and reads it back.

    A file is named by the hash of the network, of how it is asked (``features.identity``, see `TorchScript`) and of the items' own
    values: other data, a changed file or another option never meet it, so nothing in the folder is ever out of date, and all of it may
    be deleted. Devices and versions of torch, whose answers differ by rounding, share what is kept. Features without an ``identity``,
    such as `Pixels`, are cheap and computed anew.

    Args:
        folder: is made when the first features are kept; several projects and processes may share it.

    Raises:
        ValueError: as `extract`, when features are computed.
    """

    def features_of(features: Features, x: Tensor) -> Tensor:
        identity = getattr(features, "identity", None)
        if identity is None:
            return extract(features, x)
        path = Path(folder) / f"{_hash(identity, x)}.pt"
        if path.is_file():
            return rows(torch.load(path, weights_only=True), len(x))
        found = extract(features, x)
        single = found.float()
        try:
            write(path, lambda file: torch.save(single if torch.equal(single.double(), found) else found, file))
        except OSError as error:  # a full disk costs the next evaluation some time, not this one its result
            log.warning("features of real items are not kept: %s; name another folder with cache=", error)
        return found

    return features_of


def _hash(identity: str, x: Tensor) -> str:
    told = hashlib.sha256(f"{identity} {x.dtype} {tuple(x.shape)}".encode())
    for part in x.split(256):
        told.update(part.contiguous().cpu().numpy().tobytes())
    return told.hexdigest()[:32]
