"""A critic of patches: real or made, asked at every place of a picture, a sound or a clip (Isola et al. 2017, arXiv:1611.07004).

Distinctive choices
- Strided convolutions of side 4 and GroupNorm, so that what it says of a sample depends on no other one.
- A fresh one says zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..recipes import recorded
from .autoencoder import CONVOLUTIONS
from .layers import Norm, zero

__all__ = ["PatchCritic"]


@recorded
class PatchCritic(nn.Module):
    """Logits ``(B, 1, *)`` of data ``(B, channels, *)``, positive for real; one for each place of the coarsest level.

    Args:
        channels: channels of the data.
        width: channels of the first level.
        mults: multiples of ``width``, one per level; every level halves the sides.
        axes: 1 for sound, 2 for pictures, 3 for clips.

    Raises:
        ValueError: no level, a number below 1, or other axes.
    """

    def __init__(self, channels: int = 3, width: int = 64, mults: Sequence[int] = (1, 2, 4), axes: int = 2) -> None:
        super().__init__()
        if axes not in CONVOLUTIONS or min(channels, width, len(mults), *mults) < 1:
            raise ValueError(f"axes must be 1, 2 or 3 and all sizes at least 1, got axes={axes}, {channels}, {width} and {tuple(mults)}")
        self.channels, conv = channels, CONVOLUTIONS[axes]
        layers: list[nn.Module] = []
        for level, mult in enumerate(mults):
            layers += [conv(mults[level - 1] * width if level else channels, mult * width, 4, stride=2, padding=1)]
            layers += [Norm(mult * width)] if level else []
            layers += [nn.LeakyReLU(0.2)]
        head = conv(mults[-1] * width, 1, 3, padding=1)
        zero(head)
        self.layers = nn.Sequential(*layers, head)

    def forward(self, x: Tensor) -> Tensor:
        """Ask at every place.

        Raises:
            ValueError: data of other channels.
        """
        if x.shape[1] != self.channels:
            raise ValueError(f"the critic looks at {self.channels} channels, got data {tuple(x.shape)}")
        return self.layers(x.to(next(self.parameters()).dtype))
