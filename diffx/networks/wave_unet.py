"""A U-Net over waveforms for denoisers of sound, in the manner of Moûsai (Schneider et al. 2023, arXiv:2301.11757), small by default.

Distinctive choices
- Levels differ by any whole factor; one strided convolution goes down, its transpose goes up.
- Residual blocks are those of the image U-Net with a longer kernel; noise, label and vectors scale and shift their second normalisation.
- Attention stands where levels are named, the lowest by default; zero padding tells positions, nothing else does.
- Label, vectors, token sources and maps (a low-rate signal, a known part, a spectrogram at the rate of the samples) are all optional.
- A fresh network returns exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import CrossAttention, SelfAttention, active_controller, count_heads
from .blocks import Block
from .border import NO_COND, Conditions, check_sizes, concat_maps, cross_context
from .embedders import LabelEmbedding, NoiseEmbedding, VectorEmbedding, with_conditions
from .layers import Context, Norm, Pointwise, zero
from .unet import check_levels, name_attention
from .units import Unit

__all__ = ["WaveBlock", "WaveUNet"]


class WaveBlock(Unit):
    """Norm-SiLU-convolution twice around a residual, over time.

    Args:
        cin: channels of the input.
        cout: channels of the output.
        emb: width of the embedding that scales and shifts the second normalisation.
        kernel: odd length of the convolutions.
    """

    def __init__(self, cin: int, cout: int, emb: int, kernel: int) -> None:
        super().__init__()
        self.norm1 = Norm(cin)
        self.conv1 = nn.Conv1d(cin, cout, kernel, padding=kernel // 2)
        self.modulation = nn.Linear(emb, 2 * cout)
        self.norm2 = Norm(cout)
        self.conv2 = nn.Conv1d(cout, cout, kernel, padding=kernel // 2)
        self.skip = Pointwise(cin, cout) if cin != cout else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(context.emb)[:, :, None].chunk(2, 1)
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        return h + (x if self.skip is None else self.skip(x))


class Stride(Unit):
    """Change the rate by a whole factor, and the channels, with one convolution that overlaps its neighbours by half.

    Args:
        cin: channels of the input.
        cout: channels of the output.
        factor: at least 2.
        mode: ``"down"`` or ``"up"``.
    """

    def __init__(self, cin: int, cout: int, factor: int, mode: Literal["down", "up"]) -> None:
        super().__init__()
        odd, pad = factor % 2, factor // 2
        self.conv: nn.Module
        if mode == "down":
            self.conv = nn.Conv1d(cin, cout, 2 * factor + odd, stride=factor, padding=pad + odd)
        else:
            self.conv = nn.ConvTranspose1d(cin, cout, 2 * factor - odd, stride=factor, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@recorded
class WaveUNet(nn.Module):
    """U-Net over sound with label, vector, token and map conditions.

    Lengths must be divisible by the product of ``factors``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        widths: channels of each level, full rate first.
        factors: how much slower each further level runs; one fewer than ``widths``.
        blocks: residual blocks on a level each way, one number or one per level; the lowest level has twice as many in a row.
        kernel: odd length of the convolutions of blocks, stem and head.
        attention_levels: levels with self-attention after each block, counted from 0 = full rate, -1 = lowest.
        cross_levels: levels with cross-attention to the token sources, counted alike; None = ``attention_levels``.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        tokens: source -> width of token states for cross-attention.
        maps: name -> channels of signals that are concatenated to x, in this order; they have its length and lie in [-1, 1].
        head_dim: channels per attention head.
        emb: width of the embedding of noise, label and vectors.

    Raises:
        ValueError: options that do not fit each other: levels out of range, counts that differ, an even kernel, names used twice, tokens
            that no level attends to.
    """

    def __init__(
        self,
        channels: int = 1,
        out_channels: int | None = None,
        widths: Sequence[int] = (16, 32, 64, 96),
        factors: Sequence[int] = (4, 4, 4),
        blocks: int | Sequence[int] = 1,
        kernel: int = 5,
        attention_levels: Sequence[int] = (-1,),
        cross_levels: Sequence[int] | None = None,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        head_dim: int = 32,
        emb: int = 128,
    ) -> None:
        super().__init__()
        counts = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if len(factors) != len(widths) - 1 or len(counts) != len(widths):
            raise ValueError(f"widths names {len(widths)} levels, factors {len(factors)} steps between them, blocks {len(counts)} levels")
        if kernel % 2 == 0 or any(factor < 2 for factor in factors):
            raise ValueError(f"kernel must be odd and factors at least 2, got {kernel} and {tuple(factors)}")
        self.channels, self.divisor = channels, math.prod(factors)
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        attending = check_levels("attention_levels", attention_levels, len(widths))
        crossing = attending if cross_levels is None else check_levels("cross_levels", cross_levels, len(widths))
        if tokens and not crossing:
            raise ValueError(f"no level attends to the tokens {list(tokens)}; name some in cross_levels")

        def row(level: int, cin: int, count: int) -> nn.ModuleList:
            width = widths[level]
            heads = count_heads(width, head_dim) if level in attending | crossing else 0
            return nn.ModuleList(
                Block(
                    WaveBlock(width if i else cin, width, emb, kernel),
                    SelfAttention(width, heads) if level in attending else None,
                    CrossAttention(width, heads, tokens) if tokens and level in crossing else None,
                )
                for i in range(count)
            )

        upper = range(len(factors))
        self.noise = NoiseEmbedding(emb // 2, emb)
        self.label = LabelEmbedding(classes, emb) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, emb) for name, length in self.conditions.vectors.items())
        self.stem = nn.Conv1d(channels + sum(self.conditions.maps.values()), widths[0], kernel, padding=kernel // 2)
        self.encoder = nn.ModuleList(row(level, widths[level], counts[level]) for level in upper)
        self.down = nn.ModuleList(Stride(widths[level], widths[level + 1], factors[level], "down") for level in upper)
        self.middle = row(len(factors), widths[-1], 2 * counts[-1])
        self.up = nn.ModuleList(Stride(widths[level + 1], widths[level], factors[level], "up") for level in upper)
        self.decoder = nn.ModuleList(row(level, 2 * widths[level], counts[level]) for level in upper)
        self.norm = Norm(widths[0])
        self.head = nn.Conv1d(widths[0], out_channels or channels, kernel, padding=kernel // 2)
        name_attention(self)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Zero what closes each residual branch and the head; everything else keeps torch's uniform law."""
        for module in self.modules():
            if isinstance(module, WaveBlock):
                zero(module.conv2)
            elif isinstance(module, (SelfAttention, CrossAttention)):
                zero(module.out)
        zero(self.head)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled sound ``(B, channels, L)`` at noise coordinates ``(B,)`` to ``(B, out_channels, L)``.

        Raises:
            ValueError: a length that does not divide, or conditions the network does not know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (self.divisor,))
        self.conditions.check(x, cond)
        dtype = self.stem.weight.dtype
        x = concat_maps(x.to(dtype), cond, tuple(self.conditions.maps))
        context = Context(
            self.embed(noise, cond), noise, *cross_context(cond, tuple(self.conditions.tokens), dtype), control=active_controller()
        )
        return self.head(F.silu(self.norm(self.body(self.stem(x), context))))

    def body(self, x: Tensor, context: Context) -> Tensor:
        """The U between stem and head: the last map of each level is concatenated to what comes up to it."""
        skips = []
        for row, down in zip(self.encoder, self.down, strict=True):
            x = _through(row, x, context)
            skips.append(x)
            x = down(x)
        x = _through(self.middle, x, context)
        for row, up in zip(reversed(self.decoder), reversed(self.up), strict=True):
            x = _through(row, torch.cat([up(x), skips.pop()], 1), context)
        return x

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, emb)`` of noise, label and vectors that modulates every block."""
        return F.silu(with_conditions(self.noise(noise), cond, self.label, self.vectors))


def _through(row: nn.Module, x: Tensor, context: Context) -> Tensor:
    for block in row.children():
        x = block(x, context)
    return x
