"""Paint with words: phrases of a prompt told where they belong (eDiff-I, Balaji et al. 2022, arXiv:2211.01324, section 5.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Cond
from ..denoiser import Denoiser
from ..networks.attention import AttentionController, Site
from ..networks.control import key_mask, picture_queries
from ..recipes import recorded
from .controlled import ControlledDenoiser

__all__ = ["PaintWithWords", "PaintedDenoiser", "PaintedSpan", "painted"]


class PaintedSpan(NamedTuple):
    """A phrase and where it belongs: an entry of `Cond.spans` beside `diffx.text.TokenSpan`.

    Args:
        phrase, source, start, stop: as in `diffx.text.TokenSpan`.
        region: (H, W), not negative: 1 where the phrase belongs, 0 elsewhere; other values are strengths.
    """

    phrase: str
    source: str
    start: int
    stop: int
    region: Tensor


def painted(cond: Cond, regions: Mapping[str, Tensor]) -> Cond:
    """The same conditions, whose spans know where phrases belong.

    Args:
        cond: with spans (see `diffx.text.TextEncoder.spans`); all spans of a phrase are painted, in every source of text.
        regions: phrase -> (H, W) for all samples or (B, H, W), see `PaintedSpan`. Any size of the picture's proportions will do.

    Raises:
        ValueError: no spans, a phrase that is in none of a sample's spans, or a region of another number of axes or with negative values.
    """
    if not cond.spans:
        raise ValueError("painting needs to know where the phrases stand; give the batch 'spans' beside 'text', e.g. [['a red circle']]")
    for phrase, region in regions.items():
        if region.ndim not in (2, 3) or (region.ndim == 3 and len(region) != len(cond.spans)) or float(region.min()) < 0:
            raise ValueError(f"the region of {phrase!r} must be (H, W) or ({len(cond.spans)}, H, W) and not negative, got "
                             f"{tuple(region.shape)} with values from {float(region.min()):g}")  # fmt: skip
    return replace(cond, spans=[_row(number, row or [], regions) for number, row in enumerate(cond.spans)])


def _row(number: int, spans: list[Any], regions: Mapping[str, Tensor]) -> list[Any]:
    known = [span.phrase for span in spans]
    if missing := [phrase for phrase in regions if phrase not in known]:
        raise ValueError(f"there is no phrase {missing[0]!r} among the spans of sample {number}; they are {list(dict.fromkeys(known))}")

    def told(span: Any) -> Any:
        region = regions.get(span.phrase)
        return (
            span
            if region is None
            else PaintedSpan(span.phrase, span.source, span.start, span.stop, region if region.ndim == 2 else region[number])
        )

    return [told(span) for span in spans]


@recorded
@dataclass(frozen=True)
class PaintWithWords:
    """Raises the attention that the positions of a region pay to the tokens of its phrase, more so under strong noise.

    With the scaled logits s_ij of position i and token j, and A_ij the region of token j's phrase at position i (0 for other tokens), the
    logits before the softmax are ``s + weight * ln(1 + sigma) * size * A``. ``size`` is measured per sample, layer and call:

    | form | size |
    |---|---|
    | "max" | the largest logit over heads, positions and real tokens, at least 0; as published |
    | "std" | their standard deviation |

    Regions are averaged over the cells of each layer's map. Only samples that see the text and have a `PaintedSpan` (see `painted`) change;
    a weight of 0 changes nothing at all. Costs no evaluations.

    Args:
        weight: w' of the paper, at least 0.
        form: as in the table.

    Raises:
        ValueError: a negative weight or an unknown form; when called, a network without attention from positions to text, or a region of
            other proportions than the picture.
    """

    weight: float = 0.3
    form: Literal["max", "std"] = "max"

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.form not in ("max", "std"):
            raise ValueError(f"weight must be at least 0 and form 'max' or 'std', got {self.weight} and {self.form!r}")

    def __call__(self, denoiser: Denoiser) -> PaintedDenoiser:
        """The same denoiser, which puts phrases where the condition it is given wants them."""
        return PaintedDenoiser(denoiser, self)

    def size(self, scores: Tensor) -> Tensor:
        """(B, 1, 1, 1): the size of logits (B, heads, queries, keys), -inf where a key is masked."""
        flat = scores.flatten(1)
        if self.form == "max":
            return flat.amax(1).clamp(min=0).view(-1, 1, 1, 1)
        real = flat.isfinite()
        count, kept = real.sum(1), torch.where(real, flat, 0)
        mean = kept.sum(1) / count
        return ((torch.where(real, flat - mean[:, None], 0).square().sum(1) / count).sqrt()).view(-1, 1, 1, 1)


class PaintedDenoiser(ControlledDenoiser):
    """Stands for a denoiser; see `PaintWithWords`.

    Args:
        denoiser: the denoiser.
        brush: what happens in its attention.
    """

    unheard = (
        "painting with words needs a network whose positions attend to text (tokens= of a UNet, DiT or UViT); this one has no such layer"
    )

    def __init__(self, denoiser: Denoiser, brush: PaintWithWords) -> None:
        super().__init__(denoiser)
        self.brush = brush

    def controller(self, x: Tensor, sigma: Tensor, cond: Cond) -> AttentionController | None:
        if not self.brush.weight or not any(isinstance(span, PaintedSpan) for row in cond.spans or () for span in row or ()):
            return None
        return _Painter(self.brush, cond, sigma, tuple(x.shape[2:]))


class _Painter(AttentionController):
    """Acts for one call of a network."""

    def __init__(self, brush: PaintWithWords, cond: Cond, sigma: Tensor, size: tuple[int, ...]) -> None:
        self.brush, self.gain = brush, brush.weight * torch.log1p(sigma)
        self.rows = [[span for span in row or () if isinstance(span, PaintedSpan)] for row in cond.spans or ()]
        self.seen = {name: cond.visible(name).tolist() for name in cond.tokens}
        for span in (span for row in self.rows for span in row):
            if span.region.shape[0] * size[1] != span.region.shape[1] * size[0]:
                raise ValueError(
                    f"the region of {span.phrase!r} is {tuple(span.region.shape)}, which has not the proportions of the data {size}"
                )
        self._regions: dict[tuple[Any, ...], Tensor] = {}

    def wants(self, site: Site) -> bool:
        return site.kind != "self" and len(site.grid) == 2 and any(name in site.key_slices for name in self.seen)

    def scores(self, scores: Tensor, site: Site) -> Tensor:
        gain = self.gain.to(scores.dtype).view(-1, 1, 1, 1)
        return scores + gain * self.brush.size(scores) * self._region(site, scores)

    def _region(self, site: Site, scores: Tensor) -> Tensor:
        """(B, 1, queries, keys): A of the class's formula."""
        queries, keys = scores.shape[-2:]
        name = (site.grid, site.n_prefix, queries, keys, *((source, part.start, part.stop) for source, part in site.key_slices.items()))
        if name not in self._regions:
            told = scores.new_zeros(len(self.rows), 1, queries, keys)
            positions = picture_queries(site, queries).to(scores.device)
            for number, row in enumerate(self.rows):
                for span in row:
                    if self.seen[span.source][number]:
                        cells = F.interpolate(span.region[None, None].to(told), size=site.grid, mode="area").flatten()
                        columns = key_mask([[span]], site, keys)[0, 0, 0].to(scores.device)
                        told[number, 0, positions] += cells[:, None] * columns
            self._regions[name] = told
        return self._regions[name]
