"""What every floor shares: per-sample scalars against batches of data, and their waves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["expand", "felt_by", "handed", "mean_flat", "psnr", "sinusoid", "slerp"]


def expand(scalar: Tensor, like: Tensor) -> Tensor:
    """View a per-sample scalar ``(B,)`` as ``(B, 1, ..., 1)`` so that it broadcasts against ``like`` ``(B, *)``."""
    return scalar.view(-1, *(1,) * (like.ndim - 1))


def felt_by(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """``loss(x)`` ``(B,)`` with its gradient in ``x`` ``(B, *)`` and in nothing else that ``loss`` uses, such as the weights of a critic.

    Networks in it are entered by a call as always, so that sharded ones are gathered. The gradient is that at ``x`` as it is: there is no
    second derivative.
    """
    if not x.requires_grad:
        return loss(x).detach()
    held = x.detach().requires_grad_()
    value = loss(held)
    (slope,) = torch.autograd.grad(value.sum(), held)
    return value.detach() + (slope * (x - held.detach())).flatten(1).sum(1)


def handed(values: Tensor, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` on ``device``, in ``dtype`` if given. What comes from the processor is handed over without waiting for an accelerator."""
    return values.to(device=device, dtype=dtype or values.dtype, non_blocking=values.device.type == "cpu")


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


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """Noise between two noises, on the arc from ``a`` (B, *) at share 0 to ``b`` at share 1, sample by sample.

    Unit noise stays unit noise on the way, whose straight mean would have a standard deviation of .71. Where the two point the same way
    (cosine above .9995) the way is straight.

    Args:
        a: (B, *).
        b: (B, *).
        share: in [0, 1], one number or (B,).

    Raises:
        ValueError: shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"both ends must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    t = expand(torch.as_tensor(share, dtype=a.dtype, device=a.device).expand(len(a)), a)
    flat = a.flatten(1), b.flatten(1)
    cosine = (flat[0] * flat[1]).sum(1) / (flat[0].norm(dim=1) * flat[1].norm(dim=1)).clamp_min(1e-12)
    angle = expand(cosine.clamp(-1, 1).acos(), a)
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin().clamp_min(1e-6)
    return torch.where(expand(cosine > 0.9995, a), torch.lerp(a, b, t), arc)
