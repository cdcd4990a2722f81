"""More attention to key words: a denoiser whose network looks harder at some tokens (ERNIE-ViLG 2.0, arXiv:2210.15257)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..networks.attention import AttentionController, Site
from ..networks.control import key_mask, picture_queries
from ..recipes import recorded
from ..tensors import handed
from .controlled import ControlledDenoiser

__all__ = ["BoostedDenoiser", "KeyWordBoost"]


@recorded
@dataclass(frozen=True)
class KeyWordBoost:
    """Raises the attention of picture positions to key tokens, in cross-attention and in the joint attention of data and text.

    With the scaled logits s_ij of position i and token j, and m_j = 1 at key tokens and 0 elsewhere, the logits before the softmax are

    | form | logits | |
    |---|---|---|
    | "log_bias" | s_ij + m_j ln(1 + w) | the unnormalised attention to a key token is 1 + w times as large |
    | "logit_scale" | s_ij (1 + w m_j) | as published; a negative logit *loses* by it |

    Key tokens are those of ``cond.spans``; without spans nothing happens.

    Args:
        weight: w, at least 0; 0 changes nothing.
        form: as in the table.

    Raises:
        ValueError: a negative weight or an unknown form.
    """

    weight: float = 0.01
    form: Literal["log_bias", "logit_scale"] = "log_bias"

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.form not in ("log_bias", "logit_scale"):
            raise ValueError(f"weight must be at least 0 and form 'log_bias' or 'logit_scale', got {self.weight} and {self.form!r}")

    def __call__(self, denoiser: Denoiser) -> BoostedDenoiser:
        """The same denoiser with more attention to the key words of whatever condition it is given."""
        return BoostedDenoiser(denoiser, self)

    def boosted(self, scores: Tensor, key: Tensor) -> Tensor:
        """Logits ``scores`` (..., keys), raised where ``key`` (broadcastable, bool) is True."""
        if self.form == "log_bias":
            return scores + math.log1p(self.weight) * key
        return scores * (1 + self.weight * key)


class BoostedDenoiser(ControlledDenoiser):
    """Stands for a denoiser; see `KeyWordBoost`.

    Args:
        denoiser: the denoiser.
        boost: what happens in its attention.
    """

    def __init__(self, denoiser: Denoiser, boost: KeyWordBoost) -> None:
        super().__init__(denoiser)
        self.boost = boost

    def controller(self, x: Tensor, sigma: Tensor, cond: Cond) -> AttentionController | None:
        return _Booster(self.boost, cond.spans) if cond.spans else None


class _Booster(AttentionController):
    """Acts for one call of a network."""

    def __init__(self, boost: KeyWordBoost, spans: Sequence[Any]) -> None:
        self.boost, self.spans = boost, spans
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def wants(self, site: Site) -> bool:
        return site.kind != "self" and any(span.source in site.key_slices for row in self.spans for span in row or ())

    def scores(self, scores: Tensor, site: Site) -> Tensor:
        return self.boost.boosted(scores, self._mask(site, scores))

    def _mask(self, site: Site, scores: Tensor) -> Tensor:
        """(B, 1, queries or 1, keys) bool: the key tokens, in joint attention for queries that belong to the data."""
        queries, keys = scores.shape[-2:]
        name = (site.kind, queries, keys, *((source, part.start, part.stop) for source, part in site.key_slices.items()))
        if name not in self._masks:
            mask = key_mask(self.spans, site, keys)
            mask = mask & picture_queries(site, queries)[:, None] if site.kind == "joint" else mask
            self._masks[name] = handed(mask, scores.device)
        return self._masks[name]
