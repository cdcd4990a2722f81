"""Pictures and clips to other sizes: one way down and one way up, for data, conditions and cascades alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

__all__ = ["enlarge", "factors_of", "shrink"]


def factors_of(factor: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One factor for each of ``axes`` axes, (H, W) or (T, H, W). A single number is meant for the sides: frames keep their number.

    Raises:
        ValueError: another number of factors, or one below 1.
    """
    factors = (*(1,) * (axes - 2), factor, factor) if isinstance(factor, int) else tuple(factor)
    if len(factors) != axes or min(factors) < 1:
        raise ValueError(f"factor must be a number, or {axes} of them, at least 1; got {factor}")
    return factors


def shrink(x: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Pictures (B, C, H, W) or clips (B, C, T, H, W) in [-1, 1] at 1 / ``factor`` of their size.

    Antialiased bicubic, clamped; of the frames every n-th.

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
    size = [side // by for side, by in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (B, C, h, w) or clips (B, C, t, h, w) in [-1, 1] at the larger ``size``.

    Bicubic, pixel areas aligned, clamped; frames are repeated.

    Raises:
        ValueError: a number of frames that is no multiple.
    """
    if x.ndim == 5:
        if size[0] % x.shape[2]:
            raise ValueError(f"{x.shape[2]} frames cannot be repeated to make {size[0]}; the number must be a multiple")
        return _by_frame(x.repeat_interleave(size[0] // x.shape[2], 2), lambda frames: enlarge(frames, size[1:]))
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=list(size), mode="bicubic", align_corners=False).clamp(-1, 1)


def _by_frame(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return rearrange(change(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", t=x.shape[2])
