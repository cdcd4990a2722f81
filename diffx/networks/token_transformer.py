"""MaskGIT's transformer over a grid of tokens (Chang et al. 2022, arXiv:2202.04200).

Distinctive choices
- Codes, classes and the mask are rows of one table; the class is the first token of the sequence, and a hidden class is a masked one.
- Blocks in the manner of BERT: the norm comes after the residual is added.
- The head compares with the same table, plus a bias; what are not codes is cut off.
- Text enters every layer by cross-attention between attention and perceptron (Chang et al. 2023, Muse, arXiv:2301.00704).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from ..tokenizers import check_ids
from .attention import Site, TokenAttention, active_controller, attend
from .border import NO_COND, Conditions, cross_context
from .layers import Context
from .units import Unit

__all__ = ["TokenTransformer"]

PUBLISHED: dict[str, dict[str, Any]] = {
    "maskgit_256": {"grid": (16, 16)},
    "maskgit_512": {"grid": (32, 32)},
}


@recorded
class TokenTransformer(nn.Module):
    """Logits of every token given the others: ``(ids (B, h, w), cond) -> (B, h, w, codes)``.

    Ids lie in [0, codes), or are ``mask`` where a token is hidden.

    Args:
        codes: size of the codebook.
        grid: (h, w) of the ids.
        width: of a token, divisible by ``heads``.
        depth: layers.
        heads: attention heads.
        mlp: hidden width of a layer's perceptron; None = 4 x ``width``.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        dropout: rate in the embedding and in the branches of a layer.
        tokens: source -> width of token states, which every layer attends to.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, codes: int, grid: Sequence[int], *, width: int = 768, depth: int = 24, heads: int = 16, mlp: int | None = None,
                 classes: int = 0, dropout: float = 0.1, tokens: Mapping[str, int] | None = None) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.codes, self.grid = codes, tuple(grid)
        self.conditions = Conditions(classes, tokens=dict(tokens or {}))
        self.mask = codes + classes
        length = self.grid[0] * self.grid[1] + bool(classes)
        self.table = nn.Embedding(self.mask + 1, width)
        self.position = nn.Parameter(torch.empty(length, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)
        sources = self.conditions.tokens
        self.layers = nn.ModuleList(Layer(width, heads, mlp or 4 * width, dropout, sources, f"layers.{i}") for i in range(depth))
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(self.mask + 1))
        self._initialise()

    @classmethod
    def published(cls, name: str, **changes: Any) -> Self:
        """Sizes of the released models: ``"maskgit_256"`` and ``"maskgit_512"``, 1,024 codes and 1,000 classes."""
        if name not in PUBLISHED:
            raise ValueError(f"published sizes are {sorted(PUBLISHED)}, got {name!r}")
        return cls(**{"codes": 1024, "width": 768, "depth": 24, "heads": 16, "mlp": 3072, "classes": 1000, **PUBLISHED[name], **changes})

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, cond: Cond = NO_COND) -> Tensor:
        if tuple(ids.shape[1:]) != self.grid:
            raise ValueError(f"ids must be (B, {self.grid[0]}, {self.grid[1]}), got {tuple(ids.shape)}")
        known = torch.where(ids == self.mask, 0, ids)
        check_ids(known, self.codes)
        self.conditions.check(ids, cond)
        tokens = ids.flatten(1)
        if self.conditions.classes:
            tokens = torch.cat([self._class(cond, ids), tokens], 1)
        x = self.drop(self.norm(self.table(tokens) + self.position))
        states, mask = cross_context(cond, tuple(self.conditions.tokens), x.dtype)
        hidden = (ids == self.mask).flatten(1).to(x.dtype).mean(1)
        context = Context(x[:, 0], hidden, states, mask, active_controller())
        for layer in self.layers:
            x = layer(x, context, self.grid)
        x = x[:, 1:] if self.conditions.classes else x
        x = self.head_norm(F.gelu(self.head(x)))
        logits = F.linear(x, self.table.weight[: self.codes], self.bias[: self.codes])
        return logits.unflatten(1, self.grid)

    def _class(self, cond: Cond, ids: Tensor) -> Tensor:
        """The class token ``(B, 1)``; hidden or absent it is the mask."""
        if cond.label is None:
            return torch.full((len(ids), 1), self.mask, device=ids.device)
        token = self.codes + cond.label  # the null label, index ``classes``, lands on the mask
        return torch.where(cond.visible("label"), token, self.mask)[:, None]


class Layer(Unit):
    """Attention, attention to text if there is any, and perceptron, each followed by a norm of the sum."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, sources: Mapping[str, int], layer: str) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.cross = TokenAttention(width, heads, sources, nn.LayerNorm(width, eps=1e-12)) if sources else None
        if self.cross is not None:
            self.cross.layer = f"{layer}.cross"
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Context, grid: tuple[int, ...]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        length, ahead = x.shape[1], x.shape[1] - grid[0] * grid[1]
        site = Site(self.layer, "self", grid, ahead, {"grid": slice(ahead, length)}, context.noise)
        x = self.norm(x + self.drop(self.out(attend(q, k, v, site, control=context.control).transpose(1, 2).flatten(2))))
        if self.cross is not None:
            x = self.cross.norm(x + self.drop(self.cross.read(x, context, grid, ahead)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))
