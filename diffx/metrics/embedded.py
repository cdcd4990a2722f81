"""Figures of modules that draw embeddings of pictures: how near each comes to the embedding of what it was told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import cosine_similarity

from .figures import Evidence, Figure, Results

__all__ = ["NAMES", "draws_embeddings", "embedded", "embedding_figure"]

NAMES = ("cosine", "cosine_gain")


def draws_embeddings(module: Any) -> bool:
    """Whether a module's class has a method ``embedding(batch) -> (B, D)``, as `Prior` has: it draws such, not pictures."""
    return hasattr(type(module), "embedding")  # of the class: a layer may be called so


def embedded(module: Any, items: Mapping[str, Any]) -> dict[str, Any]:
    """Real items with their embeddings (N, D) as ``"x"``, where a module draws such; else as they are.

    Args:
        module: see `draws_embeddings`.
        items: names -> columns as in a batch; may be empty.
    """
    return {**items, "x": module.embedding(items)} if items and draws_embeddings(module) else dict(items)


def embedding_figure(asked: Mapping[str, Any]) -> Figure:
    """``cosine``: mean cosine of each sample and the embedding of the item it was told of; ``cosine_gain``: less that of another item.

    Args:
        asked: the items in the order of the samples, their embeddings as ``"x"``; empty where only the names are wanted.
    """

    def compute(evidence: Evidence) -> Results:
        own, other = (cosine_similarity(evidence.samples, asked["x"].roll(by, 0)).mean().item() for by in (0, 1))
        return {"cosine": {"value": own, "shuffled": other}, "cosine_gain": {"value": own - other}}

    return Figure(NAMES, compute)
