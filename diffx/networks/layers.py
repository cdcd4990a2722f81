"""The smallest parts that networks over feature maps share: normalisation, 1x1 projections, resampling, and what blocks are handed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .attention import AttentionController

__all__ = ["Clip", "Context", "Norm", "Pointwise", "Resample", "zero"]


class Clip(NamedTuple):
    """How the rows of a batch of frames make clips: ``frames`` of one sample follow each other.

    Attributes:
        frames: number T of frames of a sample.
        stills: bool (T,), or (B, T) where samples differ: frames that stand alone, True = still picture; None = all are one clip.
    """

    frames: int
    stills: Tensor | None


class Context(NamedTuple):
    """What a forward pass hands to every block beside the features.

    Attributes:
        emb: (B, E) embedding of the noise level, label and vectors, after its last activation.
        noise: (B,) noise coordinate.
        tokens: token source -> (B, L, D) states for cross-attention, in the network's order of sources.
        mask: (B, 1 + sum of L) bool over the null token and all sources, True = may be attended; None = everything may.
        control: attention controller of this call, or None.
        clip: in networks over video, how the rows make clips; in those over pictures, None.
    """

    emb: Tensor
    noise: Tensor
    tokens: Mapping[str, Tensor]
    mask: Tensor | None
    control: AttentionController | None
    clip: Clip | None = None


class Norm(nn.GroupNorm):
    """GroupNorm with min(32, channels // 4) groups, or the next smaller number that divides the channels."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
        super().__init__(groups, channels, eps)


class Pointwise(nn.Linear):
    """1x1 convolution written as a linear map on channels-last data: the same numbers, without the slow 1x1 road of CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Resample(nn.Module):
    """Halve or double the side lengths of a map ``(B, C, H, W)`` with a separable low-pass filter; no parameters.

    Args:
        mode: ``"down"`` or ``"up"``.
        taps: filter of even length. (1, 1) is the 2x2 mean downwards and nearest neighbour upwards; (1, 3, 3, 1) is the smoother one of
            NCSN++ (Song et al. 2021, arXiv:2011.13456). Borders see zeros.
        pad: pixels of zero padding, for filters longer than two; None keeps the factor of two exact.

    Raises:
        ValueError: an odd number of taps.
    """

    kernel: Tensor | None

    def __init__(self, mode: Literal["down", "up"], taps: Sequence[float] = (1, 1), pad: int | None = None) -> None:
        super().__init__()
        if len(taps) % 2:
            raise ValueError(f"a factor of two needs an even number of filter taps, got {tuple(taps)}")
        self.mode, self.pad = mode, (len(taps) - 1) // 2 if pad is None else pad
        line = torch.tensor([float(tap) for tap in taps]) / sum(taps)
        plain = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("kernel", None if plain else torch.outer(line, line))

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            return F.avg_pool2d(x, 2) if self.mode == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        if self.mode == "down":
            return F.conv2d(x, kernel, stride=2, padding=self.pad, groups=channels)
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=self.pad, groups=channels)


def zero(*layers: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    """Set weights and biases to zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
