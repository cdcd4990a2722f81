"""More attention to key words: a denoiser whose network looks harder at some tokens (ERNIE-ViLG 2.0, arXiv:2210.15257)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..networks.attention import AttentionController, Site, active_controller, attention_control
from ..recipes import recorded

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


class BoostedDenoiser:
    """Stands for a denoiser; see `KeyWordBoost`. All it does not do itself, the denoiser does.

    Args:
        denoiser: the denoiser.
        boost: what happens in its attention.
    """

    def __init__(self, denoiser: Denoiser, boost: KeyWordBoost) -> None:
        self.denoiser, self.boost = denoiser, boost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        """The estimate of clean data, as `Denoiser.forward`."""
        return self.denoiser.assemble(x, sigma, self.raw(x, sigma, cond)[0])

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), **inputs: Any) -> tuple[Tensor, Any]:
        """The network's own output, as `Denoiser.raw`."""
        if not cond.spans:
            return self.denoiser.raw(x, sigma, cond, **inputs)
        with attention_control(_Booster(self.boost, cond.spans, active_controller())):
            return self.denoiser.raw(x, sigma, cond, **inputs)


class _Booster(AttentionController):
    """Acts for one call of a network, before the controller (``outer``) that was there already."""

    def __init__(self, boost: KeyWordBoost, spans: Sequence[Any], outer: AttentionController | None) -> None:
        self.boost, self.spans, self.outer = boost, spans, outer
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def wants(self, site: Site) -> bool:
        own = site.kind != "self" and bool(self._sources(site))
        return own or (self.outer is not None and self.outer.wants(site))

    def scores(self, scores: Tensor, site: Site) -> Tensor:
        if site.kind != "self" and self._sources(site):
            scores = self.boost.boosted(scores, self._mask(site, scores))
        return self.outer.scores(scores, site) if self.outer is not None and self.outer.wants(site) else scores

    def probs(self, probs: Tensor, site: Site) -> Tensor:
        return self.outer.probs(probs, site) if self.outer is not None and self.outer.wants(site) else probs

    def _sources(self, site: Site) -> set[str]:
        return {span.source for row in self.spans for span in row or ()} & set(site.key_slices)

    def _mask(self, site: Site, scores: Tensor) -> Tensor:
        """(B, 1, queries or 1, keys) bool: the key tokens, for queries that belong to the picture."""
        queries, keys = scores.shape[-2:]
        name = (site.kind, queries, keys, *((source, part.start, part.stop) for source, part in site.key_slices.items()))
        if name not in self._masks:
            mask = torch.zeros(len(self.spans), 1, 1, keys, dtype=torch.bool)
            for number, row in enumerate(self.spans):
                for span in row or ():
                    if (part := site.key_slices.get(span.source)) is not None:
                        mask[number, ..., part.start + span.start : min(part.start + span.stop, part.stop)] = True
            if site.kind == "joint":
                picture = torch.zeros(queries, 1, dtype=torch.bool)
                picture[site.key_slices["grid"]] = True
                mask = mask & picture
            self._masks[name] = mask.to(scores.device)
        return self._masks[name]
