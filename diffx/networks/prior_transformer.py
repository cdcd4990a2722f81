"""The network of a diffusion prior: a causal transformer that reads text and answers with a vector (Ramesh et al. 2022, arXiv:2204.06125).

Distinctive choices
- Everything is a token of one sequence: the text's own tokens, its pooled vector, the noise level, the noisy vector, and at last a learned
  query, whose state is the answer. Attention looks back only.
- No positions are added: encoders of text add theirs, and the other tokens are told apart by the maps they come from.
- A fresh network returns exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from .attention import AttentionController, Site, active_controller, attend
from .border import NO_COND, Conditions
from .embedders import NoiseEmbedding, VectorEmbedding
from .layers import zero
from .units import Unit

__all__ = ["PriorTransformer"]


@recorded
class PriorTransformer(nn.Module):
    """Denoiser of vectors that attends to token sources and vectors; hidden or absent tokens are not looked at.

    Args:
        features: length of the data vectors ``(B, features)``.
        width: of a token, divisible by ``heads``.
        depth: layers.
        heads: attention heads.
        tokens: source -> width of its states, e.g. of an encoder of text.
        vectors: name -> length of vectors that become a token each, e.g. the pooled text.

    Raises:
        ValueError: a width that the heads do not divide, condition names used twice.
    """

    def __init__(
        self, features: int, *, width: int = 512, depth: int = 6, heads: int = 8, tokens: Mapping[str, int] | None = None,
        vectors: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.features = features
        self.conditions = Conditions(vectors=dict(vectors or {}), tokens=dict(tokens or {}))
        sources = self.conditions.tokens
        self.sources = nn.ModuleDict({name: nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width)) for name, size in sources.items()})
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, width) for name, length in self.conditions.vectors.items())
        self.noise = NoiseEmbedding(width, width)
        self.data = nn.Linear(features, width)
        self.query = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(Layer(width, heads, f"layers.{i}") for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, features)
        zero(self.head)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled vectors ``(B, features)`` at noise coordinates ``(B,)`` to the same shape.

        Raises:
            ValueError: x or noise of another shape, or conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must be (B, {self.features}), got {tuple(x.shape)}")
        if noise.shape != x.shape[:1]:
            raise ValueError(f"noise must hold one level per sample, ({len(x)},), got {tuple(noise.shape)}")
        self.conditions.check(x, cond)
        dtype, batch = self.data.weight.dtype, len(x)
        told = {name: source(cond.tokens[name].to(dtype)) for name, source in self.sources.items() if name in cond.tokens}
        single = [
            *(vector(cond, batch) for vector in self.vectors),
            self.noise(noise),
            self.data(x.to(dtype)),
            self.query.expand(batch, -1),
        ]
        h = torch.cat([*told.values(), torch.stack(single, 1)], 1)
        real = [cond.mask(name) & cond.visible(name)[:, None] for name in told]
        mask = causal(torch.cat([*real, torch.ones(batch, len(single), dtype=torch.bool, device=x.device)], 1))
        slices, end = {}, 0
        for name, states in told.items():
            slices[name], end = slice(end, end + states.shape[1]), end + states.shape[1]
        control = active_controller()
        for layer in self.layers:
            h = layer(h, mask, Site("", "joint", (1,), h.shape[1] - 1, slices, noise), control)
        return self.head(self.norm(h[:, -1]))


class Layer(Unit):
    """Attention and perceptron, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int, layer: str) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, site: Site, control: AttentionController | None) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        read = attend(q, k, v, site._replace(layer=self.layer), mask=mask, control=control)
        x = x + self.out(rearrange(read, "b h n d -> b n (h d)"))
        return x + self.mlp(x)


def causal(real: Tensor) -> Tensor:
    """Which keys a query may look at, (B, 1, N, N): itself, and of the tokens before it those that are ``real`` (B, N)."""
    length = real.shape[1]
    back = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=real.device)
    return (back & (real[:, None] | itself))[:, None]
