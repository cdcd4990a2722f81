"""The waveform U-Net of Moûsai (Schneider et al. 2023, arXiv:2301.11757), in the layout of archinet's libraries.

Distinctive choices
- Every level runs the same items on both ways: residual block, modulation by the noise level, and on the deep levels attention.
- Modulation is a normalisation over channels without weights, scaled and shifted; skips are added, after a factor that the noise sets.
- The noise level, as fixed waves of learned frequencies, goes twice through one and the same layer.
- The output is the input plus what the U makes of it: a fresh network returns no zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, Conditions, check_sizes, concat_maps
from .embedders import LabelEmbedding, VectorEmbedding, with_conditions
from .units import Unit

__all__ = ["MousaiUNet"]

WAVES = 128
HEADS, HEAD = 8, 64


class Residual(Unit):
    """GroupNorm, SiLU, convolution over 3, twice, around a residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), nn.Conv1d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Modulation(Unit):
    """Normalise over channels, scale and shift by the embedding."""

    def __init__(self, width: int, emb: int) -> None:
        super().__init__()
        self.width, self.scale_shift = width, nn.Linear(emb, 2 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.scale_shift(F.silu(emb))[:, :, None].chunk(2, 1)
        normal = F.layer_norm(x.transpose(1, 2), (self.width,), eps=1e-6).transpose(1, 2)
        return torch.addcmul(shift, normal, 1 + scale)


class WideAttention(Unit):
    """Self-attention over time with heads of fixed width, however many channels come; queries and keys have norms of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.told = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, HEADS * HEAD, bias=False)
        self.kv = nn.Linear(width, 2 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, width, bias=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        tokens = x.transpose(1, 2)
        q = self.query(self.norm(tokens)).unflatten(2, (HEADS, HEAD)).transpose(1, 2)
        k, v = self.kv(self.told(tokens)).unflatten(2, (2, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).transpose(1, 2)


class Level(nn.Module):
    """One level and all below it, around a skip: (B, cin, L) to (B, cout, L).

    Args:
        cin: channels of the input.
        cout: channels of the output.
        width: channels of the level.
        factor: how much slower it runs.
        items: residual blocks each way.
        attends: whether attention follows each.
        emb: width of the embedding.
        groups: of the GroupNorms.
        below: the next level, from ``width`` channels to as many.
    """

    def __init__(
        self, cin: int, cout: int, width: int, factor: int, items: int, attends: bool, *, emb: int, groups: int, below: nn.Module | None
    ) -> None:
        super().__init__()

        def row() -> nn.ModuleList:
            kinds = [lambda: Residual(width, groups), lambda: Modulation(width, emb), *([lambda: WideAttention(width)] if attends else [])]
            return nn.ModuleList(make() for _ in range(items) for make in kinds)

        self.factor = factor
        self.adapter = nn.Conv1d(cin, cout, 1) if cin != cout else None
        self.down, self.before = nn.Conv1d(cin, width, factor, stride=factor), row()
        self.below = below
        self.after, self.up = row(), nn.Conv1d(width, cout, 3, padding=1)
        self.scale = nn.Linear(emb, cout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.down(x)
        for item in self.before.children():
            h = item(h, emb)
        if self.below is not None:
            h = self.below(h, emb)
        for item in self.after.children():
            h = item(h, emb)
        h = self.up(h.repeat_interleave(self.factor, -1))
        return (x if self.adapter is None else self.adapter(x)) + self.scale(F.silu(emb))[:, :, None] * h


@recorded
class MousaiUNet(nn.Module):
    """U-Net over sound with label, vector and map conditions; its defaults are the published network for stereo clips of 2^18 samples.

    Made for v at the noise coordinate ``2 / pi atan(sigma)``. Lengths must be divisible by the product of ``factors``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        widths: channels of each level.
        factors: how much slower each level runs than the one above it, the first than the data.
        items: residual blocks of each level, each way.
        attention_levels: how many of the deepest levels attend.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        maps: name -> channels of signals that are concatenated to x, in this order; they have its length and lie in [-1, 1].
        emb: width of the embedding.
        groups: of the GroupNorms; must divide all widths.

    Raises:
        ValueError: counts that differ, or groups that do not divide.
    """

    def __init__(
        self,
        channels: int = 2,
        out_channels: int | None = None,
        widths: Sequence[int] = (8, 32, 64, 128, 256, 512, 512, 1024, 1024),
        factors: Sequence[int] = (1, 4, 4, 4, 2, 2, 2, 2, 2),
        items: Sequence[int] = (1, 2, 2, 2, 2, 2, 2, 4, 4),
        attention_levels: int = 4,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        emb: int = 1024,
        groups: int = 8,
    ) -> None:
        super().__init__()
        depth = len(widths)
        if not depth == len(factors) == len(items) or any(width % groups for width in widths):
            raise ValueError(
                f"widths, factors and items must name as many levels and groups={groups} divide all widths; "
                f"got {tuple(widths)}, {tuple(factors)} and {tuple(items)}"
            )
        self.channels, self.out_channels, self.divisor = channels, out_channels or channels, math.prod(factors)
        self.conditions = Conditions(classes, dict(vectors or {}), {}, dict(maps or {}))
        self.frequencies = nn.Parameter(torch.randn(WAVES))
        self.first, self.again = nn.Linear(2 * WAVES + 1, emb), nn.Linear(emb, emb)
        self.label = LabelEmbedding(classes, emb) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, emb) for name, length in self.conditions.vectors.items())
        below: Level | None = None
        for i in reversed(range(depth)):
            cin, cout = (widths[i - 1],) * 2 if i else (channels + sum(self.conditions.maps.values()), self.out_channels)
            attends = i >= depth - attention_levels
            below = Level(cin, cout, widths[i], factors[i], items[i], attends, emb=emb, groups=groups, below=below)
        self.top = below

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled sound ``(B, channels, L)`` at noise coordinates ``(B,)`` to ``(B, out_channels, L)``.

        Raises:
            ValueError: a length that does not divide, or conditions the network does not know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (self.divisor,))
        self.conditions.check(x, cond)
        assert self.top is not None
        return self.top(concat_maps(x.to(self.first.weight.dtype), cond, tuple(self.conditions.maps)), self.embed(noise, cond))

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, emb)`` of noise, label and vectors."""
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))[:, None]
        angle = 2 * math.pi * noise * self.frequencies.to(noise.dtype)
        emb = self.first(torch.cat([noise, angle.sin(), angle.cos()], 1).to(self.first.weight.dtype))
        for _ in range(2):
            emb = F.gelu(self.again(emb))
        return with_conditions(emb, cond, self.label, self.vectors)
