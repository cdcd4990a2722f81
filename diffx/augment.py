"""Non-leaking augmentation (Karras et al. 2020, arXiv:2006.06676; used for diffusion in Karras et al. 2022, appendix F.2).

Every picture is transformed at random and the network is told how, by nine numbers that are all zero when nothing was done. Sampling passes
zeros, so the transforms never leak into the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipes import recorded
from .tensors import handed

__all__ = ["AugmentPipe"]

# Daubechies' least asymmetric wavelet with six vanishing moments, low-pass, unit energy.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# The wavelet is not quite symmetric: filtered signals lag by this many pixels, and transforms turn about the centre with the lag taken off.
LAG = (sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6) - (len(SYM6) - 1) / 2) / 2


@recorded
@dataclass(frozen=True)
class AugmentPipe:
    """Random flips, scalings, rotations and translations of square or oblong images, composed and applied once.

    Args:
        p: probability of each transform but the horizontal flip (EDM: .12 for CIFAR-10, .15 at 64 pixels).
        xflip: probability of choosing the horizontal flip's fair coin at all; 1 mirrors half of the pictures whatever ``p`` is.
        yflip: multiplies ``p`` for the vertical flip's fair coin; likewise the switches below for their transform, 0 turns it off.
        scale: isotropic scaling by ``2 ** N(0, .2**2)``.
        rotate: rotation by a uniform angle.
        stretch: anisotropic scaling by ``2 ** N(0, .2**2)``, along a random axis half of the time.
        translate: shift by ``N(0, .125**2)`` of the size on each axis.
    """

    p: float = 0.12
    xflip: float = 1.0
    yflip: float = 1.0
    scale: float = 1.0
    rotate: float = 1.0
    stretch: float = 1.0
    translate: float = 1.0

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Augment images ``(B, C, H, W)``; returns them and the label ``(B, 9)``.

        The label holds: x flip, y flip, log2 of the scale / .2, cos - 1 and sin of the rotation, the stretch as a vector (2), the shift in
        units of .125 of the size (2).
        """
        if x.ndim != 4:
            raise ValueError(f"AugmentPipe takes images (B, C, H, W), got {tuple(x.shape)}")
        b = len(x)

        def uniform() -> Tensor:
            return handed(torch.rand(b, generator=generator), x.device)

        def normal() -> Tensor:
            return handed(torch.randn(b, generator=generator), x.device)

        def chosen(rate: float) -> Tensor:
            return (uniform() < rate).float()

        xflip = chosen(self.xflip) * (uniform() < 0.5)
        yflip = chosen(self.p * self.yflip) * (uniform() < 0.5)
        scale = chosen(self.p * self.scale) * normal()
        angle = chosen(self.p * self.rotate) * (2 * uniform() - 1) * math.pi
        stretch = chosen(self.p * self.stretch) * normal()
        axis = chosen(0.5) * (2 * uniform() - 1) * math.pi
        shift = chosen(self.p * self.translate)[:, None] * torch.stack([normal(), normal()], 1)
        label = [xflip, yflip, scale, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin(), shift[:, 0], shift[:, 1]]

        for flip, dim in ((xflip, 3), (yflip, 2)):
            x = torch.where(flip.view(-1, 1, 1, 1) > 0, x.flip(dim), x)
        inverse = _scaling(-0.2 * scale, -0.2 * scale) @ _rotation(-angle)
        inverse = inverse @ _rotation(axis) @ _scaling(-0.2 * stretch, 0.2 * stretch) @ _rotation(-axis)
        moved = _resample(x, inverse, 0.125 * shift)
        still = (torch.stack(label[2:], 1) == 0).all(1)
        return torch.where(still.view(-1, 1, 1, 1), x, moved), torch.stack(label, 1)


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([2**x, 2**y], 1))


def _resample(x: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Look each output pixel up at ``inverse @ (position - shift)``, at twice the resolution between wavelet filters.

    ``inverse`` ``(B, 2, 2)`` acts on (x, y) in pixels around the centre, ``shift`` ``(B, 2)`` is in image sizes. Edges are reflected.
    """
    h, w = x.shape[-2:]
    pad = len(SYM6) // 2
    fine = _upsample(F.pad(x, [min(pad, w - 1)] * 2 + [min(pad, h - 1)] * 2, mode="reflect"))
    fine = fine[..., 2 * min(pad, h - 1) :, 2 * min(pad, w - 1) :][..., : 2 * h, : 2 * w]
    ys, xs = (torch.arange(-2 * pad, 2 * (side + pad), device=x.device, dtype=x.dtype) * 0.5 + 0.25 - side / 2 for side in (h, w))
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)  # (2(H + 2 pad), 2(W + 2 pad), 2), pixels around the centre
    size = handed(torch.tensor([w, h], dtype=x.dtype), x.device)
    turned = torch.einsum("bij,hwj->bhwi", inverse.to(x.dtype), grid - LAG) + LAG
    at = turned - torch.einsum("bij,bj->bi", inverse, shift * size)[:, None, None]
    warped = F.grid_sample(fine, at / (size / 2), mode="bilinear", padding_mode="reflection", align_corners=False)
    return _downsample(warped)[..., pad : pad + h, pad : pad + w]


def _filters(x: Tensor, flipped: bool) -> list[Tensor]:
    taps = handed(torch.tensor(SYM6, dtype=x.dtype), x.device)
    taps = taps.flip(0) if flipped else taps
    return [taps.view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1), taps.view(1, 1, 1, -1).expand(x.shape[1], 1, 1, -1)]


def _upsample(x: Tensor) -> Tensor:
    """Twice the resolution; the filter has unit energy, so each axis needs a gain of sqrt(2)."""
    n = len(SYM6) - 2
    for axis, taps in enumerate(_filters(x, flipped=False)):
        stride, crop = ((2, 1), (n // 2, 0)) if axis == 0 else ((1, 2), (0, n // 2))
        x = F.conv_transpose2d(x, taps * math.sqrt(2), stride=stride, padding=crop, groups=x.shape[1])
    return x


def _downsample(x: Tensor) -> Tensor:
    """Half the resolution, the adjoint of `_upsample` up to its gain."""
    n = len(SYM6) - 2
    for axis, taps in enumerate(_filters(x, flipped=False)):
        stride, crop = ((2, 1), (n // 2, 0)) if axis == 0 else ((1, 2), (0, n // 2))
        x = F.conv2d(x, taps / math.sqrt(2), stride=stride, padding=crop, groups=x.shape[1])
    return x
