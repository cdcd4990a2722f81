"""The waveform U-Net of Dance Diffusion (Harmonai's sample-generator): deep, plain, told of the noise by channels of its input.

Distinctive choices
- Thirteen halvings: every level filters with a fixed cubic kernel, so that the lowest has a few columns for a clip of seconds.
- Six residual blocks a level, three on each way, with one normalisation over all channels; attention on the deepest levels.
- The noise level is 16 fixed waves, concatenated to the input as constant channels; there is no other condition.
- All weights begin at half of torch's; here the last ones begin at zero, so that a fresh network returns exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, Conditions, check_sizes
from .layers import zero
from .units import Unit

__all__ = ["DanceUNet"]

CUBIC = (-0.01171875, -0.03515625, 0.11328125, 0.43359375, 0.43359375, 0.11328125, -0.03515625, -0.01171875)
WAVES = 16


class Rate(nn.Module):
    """Halve or double the rate with the cubic kernel; borders are mirrored."""

    kernel: Tensor

    def __init__(self, up: bool) -> None:
        super().__init__()
        self.up = up
        self.register_buffer("kernel", torch.tensor(CUBIC) * (2 if up else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, half = x.shape[1], len(CUBIC) // 2
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1)
        if self.up:
            wide = F.pad(x, ((half + 1) // 2,) * 2, mode="reflect" if x.shape[-1] > (half + 1) // 2 else "replicate")
            return F.conv_transpose1d(wide, kernel, stride=2, padding=2 * half - 1, groups=channels)
        wide = F.pad(x, (half - 1,) * 2, mode="reflect" if x.shape[-1] > half - 1 else "replicate")
        return F.conv1d(wide, kernel, stride=2, groups=channels)


class ConvBlock(Unit):
    """Convolution, normalisation, GELU, twice, around a residual; ``last`` leaves the second pair out."""

    def __init__(self, cin: int, cmid: int, cout: int, last: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(cin, cmid, 5, padding=2), nn.GroupNorm(1, cmid)
        self.conv2, self.norm2 = nn.Conv1d(cmid, cout, 5, padding=2), None if last else nn.GroupNorm(1, cout)
        self.skip = nn.Conv1d(cin, cout, 1, bias=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.gelu(self.norm1(self.conv1(x))))
        h = h if self.norm2 is None else F.gelu(self.norm2(h))
        return h + (x if self.skip is None else self.skip(x))


class Attention(Unit):
    """Self-attention over time with heads of 32 channels, around a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm, self.qkv, self.out = nn.GroupNorm(1, channels), nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).transpose(-2, -1).unbind(1)
        told = F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).flatten(1, 2)
        return x + self.out(told)


class Level(nn.Module):
    """One level and all below it: (B, above, L) at the rate above it to the same shape."""

    def __init__(self, above: int, width: int, attends: bool, below: nn.Module | None) -> None:
        super().__init__()

        def row(*sizes: int) -> nn.Sequential:
            blocks: list[nn.Module] = []
            for cin, cout in pairwise(sizes):
                blocks += [ConvBlock(cin, width, cout), *([Attention(cout)] if attends else [])]
            return nn.Sequential(*blocks)

        self.down, self.up = Rate(up=False), Rate(up=True)
        self.before = row(above, width, width, width)
        self.below = below
        self.after = row(width if below is None else 2 * width, width, width, above)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(self.down(x))
        if self.below is not None:
            h = torch.cat([self.below(h), h], 1)
        return self.up(self.after(h))


@recorded
class DanceUNet(nn.Module):
    """Unconditional U-Net over sound. The published networks were trained on v with the noise coordinate ``2 / pi atan(sigma)``.

    Lengths must be divisible by ``2^(levels - 1)``.

    Args:
        channels: channels of x, and of the output.
        widths: channels of each level, full rate first.
        attention: how many of the deepest levels attend, on top of the two that are always counted in (as in the published code: 4 makes
            the lowest 6 of 14 levels attend).

    Raises:
        ValueError: fewer than two levels.
    """

    frequencies: Tensor

    def __init__(self, channels: int = 2, widths: Sequence[int] = (128, 128, 256, 256, *[512] * 10), attention: int = 4) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"a U needs at least two levels, got widths={tuple(widths)}")
        depth = len(widths)
        first = depth - attention - 1  # number of the first level that attends, counted from 1
        self.channels, self.out_channels, self.divisor = channels, channels, 2 ** (depth - 1)
        self.conditions = Conditions()
        self.waves = nn.Parameter(torch.randn(WAVES // 2, 1))
        below: Level | None = None
        for level in range(depth, 1, -1):
            below = Level(widths[level - 2], widths[level - 1], attention > 0 and level >= first, below)
        width = widths[0]
        self.before = nn.Sequential(
            ConvBlock(channels + WAVES, width, width), ConvBlock(width, width, width), ConvBlock(width, width, width)
        )
        self.below = below
        self.after = nn.Sequential(
            ConvBlock(2 * width, width, width), ConvBlock(width, width, width), ConvBlock(width, width, channels, last=True)
        )
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Halve every weight but those of the waves; zero what makes the output."""
        for name, parameter in self.named_parameters():
            if name != "waves":
                parameter.mul_(0.5)
        last = self.after[-1]
        assert isinstance(last, ConvBlock)
        zero(last.conv2, *([last.skip] if last.skip is not None else []))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled sound ``(B, channels, L)`` at noise coordinates ``(B,)`` to its like.

        Raises:
            ValueError: a length that does not divide, or conditions.
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (self.divisor,))
        self.conditions.check(x, cond)
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        angle = 2 * math.pi * noise[:, None] @ self.waves.to(noise.dtype).T
        waves = torch.cat([angle.cos(), angle.sin()], 1).to(self.waves.dtype)
        h = self.before(torch.cat([x.to(waves.dtype), waves[:, :, None].expand(-1, -1, x.shape[-1])], 1))
        assert self.below is not None
        return self.after(torch.cat([self.below(h), h], 1))
