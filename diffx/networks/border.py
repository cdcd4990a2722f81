"""What a network can be told, and the checks at its border: every misuse is answered here, once, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from ..conditions import Cond
from ..tensors import expand

__all__ = ["NO_COND", "Conditions", "check_input", "check_sizes", "concat_maps", "cross_context", "refuse_grid"]

NO_COND = Cond()


@dataclass(frozen=True)
class Conditions:
    """The conditions that a network takes; every network shows them as its attribute ``conditions``.

    Args:
        classes: number of classes K, 0 = no label; labels are 0 .. K - 1 and K, the null label.
        vectors: name -> length D.
        tokens: source -> width D of its states.
        maps: name -> channels.
    """

    classes: int = 0
    vectors: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [*(["label"] if self.classes else []), *self.vectors, *self.tokens, *self.maps]
        if twice := {name for name in named if named.count(name) > 1}:
            raise ValueError(f"condition names must be unique over label, vectors, tokens and maps; got {sorted(twice)} twice")

    @property
    def names(self) -> tuple[str, ...]:
        """All names: ``"label"``, then vectors, token sources and maps."""
        return (*(["label"] if self.classes else []), *self.vectors, *self.tokens, *self.maps)

    def check(self, x: Tensor, cond: Cond) -> None:
        """Compare a bundle with what the network takes.

        Labels are looked at on the CPU only: on a GPU this would wait for the device in every step.

        Raises:
            ValueError: a name the network does not know or knows as something else, a wrong width or batch size, a label outside
                [0, classes], a map that is missing or not of the size of ``x``.
        """
        if len(cond) not in (0, len(x)):
            raise ValueError(f"x holds {len(x)} samples, the conditions {len(cond)}")
        if cond.label is not None:
            self._check_label(cond.label)
        for family, ndim, axis in (("vectors", 2, 1), ("tokens", 3, 2), ("maps", x.ndim, 1)):
            given, known = getattr(cond, family), getattr(self, family)
            for name, value in given.items():
                if name not in known:
                    raise ValueError(f"this network takes no {family} {name!r}; {self._known()}")
                if value.ndim != ndim or value.shape[axis] != known[name]:
                    need = f"{ndim} axes and {known[name]} values on axis {axis}"
                    raise ValueError(f"{family} {name!r} must have {need}, got shape {tuple(value.shape)}")
        for name in self.maps:
            if name not in cond.maps:
                raise ValueError(f"this network needs the map {name!r} with {self.maps[name]} channels (hide it by Cond.hidden for none)")
            if cond.maps[name].shape[2:] != x.shape[2:]:
                sizes = f"{tuple(cond.maps[name].shape[2:])} and x is {tuple(x.shape[2:])}"
                raise ValueError(f"the map {name!r} must have the size of x: it is {sizes}; resize it first")

    def _check_label(self, label: Tensor) -> None:
        if not self.classes:
            raise ValueError(f"this network takes no label (classes=0); {self._known()}")
        if label.device.type != "cpu" or torch.compiler.is_compiling() or not len(label):
            return
        low, high = (int(bound) for bound in label.aminmax())
        if low < 0 or high > self.classes:
            wrong = low if low < 0 else high
            raise ValueError(f"labels must lie in [0, {self.classes}) ({self.classes} = null class), got {wrong}")

    def _known(self) -> str:
        return f"it knows {list(self.names)}" if self.names else "it takes no conditions"


def check_input(x: Tensor, noise: Tensor, channels: int, divisor: int = 1) -> None:
    """Check pictures ``(B, channels, H, W)`` and noise ``(B,)`` of a network that halves the resolution log2(divisor) times.

    Raises:
        ValueError: as `check_sizes`.
    """
    check_sizes(x, noise, channels, (divisor, divisor))


def check_sizes(x: Tensor, noise: Tensor, channels: int, divisors: Sequence[int]) -> None:
    """Check data ``(B, channels, *size)``, each axis divisible by its divisor, and noise ``(B,)``.

    Raises:
        ValueError: wrong shapes; for a size that does not divide, the message names the divisors and the nearest size that does.
    """
    axes = {1: "L", 2: "H, W", 3: "T, H, W"}[len(divisors)]
    if x.ndim != 2 + len(divisors) or x.shape[1] != channels:
        raise ValueError(f"x must be (B, {channels}, {axes}), got {tuple(x.shape)}")
    if noise.shape != x.shape[:1]:
        raise ValueError(f"noise must hold one level per sample, ({len(x)},), got {tuple(noise.shape)}")
    size = tuple(x.shape[2:])
    if any(side % divisor for side, divisor in zip(size, divisors, strict=True)):
        nearest = tuple(max(1, int(side / divisor + 0.5)) * divisor for side, divisor in zip(size, divisors, strict=True))
        by = str(divisors[0]) if len({*divisors}) == 1 else str(tuple(divisors))
        what = {1: "the length", 2: "height and width", 3: "frames, height and width"}[len(divisors)]
        got, valid = (side[0] if len(side) == 1 else side for side in (size, nearest))
        raise ValueError(f"{what} must be divisible by {by}, got {got}; the nearest valid size is {valid}")


def refuse_grid(x: Tensor, grid: Sequence[int], own: Sequence[int], sides: Sequence[int], ways: str) -> NoReturn:
    """Answer data whose ``grid`` of tokens is not the one, ``own``, that a network's positions are laid out for.

    Args:
        x: the data.
        grid: its tokens along each axis.
        own: those of the network.
        sides: of a token's part of x.
        ways: option values that would take it.
    """
    size = tuple(side * tokens for side, tokens in zip(sides, own, strict=True))
    raise ValueError(
        f"x of size {tuple(x.shape[2:])} makes a grid of {tuple(grid)} tokens, but the position table is laid out for {tuple(own)}, "
        f"that is for size {size}; build the network with that size, or with other_sizes={ways}"
    )


def concat_maps(x: Tensor, cond: Cond, names: Sequence[str]) -> Tensor:
    """Append maps to ``x`` along the channels, in the order of ``names``; a map is zero for samples that it is hidden from."""
    maps = []
    for name in names:
        value = cond.maps[name].to(x.dtype)
        maps.append(torch.where(expand(cond.keep[name], value), value, 0.0) if name in cond.keep else value)
    return torch.cat([x, *maps], 1) if maps else x


def cross_context(cond: Cond, sources: Sequence[str], dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
    """Token states in the order of ``sources``, and the mask over the null token and them (None when nothing is masked or hidden)."""
    tokens = {name: cond.tokens[name].to(dtype) for name in sources if name in cond.tokens}
    if not any(name in cond.masks or name in cond.keep for name in tokens):
        return tokens, None
    masks = [cond.mask(name) & cond.visible(name)[:, None] for name in tokens]
    return tokens, torch.cat([torch.ones_like(masks[0][:, :1]), *masks], 1)
