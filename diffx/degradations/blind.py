"""Small pictures as they are found: blurred, noisy, badly shrunk and compressed (Zhang et al. 2021, BSRGAN, arXiv:2103.14006)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..recipes import recorded

__all__ = ["Blind"]

FILTERS = ("nearest-exact", "bilinear", "bicubic", "area")  # the plain "nearest" would move the picture by up to half a pixel


@recorded
@dataclass(frozen=True)
class Blind:
    """Shrink pictures by a random chain of what spoils pictures, another one for each of them.

    Blur, shrinking part of the way, noise and a JPEG file (with probability .75) in random order, half of the time blur and shrinking once
    more, then the rest of the way and always a JPEG file. Random numbers come from torch's default CPU generator; the files are made on the
    CPU wherever the pictures are.

    Args:
        strength: of the worst that happens: 1 is blur with standard deviations .1 to 2.8 pixels, noise of 1 to 25 of 255 steps and JPEG
            qualities from 95 down to 30; 0.5 goes half of the way.

    Raises:
        ValueError: a strength outside (0, 1].
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")

    def __call__(self, x: Tensor, factors: Sequence[int]) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1], C = 1 or 3, to (B, C, H / f, W / f).

        Raises:
            ValueError: no such pictures, or sides that the factors do not divide.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3) or any(side % by for side, by in zip(x.shape[2:], factors, strict=True)):
            raise ValueError(f"Blind shrinks pictures (B, 1 or 3, H, W) by factors that divide H and W, got {tuple(x.shape)} and {factors}")
        size = [side // by for side, by in zip(x.shape[2:], factors, strict=True)]
        return torch.cat([self._spoilt((picture[None] + 1) / 2, size) for picture in x]) * 2 - 1

    def _spoilt(self, x: Tensor, size: list[int]) -> Tensor:
        chain: list[Callable[[Tensor], Tensor]] = [self._blurred, lambda x: _halfway(x, size), self._noisy]
        chain += [self._compressed] if _chance(0.75) else []
        for k in torch.randperm(len(chain)).tolist():
            x = chain[k](x)
        if _chance(0.5):
            x = _halfway(self._blurred(x), size)
        return self._compressed(_resized(x, size)).to(x.dtype)

    def _blurred(self, x: Tensor) -> Tensor:
        """A Gaussian, round or not, in any direction."""
        wide, narrow = (_between(0.1, 0.1 + 2.7 * self.strength) for _ in range(2))
        angle = _between(0, math.pi)
        if _chance(0.5):
            narrow = wide
        reach = math.ceil(3 * max(wide, narrow))
        grid = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        along = grid[None] * math.cos(angle) + grid[:, None] * math.sin(angle)
        across = grid[:, None] * math.cos(angle) - grid[None] * math.sin(angle)
        kernel = (-0.5 * ((along / wide) ** 2 + (across / narrow) ** 2)).exp()
        kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(x, [reach] * 4, mode="replicate"), kernel, groups=x.shape[1])

    def _noisy(self, x: Tensor) -> Tensor:
        """Of the channels each its own noise in 70 of 100 cases, else one for all."""
        channels = x.shape[1] if _chance(0.7) else 1
        std = _between(1, 1 + 24 * self.strength) / 255
        return (x + std * rng.randn((1, channels, *x.shape[2:])).to(x)).clamp(0, 1)

    def _compressed(self, x: Tensor) -> Tensor:
        import numpy as np
        from PIL import Image

        quality, file = round(_between(95 - 65 * self.strength, 95)), io.BytesIO()
        steps = (x[0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        Image.fromarray(steps[0] if len(steps) == 1 else np.moveaxis(steps, 0, -1)).save(file, "JPEG", quality=quality)
        read = torch.from_numpy(np.array(Image.open(file)))
        return (read[None] if read.ndim == 2 else read.movedim(-1, 0))[None].to(x) / 255


def _halfway(x: Tensor, size: Sequence[int]) -> Tensor:
    """Shrunk part of the way to ``size``."""
    share = _between(0, 1)
    return _resized(x, [round(side + (now - side) * share) for side, now in zip(size, x.shape[2:], strict=True)])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    mode = FILTERS[int(_between(0, len(FILTERS)))]
    smooth = {"antialias": True} if mode in ("bilinear", "bicubic") else {}
    return F.interpolate(x, list(size), mode=mode, **smooth).clamp(0, 1)


def _chance(probability: float) -> bool:
    return float(rng.rand((1,))) < probability


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(rng.rand((1,)))
