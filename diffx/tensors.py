"""What every floor shares: per-sample scalars against batches of data, and their waves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["expand", "mean_flat", "psnr", "sinusoid"]


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """View a per-sample scalar ``(B,)`` as ``(B, 1, ..., 1)`` so that it broadcasts against ``like`` ``(B, *)``."""
    return scalar.view(-1, *(1,) * (like.ndim - 1))


def mean_flat(x: Tensor) -> Tensor:
    """Mean over everything but the batch: ``(B, *)`` to ``(B,)``."""
    return x.flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``(B,)``, of pictures in [-1, 1], ``y`` clamped to that range: ``10 log10(4 / mse)``."""
    mse = mean_flat((y.float().clamp(-1, 1) - x.float()).square())
    return 10 * (math.log10(4.0) - mse.clamp_min(1e-12).log10())


def sinusoid(noise: Tensor, width: int, *, endpoint: bool = False, max_period: float = 10_000.0) -> Tensor:
    """Embed ``(B,)`` as ``(B, width)``: cosines first, frequencies falling geometrically from 1 to 1 / max_period.

    Computed in at least float32, because half precision cannot tell integer levels above 256 apart (Vaswani et al. 2017, section 3.5).

    Args:
        noise: (B,) noise coordinate.
        width: even number of outputs.
        endpoint: include the lowest frequency 1 / max_period itself (EDM's DDPM++) or stop one before it (ADM).
        max_period: wave length of the slowest wave, over 2 pi.
    """
    half = width // 2
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    steps = torch.arange(half, device=noise.device, dtype=noise.dtype) / (half - 1 if endpoint else half)
    angle = noise[:, None] * torch.exp(-math.log(max_period) * steps)
    return torch.cat([angle.cos(), angle.sin()], 1)
