"""What controllers of attention share: acting one after the other, and finding the tokens of a phrase among the keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .attention import AttentionController, Site, active_controller, attention_control

__all__ = ["Chain", "added_control", "key_mask", "picture_queries"]


class Chain(AttentionController):
    """Two controllers as one: at layers that both want, the second is handed what the first returned.

    Args:
        first: acts first.
        then: acts second, or None.

    Attributes:
        heard: whether ``first`` has wanted any layer so far.
    """

    def __init__(self, first: AttentionController, then: AttentionController | None) -> None:
        self.first, self.then = first, then
        self.heard = False

    def wants(self, site: Site) -> bool:
        own = self.first.wants(site)
        self.heard = self.heard or own
        return own or (self.then is not None and self.then.wants(site))

    def scores(self, scores: Tensor, site: Site) -> Tensor:
        for controller in self._at(site):
            scores = controller.scores(scores, site)
        return scores

    def probs(self, probs: Tensor, site: Site) -> Tensor:
        for controller in self._at(site):
            probs = controller.probs(probs, site)
        return probs

    def _at(self, site: Site) -> Iterator[AttentionController]:
        return (controller for controller in (self.first, self.then) if controller is not None and controller.wants(site))


@contextmanager
def added_control(controller: AttentionController) -> Iterator[Chain]:
    """Inside the block ``controller`` acts before the controller that is active around it, where `attention_control` would replace that."""
    with attention_control(Chain(controller, active_controller())) as chain:
        yield chain


def key_mask(spans: Sequence[Any], site: Site, keys: int) -> Tensor:
    """Which keys belong to phrases: (B, 1, 1, keys) bool on the CPU.

    Args:
        spans: one entry per sample, the `diffx.text.TokenSpan` of its phrases; None for a sample without any.
        site: where the keys are.
        keys: number of keys; what a span says of sources that are not there, or of tokens beyond theirs, is left out.
    """
    mask = torch.zeros(len(spans), 1, 1, keys, dtype=torch.bool)
    for number, row in enumerate(spans):
        for span in row or ():
            if (part := site.key_slices.get(span.source)) is not None:
                mask[number, ..., part.start + span.start : min(part.start + span.stop, part.stop)] = True
    return mask


def picture_queries(site: Site, queries: int) -> Tensor:
    """Which queries are positions of ``site.grid``: (queries,) bool on the CPU; none where the queries are no map, as RIN's latents."""
    mask = torch.zeros(queries, dtype=torch.bool)
    if site.kind == "joint":
        mask[site.key_slices.get("grid", slice(site.n_prefix, None))] = True
    elif site.grid:
        mask[site.n_prefix :] = True
    return mask
