"""Where a prompt's words are looked for: attention to them while pictures are drawn, averaged over steps, layers and heads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import ControlledDenoiser
from ..networks.attention import AttentionController, Site
from ..networks.control import picture_queries

__all__ = ["Attended", "WatchedAttention"]


class Attended(NamedTuple):
    """Pictures, and where their words were looked for.

    Args:
        pictures: (B, C, H, W) in [-1, 1].
        maps: (B, P, h, w) in [0, 1], one map for each phrase on the finest grid that attends, 1 = the most of that phrase.
        phrases: the phrases of each picture, in the order of its maps; where another picture has more, the rest of the maps are 0.
    """

    pictures: Tensor
    maps: Tensor
    phrases: list[list[str]]


class WatchedAttention(ControlledDenoiser):
    """A denoiser that remembers its attention to the phrases of ``cond.spans`` in rows that see them, and changes nothing.

    Args:
        denoiser: the denoiser.
        cond: conditions of the run, with spans.

    Raises:
        ValueError: conditions without spans.
    """

    def __init__(self, denoiser: Denoiser, cond: Cond) -> None:
        super().__init__(denoiser)
        if not any(cond.spans or ()):
            raise ValueError("attention is shown by phrase, but the conditions hold no spans; ask for them by Editor.told(words=True)")
        self.phrases = [list(dict.fromkeys(span.phrase for span in row or ())) for row in cond.spans or ()]
        self.seen: dict[tuple[int, ...], Tensor] = {}

    def controller(self, x: Tensor, sigma: Tensor, cond: Cond) -> AttentionController | None:
        visible = torch.stack([cond.visible(name) for name in cond.tokens]).any(0).tolist() if cond.tokens else [False] * len(x)
        rows = [i for i, row in enumerate(cond.spans or ()) if row and visible[i]]
        if len(rows) != sum(map(bool, self.phrases)):
            return None  # the call of guidance that hides the prompts
        return _Watch(self, rows, [list(row or ()) for row in cond.spans or ()])

    def maps(self) -> Tensor:
        """What was seen so far: (B, P, h, w) in [0, 1].

        Raises:
            ValueError: nothing, because the network does not attend to text.
        """
        if not self.seen:
            raise ValueError("there is no attention of a picture to text in this network to be shown (tokens= of a UNet, DiT, UViT or RIN)")
        finest = max(self.seen, key=math.prod)
        total = torch.stack([F.interpolate(seen, size=finest, mode="bilinear") for seen in self.seen.values()]).sum(0)
        return total / total.amax((2, 3), keepdim=True).clamp_min(1e-12)


class _Watch(AttentionController):
    """Acts for one call of a network."""

    def __init__(self, watched: WatchedAttention, rows: list[int], spans: list[list[Any]]) -> None:
        self.watched, self.rows, self.spans = watched, rows, spans

    def wants(self, site: Site) -> bool:
        return site.kind in ("cross", "joint") and len(site.grid) == 2 and any(
            span.source in site.key_slices for row in self.rows for span in self.spans[row]
        )  # fmt: skip

    def probs(self, probs: Tensor, site: Site) -> Tensor:
        places = picture_queries(site, probs.shape[2])
        owners = [i for i, phrases in enumerate(self.watched.phrases) if phrases]
        seen = probs.new_zeros(len(self.watched.phrases), max(map(len, self.watched.phrases)), *site.grid)
        for row, owner in zip(self.rows, owners, strict=True):
            for span in self.spans[row]:
                if (part := site.key_slices.get(span.source)) is not None:
                    at = self.watched.phrases[owner].index(span.phrase)
                    share = probs[row][:, places, part.start + span.start : part.start + span.stop].sum(-1).mean(0)
                    seen[owner, at] += share.view(site.grid)
        before = self.watched.seen.get(site.grid)
        self.watched.seen[site.grid] = seen if before is None else before + seen
        return probs
