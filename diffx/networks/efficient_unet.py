"""The Efficient U-Net of Imagen (Saharia et al. 2022, arXiv:2205.11487): few blocks where pictures are large, many below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..recipes import recorded
from .attention import count_heads
from .blocks import BlockStyle, ConvResample, Place, ResBlock, UBody, block_maker, joined
from .border import Conditions
from .layers import Context
from .unet import UShell, blocks_per_level, check_levels, name_attention
from .units import Unit

__all__ = ["EfficientUNet"]


@recorded
class EfficientUNet(UShell):
    """U-Net whose every level begins by halving the resolution and ends by doubling it, so that no level works at the full one.

    At full resolution stand only the stem and one residual block before the head. Level 0 works at half the side lengths, so they must be
    divisible by ``2 ** len(mults)``. Maps of the way down join the way up times 1 / sqrt(2).

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        width: channels of level 0 before ``mults``, and at full resolution.
        mults: multiples of ``width``, one per level.
        blocks: residual blocks per level of the encoder, one number or one per level; the decoder has one more.
        attention_levels: levels with self-attention, 0 = half resolution, -1 = lowest; empty = none at all. The middle of the U belongs to
            the lowest level.
        cross_levels: levels with cross-attention to the token sources, counted alike; None = ``attention_levels``.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        tokens: source -> width of token states for cross-attention.
        maps: name -> channels of maps that are concatenated to x, in this order. They must have the size of x and, like clean data, lie
            in [-1, 1].
        head_dim: channels per attention head.
        dropout: probability of dropping before the second convolution of each block.
        dropout_of: ``"channels"`` or ``"elements"``, see `UNet`.
        emb_mult: width of the embedding in multiples of ``width``.

    Raises:
        ValueError: options that do not fit each other: levels out of range, channels that heads do not divide, tokens that no level reads.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        width: int = 128,
        mults: Sequence[float] = (1, 2, 4, 8),
        blocks: int | Sequence[int] = (2, 4, 8, 8),
        attention_levels: Sequence[int] = (-1,),
        cross_levels: Sequence[int] | None = None,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        head_dim: int = 64,
        dropout: float = 0.0,
        dropout_of: Literal["channels", "elements"] = "channels",
        emb_mult: int = 4,
    ) -> None:
        widths = [int(mult * width) for mult in mults]
        attending = check_levels("attention_levels", attention_levels, len(mults))
        crossing = attending if cross_levels is None else check_levels("cross_levels", cross_levels, len(mults))
        counts = blocks_per_level(blocks, len(mults))
        style = BlockStyle(emb_mult * width, dropout, dropout_of)
        conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        if conditions.tokens and not crossing:
            raise ValueError(f"no level attends to the tokens {sorted(conditions.tokens)}; name one in cross_levels")

        def body() -> HalfResolution:
            block = block_maker(style, conditions.tokens, _at(attending), _at(crossing), lambda cout: count_heads(cout, head_dim))
            return HalfResolution(width, widths, counts, style, block)

        super().__init__(channels, out_channels, conditions, width, width, style.emb, body)
        self.divisor = 2 ** len(mults)
        name_attention(self)
        self.initialise()


class HalfResolution(Unit):
    """A U at half the resolution, and one residual block on its enlarged result beside what came in.

    Args:
        width: channels that come in and go out.
        widths: channels of each level.
        blocks: residual blocks of each level.
        style: of the last block.
        block: see `UBody`.
    """

    def __init__(
        self, width: int, widths: Sequence[int], blocks: Sequence[int], style: BlockStyle, block: Callable[[int, int, Place], nn.Module]
    ) -> None:  # fmt: skip
        super().__init__()
        self.down = ConvResample(width, "down")
        self.body = UBody(width, widths, blocks, block=block, resample=ConvResample, join=partial(joined, scale=0.5**0.5))
        self.up = ConvResample(widths[0], "up")
        self.last = ResBlock(widths[0] + width, width, style)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        low = self.up(self.body(self.down(x, context), context), context)
        return self.last(torch.cat([low, x], 1), context)


def _at(levels: frozenset[int]) -> Callable[[Place], bool]:
    """Blocks on these levels; of the middle only the first."""
    return lambda place: place.level in levels and (place.part != "middle" or place.first)
