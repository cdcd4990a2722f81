"""`SpaceToDepth`: squares of pixels, or runs of samples, as channels around any network: it works at a fraction of the resolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, check_sizes

__all__ = ["SpaceToDepth"]

FORMS = {1: ("b (c p) ... l", "b c ... (l p)", "p"), 2: ("b (c p q) ... h w", "b c ... (h p) (w q)", "pq")}
"""Number of folded axes -> the network's form, that of the data, and the names of the sides."""


@recorded
class SpaceToDepth(nn.Module):
    """A network that sees each square of ``factor`` x ``factor`` pixels as one pixel with ``factor`` squared times the channels.

    A network of full resolution spends most of its time on the first level; this one skips it and loses no pixel. For pictures
    ``(B, C, H, W)`` and clips ``(B, C, T, H, W)``, and with ``axes=1`` for sound ``(B, C, L)``, of which runs of ``factor`` samples become
    one (the squeeze of WaveGlow, Prenger et al. 2018, arXiv:1811.00002); maps are rearranged alike.

    Args:
        net: network whose channels, and those of its maps, are ``factor ** axes`` times those of the data.
        factor: side of a square, or samples of a run, at least 2.
        axes: how many of the last axes are folded, 1 or 2.

    Raises:
        ValueError: a factor below 2, another number of axes, channels of ``net`` that ``factor ** axes`` does not divide.
    """

    def __init__(self, net: nn.Module, factor: int = 2, axes: int = 2) -> None:
        super().__init__()
        inner: Any = net
        many = {"x": inner.channels, "out": getattr(inner, "out_channels", inner.channels), **inner.conditions.maps}
        depth = factor**axes
        if factor < 2 or axes not in (1, 2) or any(channels % depth for channels in many.values()):
            raise ValueError(
                f"factor must be at least 2, axes 1 or 2, and factor ** axes divide the network's channels {many}, "
                f"got factor={factor} and axes={axes}"
            )
        self.net, self.factor, self.axes = net, factor, axes
        self.channels, self.divisor = inner.channels // depth, getattr(inner, "divisor", 1) * factor
        self.out_channels = many["out"] // depth
        maps = {name: channels // depth for name, channels in inner.conditions.maps.items()}
        self.conditions = replace(inner.conditions, maps=maps)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, **inputs: Any) -> Any:
        """As ``net``, on data and maps of full resolution; ``inputs`` and anything returned beside the output pass as they are.

        Raises:
            ValueError: sides that do not divide, or conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (*(1,) * (x.ndim - 2 - self.axes), *(self.divisor,) * self.axes))
        self.conditions.check(x, cond)
        cond = replace(cond, maps={name: self._deep(value) for name, value in cond.maps.items()})
        out = self.net(self._deep(x), noise, cond, **inputs)
        return (self._wide(out[0]), *out[1:]) if isinstance(out, tuple) else self._wide(out)

    def _deep(self, x: Tensor) -> Tensor:
        deep, wide, sides = FORMS[self.axes]
        return rearrange(x, f"{wide} -> {deep}", **dict.fromkeys(sides, self.factor))

    def _wide(self, x: Tensor) -> Tensor:
        deep, wide, sides = FORMS[self.axes]
        return rearrange(x, f"{deep} -> {wide}", **dict.fromkeys(sides, self.factor))
