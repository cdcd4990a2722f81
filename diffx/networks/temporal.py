"""Layers over the frames of clips: attention with relative positions, and convolution. Between them, frames are rows of a batch."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Site, attend
from .layers import Clip, Context

__all__ = ["TemporalAttention", "TemporalConv", "relative_bucket", "together"]


def relative_bucket(distance: Tensor, buckets: int = 32, furthest: int = 32) -> Tensor:
    """Number the signed distances ``j - i`` between frames so that near ones are told apart exactly and far ones in classes (T5's rule).

    Half of the buckets are for frames behind, half for those ahead. Of each half, half hold one distance each; the others widen
    geometrically up to ``furthest``, beyond which all distances share the last one (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Args:
        distance: any shape, integers.
        buckets: number of buckets, divisible by 4.
        furthest: distance at which the last bucket ends.

    Returns:
        int64 of the same shape, in [0, buckets).
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    share = (far.clamp(min=1).float() / exact).log() / math.log(furthest / exact)
    wide = exact + (share * (half - exact)).long()
    return half * (distance > 0) + torch.where(far < exact, far, wide.clamp(max=half - 1))


def together(clip: Clip, device: torch.device | None = None) -> Tensor | None:
    """Which frames may see each other: bool (T, T), or (B, T, T) where samples differ; None = all may."""
    if clip.stills is None:
        return None
    moving = ~clip.stills
    return moving[..., :, None] & moving[..., None, :] | torch.eye(clip.frames, dtype=torch.bool, device=clip.stills.device)


class TemporalAttention(nn.Module):
    """Every place of a picture attends to the same place in all frames of its clip; LayerNorm before, residual around.

    A bias that is learned for each head and class of distance tells frames apart (Ho et al. 2022, Video Diffusion Models,
    arXiv:2204.03458). The projection that ends it is for the network to zero: where it is zero, the layer is the identity.

    Args:
        channels: channels C of the map ``(B T, C, H, W)``.
        heads: number of heads.
        buckets: classes of distance, see `relative_bucket`.
        furthest: distance from which on frames are told apart no more.
    """

    layer = ""  # dotted name, set by the network

    def __init__(self, channels: int, heads: int, *, buckets: int = 32, furthest: int = 32) -> None:
        super().__init__()
        self.heads, self.buckets, self.furthest = heads, buckets, furthest
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias = nn.Embedding(buckets, heads)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.clip is not None
        frames, (height, width) = context.clip.frames, x.shape[2:]
        tokens = self.qkv(self.norm(x.movedim(1, -1)))
        q, k, v = rearrange(tokens, "(b t) h w (three n d) -> three (b h w) n t d", t=frames, three=3, n=self.heads).unbind()
        mask = together(context.clip)
        if mask is not None:
            mask = mask[None, None] if mask.ndim == 2 else mask.repeat_interleave(height * width, 0)[:, None]
        noise = context.noise[::frames].repeat_interleave(height * width)
        site = Site(self.layer, "time", (frames,), 0, {"grid": slice(0, frames)}, noise)
        out = attend(q, k, v, site, mask=mask, bias=self.relative(frames), control=context.control)
        out = rearrange(out, "(b h w) n t d -> (b t) h w (n d)", h=height, w=width)
        return x + self.out(out).movedim(-1, 1)

    def relative(self, frames: int) -> Tensor:
        """The bias (1, heads, T, T) that query i adds to its score of key j."""
        place = torch.arange(frames, device=self.bias.weight.device)
        bucket = relative_bucket(place[None] - place[:, None], self.buckets, self.furthest)
        return self.bias(bucket).permute(2, 0, 1)[None]


class TemporalConv(nn.Module):
    """Convolution over frames, behind convolutions over space: together a pseudo-three-dimensional one.

    As in Imagen Video (Ho et al. 2022, arXiv:2210.02303). A fresh one hands every frame on as it is. Frames beyond the ends of a clip count
    as zero, still pictures as ends.

    Args:
        channels: channels C of the map ``(B T, C, H, W)``.
        kernel: frames that one frame is made of, odd.
    """

    def __init__(self, channels: int, *, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"a convolution over frames has an odd kernel, got {kernel}")
        self.conv = nn.Conv2d(channels, channels, (kernel, 1), padding=(kernel // 2, 0))
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.clip is not None
        height, stills = x.shape[2], context.clip.stills
        clips = rearrange(x, "(b t) c h w -> b c t (h w)", t=context.clip.frames)
        if stills is None:
            out = self.conv(clips)
        else:
            alone = stills.view(-1, 1, context.clip.frames, 1)
            own = F.conv2d(clips, self.conv.weight[:, :, self.conv.kernel_size[0] // 2, None], self.conv.bias)
            out = torch.where(alone, own, self.conv(clips.masked_fill(alone, 0.0)))
        return rearrange(out, "b c t (h w) -> (b t) c h w", h=height)
