"""`SpaceToDepth`: squares of pixels as channels around any network, so that it works at a fraction of the resolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, check_sizes

__all__ = ["SpaceToDepth"]


@recorded
class SpaceToDepth(nn.Module):
    """A network that sees each square of ``factor`` x ``factor`` pixels as one pixel with ``factor`` squared times the channels.

    A network of full resolution spends most of its time on the first level; this one skips it and loses no pixel. For pictures
    ``(B, C, H, W)`` and clips ``(B, C, T, H, W)``; maps are rearranged alike.

    Args:
        net: network whose channels, and those of its maps, are ``factor ** 2`` times those of the data.
        factor: side of a square, at least 2.

    Raises:
        ValueError: a factor below 2, channels of ``net`` that it does not divide.
    """

    def __init__(self, net: nn.Module, factor: int = 2) -> None:
        super().__init__()
        inner: Any = net
        many = {"x": inner.channels, "out": getattr(inner, "out_channels", inner.channels), **inner.conditions.maps}
        if factor < 2 or any(channels % factor**2 for channels in many.values()):
            raise ValueError(f"factor must be at least 2 and its square divide the network's channels {many}, got {factor}")
        self.net, self.factor = net, factor
        self.channels, self.divisor = inner.channels // factor**2, getattr(inner, "divisor", 1) * factor
        self.out_channels = many["out"] // factor**2
        maps = {name: channels // factor**2 for name, channels in inner.conditions.maps.items()}
        self.conditions = replace(inner.conditions, maps=maps)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, **inputs: Any) -> Any:
        """As ``net``, on data and maps of full resolution; ``inputs`` and anything returned beside the output pass as they are.

        Raises:
            ValueError: sides that do not divide, or conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (*(1,) * (x.ndim - 4), self.divisor, self.divisor))
        self.conditions.check(x, cond)
        cond = replace(cond, maps={name: self._deep(value) for name, value in cond.maps.items()})
        out = self.net(self._deep(x), noise, cond, **inputs)
        return (self._wide(out[0]), *out[1:]) if isinstance(out, tuple) else self._wide(out)

    def _deep(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c ... (h p) (w q) -> b (c p q) ... h w", p=self.factor, q=self.factor)

    def _wide(self, x: Tensor) -> Tensor:
        return rearrange(x, "b (c p q) ... h w -> b c ... (h p) (w q)", p=self.factor, q=self.factor)
