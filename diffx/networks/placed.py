"""`Placed`: a network that is told in which row it is, for pictures whose rows mean something."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND

__all__ = ["PLACE", "Placed"]

PLACE = "place"  # the map that the inner network reads


@recorded
class Placed(nn.Module):
    """A convolutional network with coordinates (Liu et al. 2018, CoordConv, arXiv:1807.03247), here of the rows.

    Convolutions do not know where they are, and in a spectrum the row is what matters: it is the frequency. The map ``"place"`` holds
    cosines of 1, 2, ... half periods over the height, so that as many channels as there are rows tell all of them apart.

    Args:
        net: a network of pictures with the map ``"place"`` among its ``maps``; its number of channels is the number of cosines.

    Raises:
        ValueError: the network reads no map of that name.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        inner: Any = net
        if PLACE not in inner.conditions.maps:
            raise ValueError(
                f"{type(net).__name__} reads no map {PLACE!r}, only {sorted(inner.conditions.maps)}; give it maps={{{PLACE}: 16}}"
            )
        self.net = net
        self.channels, self.divisor = inner.channels, getattr(inner, "divisor", 1)
        self.out_channels = getattr(inner, "out_channels", inner.channels)
        self.waves = inner.conditions.maps[PLACE]
        self.conditions = replace(inner.conditions, maps={name: c for name, c in inner.conditions.maps.items() if name != PLACE})

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, **inputs: Any) -> Any:
        """As ``net``, which raises what it raises.

        Raises:
            ValueError: conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        self.conditions.check(x, cond)
        return self.net(x, noise, replace(cond, maps={**cond.maps, PLACE: self._places(x)}), **inputs)

    def _places(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows = (torch.arange(height, device=x.device, dtype=x.dtype) + 0.5) / height
        waves = torch.arange(1, self.waves + 1, device=x.device, dtype=x.dtype)
        return (math.pi * waves[:, None] * rows).cos()[None, :, :, None].expand(len(x), -1, -1, width)
