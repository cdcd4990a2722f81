"""Paella's published network over a grid of tokens: a U-Net of ConvNeXt blocks (Rampas et al. 2022, arXiv:2211.07292).

Distinctive choices
- Squares of ``patch`` x ``patch`` tokens become the channels of one place; each further level halves the grid.
- Depthwise convolution, norm, perceptron with global response normalisation (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808).
- The share of random tokens scales and shifts after every block, at first by nothing.
- Attention reads the map itself and all conditions in one sequence: text token by token, a vector as a few tokens, a label as one.
  What is hidden or absent is masked out.
- Norms have no parameters; the head begins as the table of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from ..tokenizers import check_ids
from .attention import Site, active_controller, attend
from .border import NO_COND, Conditions
from .embedders import sinusoid
from .layers import Context, Pointwise
from .units import Unit

__all__ = ["TokenConvNeXt"]

EPS = 1e-6


@recorded
class TokenConvNeXt(nn.Module):
    """Logits of every token given all of them, some random: ``(ids (B, h, w), share (B,), cond) -> (B, h, w, codes)``.

    Args:
        codes: size of the codebook.
        features: length of a token's vector.
        patch: side of the squares of tokens that the first level sees as one place.
        widths: channels of each level.
        blocks: blocks of each level, each way.
        heads: attention heads of each level, 0 = no attention there.
        width: of the conditions' tokens.
        waves: of the share's embedding.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors, each of which becomes ``vector_tokens`` tokens.
        tokens: source -> width of token states.
        vector_tokens: how many.
        dropout: rate inside the perceptrons.

    Raises:
        ValueError: lists of different length, heads that do not divide a width, conditions without a level that attends.
    """

    def __init__(
        self,
        codes: int,
        *,
        features: int = 256,
        patch: int = 2,
        widths: Sequence[int] = (640, 1280, 1280),
        blocks: Sequence[int] = (6, 16, 6),
        heads: Sequence[int] = (0, 16, 16),
        width: int = 1024,
        waves: int = 64,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        vector_tokens: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not len(widths) == len(blocks) == len(heads) or any(count and size % count for size, count in zip(widths, heads, strict=True)):
            raise ValueError(
                f"widths, blocks and heads name the same levels, and heads divide their width; got {tuple(widths)}, {tuple(blocks)} "
                f"and {tuple(heads)}"
            )
        self.codes, self.patch, self.waves, self.vector_tokens = codes, patch, waves, vector_tokens
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}))
        if self.conditions.names and not any(heads):
            raise ValueError(f"no level attends to {list(self.conditions.names)}; give one heads")
        self.table = nn.Embedding(codes, features)
        self.told = nn.ModuleDict({name: nn.Linear(size, width) for name, size in self.conditions.tokens.items()})
        self.told.update({name: nn.Linear(size, vector_tokens * width) for name, size in self.conditions.vectors.items()})
        self.label = nn.Embedding(classes, width) if classes else None
        self.stem = Pointwise(features * patch**2, widths[0])
        levels = range(len(widths))

        def row(level: int, joined: bool, place: str) -> nn.ModuleList:
            size = widths[level]
            return nn.ModuleList(
                ConvNeXtBlock(size, size if joined and j == 0 else 0, width, heads[level], waves, dropout, f"{place}.{level}.{j}")
                for j in range(blocks[level])
            )

        self.encoder = nn.ModuleList(row(level, False, "encoder") for level in levels)
        self.decoder = nn.ModuleList(row(level, level < len(widths) - 1, "decoder") for level in levels)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.out = Pointwise(widths[0], features * patch**2)
        self.head = nn.Linear(features, codes, bias=False)
        self.initialise()

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """The released model: 8,192 codes, told by ByT5's states and by CLIP's embeddings of text and picture."""
        conditions = {"tokens": {"byt5": 1536}, "vectors": {"clip_text": 1024, "clip_image": 1024}}
        return cls(**{"codes": 8192, **conditions, **changes})

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier's uniform law; what modulates and the response normalisation are zero; head and table are equal."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ConvNeXtBlock):
                nn.init.zeros_(module.modulation.weight)
        nn.init.normal_(self.table.weight, std=self.table.embedding_dim**-0.5)
        self.head.weight.copy_(self.table.weight)

    def forward(self, ids: Tensor, share: Tensor, cond: Cond | None = None) -> Tensor:
        """Logits ``(B, h, w, codes)`` of ids ``(B, h, w)`` of which the shares ``(B,)`` in [0, 1] are random.

        Raises:
            ValueError: ids outside the codebook or not on a grid that divides, conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        step = self.patch * 2 ** len(self.down)
        if ids.ndim != 3 or any(side % step for side in ids.shape[1:]):
            raise ValueError(f"ids must be (B, h, w) with sides that {step} divides, got {tuple(ids.shape)}")
        check_ids(ids, self.codes)
        self.conditions.check(ids, cond)
        x = _norm(self.table(ids)).movedim(-1, 1)
        told, mask = self.told_tokens(cond, len(ids), x.dtype)
        context = Context(sinusoid(10_000 * share, self.waves).to(x.dtype), share, told, mask, active_controller())
        x = _over_channels(self.stem(F.pixel_unshuffle(x, self.patch)))
        x = F.pixel_shuffle(self.out(_over_channels(self.body(x, context))), self.patch)
        return self.head(_norm(x.movedim(1, -1)))

    def body(self, x: Tensor, context: Context) -> Tensor:
        """The U: the last map of each level is joined to what comes up to it."""
        kept: list[Tensor] = []
        for level, row in enumerate(self.encoder):
            x = self.down[level - 1](_over_channels(x)) if level else x
            for block in _blocks(row):
                x = block(x, context)
            kept.append(x)
        for level in reversed(range(len(self.decoder))):
            joined = None if level == len(kept) - 1 else kept[level]
            for block in _blocks(self.decoder[level]):
                x, joined = block(x, context, joined), None
            x = self.up[level - 1](_over_channels(x)) if level else x
        return x

    def told_tokens(self, cond: Cond, batch: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
        """Condition -> its tokens ``(B, L, width)``, normalised, and the mask ``(B, sum of L)`` over them; None when all may be seen."""
        told, masks = {}, []
        if self.label is not None and cond.label is not None:
            seen = cond.label != self.conditions.classes
            told["label"] = self.label(torch.where(seen, cond.label, 0))[:, None]
            masks.append((seen & cond.visible("label"))[:, None])
        for name in self.conditions.vectors:
            if name in cond.vectors:
                told[name] = self.told[name](cond.vectors[name].to(dtype)).unflatten(1, (self.vector_tokens, -1))
                masks.append(cond.visible(name)[:, None].expand(-1, self.vector_tokens))
        for name in self.conditions.tokens:
            if name in cond.tokens:
                told[name] = self.told[name](cond.tokens[name].to(dtype))
                masks.append(cond.mask(name) & cond.visible(name)[:, None])
        return {name: _norm(value.to(dtype)) for name, value in told.items()}, torch.cat(masks, 1) if masks else None


class ConvNeXtBlock(Unit):
    """Convolution block, modulation by the share of random tokens, attention to map and conditions where there are heads.

    Args:
        size: channels.
        joined: channels of the map that is joined from the way down, 0 = none.
        told: width of the conditions' tokens.
        heads: attention heads, 0 = no attention.
        waves: of the share's embedding.
        dropout: rate inside the perceptron.
        layer: dotted name.
    """

    def __init__(self, size: int, joined: int, told: int, heads: int, waves: int, dropout: float, layer: str) -> None:
        super().__init__()
        self.heads, self.layer = heads, f"{layer}.attention"
        self.depthwise = nn.Conv2d(size + joined, size, 3, padding=1, groups=size)
        self.widen, self.narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.gamma, self.beta = nn.Parameter(torch.zeros(4 * size)), nn.Parameter(torch.zeros(4 * size))
        self.drop = nn.Dropout(dropout)
        self.modulation = nn.Linear(waves, 2 * size)
        if heads:
            self.told = nn.Linear(told, size)
            self.query, self.kv, self.project = nn.Linear(size, size), nn.Linear(size, 2 * size), nn.Linear(size, size)

    def forward(self, x: Tensor, context: Context, joined: Tensor | None = None) -> Tensor:
        h = x if joined is None else torch.cat([x, joined], 1)
        h = F.gelu(self.widen(_norm(self.depthwise(h).movedim(1, -1))))
        strength = h.float().square().sum((1, 2), keepdim=True).sqrt()
        h = torch.addcmul(h + self.beta, self.gamma * h, (strength / (strength.mean(-1, keepdim=True) + EPS)).to(h.dtype))
        x = x + self.narrow(self.drop(h)).movedim(-1, 1)
        scale, shift = self.modulation(context.emb)[:, :, None, None].chunk(2, 1)
        x = torch.addcmul(shift, x, 1 + scale)
        return self._attended(x, context) if self.heads else x

    def _attended(self, x: Tensor, context: Context) -> Tensor:
        own = _norm(x.flatten(2).transpose(1, 2))
        rows, slices, end = [own], {"grid": slice(0, own.shape[1])}, own.shape[1]
        for name, told in context.tokens.items():
            rows.append(self.told(F.silu(told)))
            slices[name] = slice(end, end := end + told.shape[1])
        k, v = self.kv(torch.cat(rows, 1)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.query(own).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mask = None
        if context.mask is not None:
            mask = torch.cat([context.mask.new_ones(own.shape[:2]), context.mask], 1)[:, None, None]
        site = Site(self.layer, "joint", tuple(x.shape[2:]), 0, slices, context.noise)
        read = self.project(attend(q, k, v, site, mask=mask, control=context.control).transpose(1, 2).flatten(2))
        return x + read.transpose(1, 2).unflatten(2, x.shape[2:])


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def _over_channels(x: Tensor) -> Tensor:
    return _norm(x.movedim(1, -1)).movedim(-1, 1)


def _blocks(row: nn.Module) -> Iterator[nn.Module]:
    return row.children()
