"""Pictures, clips and sound to other sizes: one way down and one way up, for data, conditions and cascades alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .tensors import handed

__all__ = ["enlarge", "factors_of", "shrink"]


def factors_of(factor: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One factor for each of ``axes`` axes, (L,), (H, W) or (T, H, W). A single number is meant for length or sides: frames keep theirs.

    Raises:
        ValueError: another number of factors, or one below 1.
    """
    factors = (1, factor, factor)[-axes:] if isinstance(factor, int) else tuple(factor)
    if len(factors) != axes or min(factors) < 1:
        raise ValueError(f"factor must be a number, or {axes} of them, at least 1; got {factor}")
    return factors


def shrink(x: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Pictures (B, C, H, W), clips (B, C, T, H, W) or sound (B, C, L) in [-1, 1] at 1 / ``factor`` of their size.

    Antialiased bicubic, clamped; of the frames every n-th; of sound what lies below the new half rate, at every n-th sample.

    Raises:
        ValueError: sizes that the factor does not divide; see also `factors_of`.
    """
    factors = factors_of(factor, x.ndim - 2)
    if any(side % by for side, by in zip(x.shape[2:], factors, strict=True)):
        raise ValueError(f"sides must be divisible by the factor {factor}, got {tuple(x.shape[2:])}")
    if x.ndim == 5:
        return _by_frame(x[:, :, :: factors[0]], lambda frames: shrink(frames, factors[1:]))
    if max(factors) == 1:
        return x
    if x.ndim == 3:
        return _slower(x, factors[0]).clamp(-1, 1)
    size = [side // by for side, by in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (B, C, h, w), clips (B, C, t, h, w) or sound (B, C, l) in [-1, 1] at the larger ``size``.

    Bicubic, pixel areas aligned, clamped; frames are repeated; sound gains no frequencies.

    Raises:
        ValueError: a number of frames, or a length of sound, that is no multiple.
    """
    if x.ndim == 5:
        if size[0] % x.shape[2]:
            raise ValueError(f"{x.shape[2]} frames cannot be repeated to make {size[0]}; the number must be a multiple")
        return _by_frame(x.repeat_interleave(size[0] // x.shape[2], 2), lambda frames: enlarge(frames, size[1:]))
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if x.ndim == 3:
        if size[0] % x.shape[2]:
            raise ValueError(f"{x.shape[2]} samples cannot be made {size[0]}; the number must be a multiple")
        return _faster(x, size[0] // x.shape[2]).clamp(-1, 1)
    return F.interpolate(x, size=list(size), mode="bicubic", align_corners=False).clamp(-1, 1)


def _by_frame(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return rearrange(change(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", t=x.shape[2])


LOBES = 16  # of the sinc on each side: 44 dB at 1 / 8 below and above the new half rate


@cache
def _lowpass(factor: int) -> Tensor:
    """A sinc of ``2 LOBES factor + 1`` taps under a Hann window, which ends at 1 / ``factor`` of the half rate; its sum is 1."""
    reach = LOBES * factor
    place = torch.arange(-reach, reach + 1, dtype=torch.float64) / factor
    taps = torch.sinc(place) * (0.5 + 0.5 * torch.cos(math.pi * place / LOBES))
    return (taps / taps.sum()).float()


def _slower(x: Tensor, factor: int) -> Tensor:
    """Sound (B, C, L) at every ``factor``-th sample, first filtered; the ends go on as they are."""
    channels, reach = x.shape[1], LOBES * factor
    taps = handed(_lowpass(factor), x.device, x.dtype).expand(channels, 1, -1)
    return F.conv1d(F.pad(x, (reach, reach), mode="replicate"), taps, stride=factor, groups=channels)[..., : x.shape[2] // factor]


def _faster(x: Tensor, factor: int) -> Tensor:
    """Sound (B, C, l) with ``factor - 1`` samples between every two, the band-limited signal through them."""
    channels, begin = x.shape[1], 2 * LOBES * factor
    taps = factor * handed(_lowpass(factor), x.device, x.dtype).expand(channels, 1, -1)
    wide = F.conv_transpose1d(F.pad(x, (LOBES, LOBES), mode="replicate"), taps, stride=factor, groups=channels)
    return wide[..., begin : begin + factor * x.shape[2]]
