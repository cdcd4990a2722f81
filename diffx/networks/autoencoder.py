"""A small convolutional KL autoencoder: the encoder gives the moments of a normal distribution, the decoder pictures.

Distinctive choices
- Convolutions only, no attention: any size that ``factor`` divides, and no memory that grows with its square.
- Down by a strided convolution, up by nearest neighbour and a convolution: no checkerboard.
- No squashing at either end; clamping to [-1, 1] is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..recipes import recorded
from .layers import Norm, Pointwise, Resample, zero
from .units import Unit

__all__ = ["ConvAutoencoder"]


@recorded
class ConvAutoencoder(nn.Module):
    """Encoder and decoder for pictures ``(B, channels, H, W)`` and latents ``(B, latent_channels, H / factor, W / factor)``.

    Side lengths must be divisible by ``factor = 2 ** (len(mults) - 1)``. `diffx.codecs.KL` makes a codec of it.

    Args:
        channels: channels of the pictures.
        latent_channels: channels of the latents.
        width: channels of level 0 before ``mults``.
        mults: multiples of ``width``, one per level; level 0 is the full resolution, each further level has half the side lengths.
        blocks: residual blocks per level, in the encoder; the decoder has one more.
        moments: the encoder gives means and log variances of the latents; False: just the latents, for a codebook.

    Raises:
        ValueError: no level, or a number below 1.
    """

    def __init__(
        self, channels: int = 3, latent_channels: int = 4, width: int = 64, mults: Sequence[int] = (1, 2, 4), blocks: int = 1,
        moments: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(channels, latent_channels, width, blocks, *mults, len(mults)) < 1:
            raise ValueError(
                f"all sizes must be at least 1, got channels={channels}, latent_channels={latent_channels}, width={width}, "
                f"mults={tuple(mults)}, blocks={blocks}"
            )
        self.channels, self.latent_channels, self.factor = channels, latent_channels, 2 ** (len(mults) - 1)
        self.moments = moments
        widths = [mult * width for mult in mults]
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, target in enumerate(widths):
            down += [nn.Conv2d(widths[level - 1], target, 3, stride=2, padding=1)] if level else []
            down += [Residual(target, target) for _ in range(blocks)]
        self.encoder = nn.Sequential(*down, Residual(widths[-1], widths[-1]), *_head(widths[-1], (1 + moments) * latent_channels))
        up: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1), Residual(widths[-1], widths[-1])]
        for level in range(len(widths) - 1, -1, -1):
            above = widths[min(level + 1, len(widths) - 1)]
            up += [Residual(above if i == 0 else widths[level], widths[level]) for i in range(blocks + 1)]
            up += [Resample("up"), nn.Conv2d(widths[level], widths[level], 3, padding=1)] if level else []
        self.decoder = nn.Sequential(*up, *_head(widths[0], channels))
        self.initialise()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Its two halves, each entered by a call."""
        return self.encoder, self.decoder

    @torch.no_grad()
    def initialise(self) -> None:
        """Residual branches start as the identity; everything else keeps torch's draw."""
        zero(*(module.conv2 for module in self.modules() if isinstance(module, Residual)))

    def encode(self, x: Tensor) -> Tensor:
        """Pictures to moments ``(B, 2 latent_channels, h, w)``: means, then log variances; without moments to latents alone."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures."""
        return self.decoder(z)


class Residual(Unit):
    """Norm-SiLU-convolution twice around a residual."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = Norm(cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = Pointwise(cin, cout) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, cin, H, W)`` to ``(B, cout, H, W)``."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + (x if self.skip is None else self.skip(x))


def _head(width: int, out: int) -> list[nn.Module]:
    return [Norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)]
