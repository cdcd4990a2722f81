"""U-ViT of simple diffusion: convolutions on the fine levels, a transformer at the bottom (Hoogeboom et al. 2023, arXiv:2301.11093).

Distinctive choices
- Width and depth are spent at the lowest resolution only, where they are cheap; the fine levels carry what must not be lost.
- The fine levels are joined by skips, the transformer has none beside its residuals; its layers are DiT's (adaLN-Zero).
- Positions are learned, and stretched over other sizes if asked for.
- A large picture may enter folded: ``patch`` moves squares of pixels into channels, without loss.
- A fresh network returns exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import active_controller
from .blocks import BlockStyle, ResBlock, closing_layers
from .border import NO_COND, Conditions, check_input, concat_maps, cross_context, refuse_grid
from .dit import Block
from .embedders import LabelEmbedding, NoiseEmbedding, VectorEmbedding, with_conditions
from .layers import Context, Norm, Pointwise, Resample, zero
from .patches import stretched

__all__ = ["UViT"]


@recorded
class UViT(nn.Module):
    """Convolutional levels around a transformer, over images with label, vector, token and map conditions.

    Side lengths must be divisible by ``patch * 2 ** len(mults)``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        size: side length, or (height, width), of x that the positions are laid out for.
        width: channels of level 0 before ``mults``.
        mults: multiples of ``width``, one per convolutional level; each level has half the side lengths of the one above it, the
            transformer half those of the last.
        blocks: residual blocks per level on either way.
        middle: width of the transformer and of the embedding, divisible by ``heads``.
        depth: layers of the transformer.
        heads: attention heads.
        mlp_ratio: hidden width of a layer in multiples of ``middle``.
        patch: squares of this side enter as channels.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        tokens: source -> width of token states, which the transformer attends to.
        maps: name -> channels of maps that are concatenated to x, in this order; of the size of x and, like data, in [-1, 1].
        other_sizes: what happens to x of another size than ``size``: an error, or the positions are stretched over it.

    Raises:
        ValueError: a width or size that does not divide, an unknown ``other_sizes``, condition names used twice.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        size: int | Sequence[int] = 64,
        width: int = 128,
        mults: Sequence[int] = (1, 2),
        blocks: int = 2,
        middle: int = 512,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        patch: int = 1,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        other_sizes: Literal["refuse", "stretch"] = "refuse",
    ) -> None:
        super().__init__()
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.divisor = patch * 2 ** len(mults)
        if any(side % self.divisor for side in size):
            raise ValueError(f"size must be divisible by patch * 2^levels = {self.divisor}, got {size}")
        if middle % heads:
            raise ValueError(f"middle = {middle} must be divisible by heads = {heads}")
        if other_sizes not in ("refuse", "stretch"):
            raise ValueError(f"other_sizes is 'refuse' or 'stretch', got {other_sizes!r}")
        self.channels, self.out_channels, self.patch = channels, channels if out_channels is None else out_channels, patch
        self.grid, self.other_sizes = tuple(side // self.divisor for side in size), other_sizes
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        self.noise = NoiseEmbedding(width, middle)
        self.label = LabelEmbedding(classes, middle) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, middle) for name, length in self.conditions.vectors.items())
        widths, style, folded = [mult * width for mult in mults], BlockStyle(middle), patch * patch
        self.stem = nn.Conv2d(folded * (channels + sum(self.conditions.maps.values())), widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for here, below in zip(widths, [*widths[1:], middle], strict=True):
            self.down.append(Down(here, below, blocks, style))
            self.up.insert(0, Up(below, here, blocks, style))
        self.positions = nn.Parameter(torch.empty(1, middle, *self.grid))
        sources = self.conditions.tokens
        self.layers = nn.ModuleList(Block(middle, heads, int(middle * mlp_ratio), f"layers.{i}", sources) for i in range(depth))
        self.norm = Norm(widths[0])
        self.head = nn.Conv2d(widths[0], folded * self.out_channels, 3, padding=1)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Zero what closes each residual branch, what modulates the transformer, and the head; positions N(0, 0.02)."""
        layers: Any = self.layers
        nn.init.trunc_normal_(self.positions, std=0.02)
        zero(*closing_layers(self), *(layer.adaLN_modulation[1] for layer in layers), self.head)
        zero(*(layer.cross.out for layer in layers if layer.cross is not None))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled data ``(B, channels, H, W)`` at noise coordinates ``(B,)`` to ``(B, out_channels, H, W)``.

        Raises:
            ValueError: sizes that do not divide or that the positions are not made for, or conditions the network does not know (see
                `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_input(x, noise, self.channels, self.divisor)
        self.conditions.check(x, cond)
        grid = (x.shape[2] // self.divisor, x.shape[3] // self.divisor)
        positions, dtype = self._positions(x, grid), self.head.weight.dtype
        tokens, mask = cross_context(cond, tuple(self.conditions.tokens), dtype)
        inner = Context(self.embed(noise, cond), noise, tokens, mask, active_controller())
        outer = inner._replace(emb=F.silu(inner.emb))
        x = F.pixel_unshuffle(concat_maps(x.to(dtype), cond, tuple(self.conditions.maps)), self.patch)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x, outer, skips)
        sequence = (x + positions).flatten(2).transpose(1, 2)
        for layer in self.layers:
            sequence = layer(sequence, inner, grid)
        x = sequence.transpose(1, 2).unflatten(2, grid)
        for level in self.up:
            x = level(x, outer, skips)
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, middle)`` of noise, label and vectors that modulates every block, before its activation."""
        return with_conditions(self.noise(noise), cond, self.label, self.vectors)

    def _positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.positions
        if self.other_sizes == "refuse":
            refuse_grid(x, grid, self.grid, (self.divisor, self.divisor), "'stretch'")
        return stretched(self.positions, grid)


class Down(nn.Module):
    """Residual blocks, each of whose outputs is kept as a skip, then half the side lengths and the next width."""

    def __init__(self, width: int, below: int, blocks: int, style: BlockStyle) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(width, width, style) for _ in range(blocks))
        self.shrink, self.widen = Resample("down"), Pointwise(width, below)

    def forward(self, x: Tensor, context: Context, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
            skips.append(x)
        return self.widen(self.shrink(x))


class Up(nn.Module):
    """Twice the side lengths and the width of the level, then residual blocks over x and a skip each."""

    def __init__(self, below: int, width: int, blocks: int, style: BlockStyle) -> None:
        super().__init__()
        self.narrow, self.grow = Pointwise(below, width), Resample("up")
        self.blocks = nn.ModuleList(ResBlock(2 * width, width, style) for _ in range(blocks))

    def forward(self, x: Tensor, context: Context, skips: list[Tensor]) -> Tensor:
        x = self.grow(self.narrow(x))
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], 1), context)
        return x
