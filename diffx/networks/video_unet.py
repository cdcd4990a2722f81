"""U-Nets over video: a network over pictures, with layers over time between its own (Ho et al. 2022, Video Diffusion Models).

Distinctive choices
- The picture network is an argument. Its weights keep their names and shapes, so one that was trained on pictures is where to begin.
- Frames are rows of a batch, and every normalisation looks at one frame; a fresh video network gives for each frame exactly what its
  picture network gives.
- Still pictures may stand among the frames: they see nothing but themselves in any layer, and no frame sees them.
- Positions are relative, so a trained network takes clips of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from .attention import count_heads
from .blocks import Block
from .border import NO_COND, check_sizes, concat_maps
from .layers import Clip, Context, zero
from .song_unet import SongUNet
from .temporal import TemporalAttention, TemporalConv
from .unet import UNet, check_levels

__all__ = ["VideoUNet"]


@recorded
class VideoUNet(nn.Module):
    """U-Net over clips ``(B, C, T, H, W)``: the blocks of ``image``, each followed by its layers over time.

    It takes the conditions of ``image``; maps are clips of the size of x. Sides must be divisible as for ``image``, T may be any number.

    Args:
        image: the network over pictures. It is copied, fresh or trained, and named ``image`` in the new one.
        attention_levels: levels whose blocks are followed by attention over time, counted from 0 = full resolution, -1 = lowest; None =
            all. The middle has it when there is any.
        conv_levels: levels whose blocks are followed by a convolution over time, counted alike; None = all. The middle counts as
            the lowest.
        head_dim: channels per head of the attention over time.
        heads: number of heads; None = from ``head_dim``.
        buckets: classes of distances between frames, see `relative_bucket`.
        furthest: distance from which on frames are told apart no more.
        kernel: frames that a convolution over time spans, odd.

    Raises:
        TypeError: ``image`` is no U-Net of diffx.
        ValueError: no layer over time at all, a level that does not exist, heads that do not divide, buckets that 4 does not divide.
    """

    def __init__(
        self,
        image: UNet | SongUNet,
        attention_levels: Sequence[int] | None = None,
        conv_levels: Sequence[int] | None = (),
        head_dim: int = 64,
        heads: int | None = None,
        buckets: int = 32,
        furthest: int = 32,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        if not isinstance(image, (UNet, SongUNet)):
            raise TypeError(f"a video network is made of a UNet or SongUNet, got {type(image).__name__}")
        if buckets < 4 or buckets % 4 or furthest <= buckets // 4:
            raise ValueError(f"buckets must be divisible by 4 and furthest above a quarter of them, got {buckets} and {furthest}")
        self.image = deepcopy(image)
        self.channels, self.divisor, self.conditions = image.channels, image.divisor, image.conditions
        count = len(image.body.encoder)
        everywhere = range(count)
        attending = check_levels("attention_levels", everywhere if attention_levels is None else attention_levels, count)
        convolving = check_levels("conv_levels", everywhere if conv_levels is None else conv_levels, count)
        if not attending and not convolving:
            raise ValueError("without any attention or convolution over time the frames never meet; name at least one level")

        def with_time(block: Any, attends: bool, convolves: bool) -> nn.Module:
            width = block.res.conv2.out_channels
            conv = TemporalConv(width, kernel=kernel) if convolves else None
            attention = None
            if attends:
                attention = TemporalAttention(width, count_heads(width, head_dim, heads), buckets=buckets, furthest=furthest)
            return VideoBlock(block, conv, attention) if attends or convolves else block

        body: Any = self.image.body
        for level in everywhere:
            for row in (body.encoder[level], body.decoder[count - 1 - level]):
                for i, block in enumerate(row):
                    row[i] = with_time(block, level in attending, level in convolving)
        for i, block in enumerate(body.middle):
            body.middle[i] = with_time(block, bool(attending) and i == 0, count - 1 in convolving)
        for name, module in self.named_modules():
            if hasattr(module, "layer"):
                module.layer = name
            if isinstance(module, TemporalAttention):
                zero(module.out)

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.image.head.out_channels

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, stills: Tensor | None = None) -> Tensor:
        """Map scaled clips ``(B, channels, T, H, W)`` at noise coordinates ``(B,)`` to ``(B, out_channels, T, H, W)``.

        Args:
            x: the clips.
            noise: noise coordinates.
            cond: conditions of the clips.
            stills: bool (T,), or (B, T) where samples differ: frames that are pictures by themselves, True = still.

        Raises:
            ValueError: sizes that do not divide, stills of another shape, conditions the network does not know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (1, self.divisor, self.divisor))
        self.conditions.check(x, cond)
        frames = x.shape[2]
        if stills is not None and (stills.dtype != torch.bool or stills.shape not in ((frames,), (len(x), frames))):
            raise ValueError(f"stills must be bool ({frames},) or ({len(x)}, {frames}), got {stills.dtype} {tuple(stills.shape)}")
        x = concat_maps(x.to(self.image.stem.weight.dtype), cond, tuple(self.conditions.maps))
        context = _each_frame(self.image.context(noise, cond), Clip(frames, stills))
        out = self.image.walk(rearrange(x, "b c t h w -> (b t) c h w"), context)
        return rearrange(out, "(b t) c h w -> b c t h w", t=frames)


class VideoBlock(Block):
    """A block of the picture network, then convolution and attention over time where the network wants them."""

    def __init__(self, block: Block, conv: TemporalConv | None, over_time: TemporalAttention | None) -> None:
        super().__init__(block.res, block.attention, block.cross)
        self.conv, self.over_time = conv, over_time

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = super().forward(x, context)
        if self.conv is not None:
            x = self.conv(x, context)
        return x if self.over_time is None else self.over_time(x, context)


def _each_frame(context: Context, clip: Clip) -> Context:
    """What was said of a clip, said of each of its frames."""

    def each(t: Tensor) -> Tensor:
        return t.repeat_interleave(clip.frames, 0)

    return Context(
        each(context.emb), each(context.noise), {name: each(states) for name, states in context.tokens.items()},
        None if context.mask is None else each(context.mask), context.control, clip,
    )  # fmt: skip
