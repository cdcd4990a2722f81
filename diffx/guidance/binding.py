"""Binding a condition to a denoiser, and what every guide is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..recipes import recorded

__all__ = ["Carry", "Guidance", "Guide", "Pair", "Plain", "bind", "carried"]

Guide: TypeAlias = Callable[[Denoiser, Cond], Denoise]
Pair: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, sigma) -> (guided x0, conditional x0)."""


@dataclass(eq=False)
class Carry:
    """What a network's last call handed to its next one: (B, ...), or None before the first call."""

    value: Tensor | None = None


def bind(denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Denoise:
    """Fix the condition of a denoiser. With a carry, the network is called with ``carry=`` and its extra output is carried on."""
    if carry is None:
        return lambda x, sigma: denoiser(x, sigma, cond)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        out, carry.value = denoiser.raw(x, sigma, cond, carry=carry.value)
        return denoiser.assemble(x, sigma, out)

    return denoise


def carried(guide: Guide, denoiser: Denoiser, cond: Cond, carry: Carry) -> Denoise:
    """Bind ``guide`` with a carry, if it is one of this package; a function of one's own knows of none and is bound without."""
    return guide(denoiser, cond, carry) if isinstance(guide, Guidance) else guide(denoiser, cond)


class Guidance(ABC):
    """A guide that other guides can build on."""

    @abstractmethod
    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        """A function ``(x, sigma)`` that gives the guided and the merely conditional x0 estimate."""

    def __call__(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Denoise:
        """Bind denoiser and condition; ``carry`` belongs to one run of a sampler."""
        pair = self.pair(denoiser, cond, carry)
        return lambda x, sigma: pair(x, sigma)[0]


@recorded
@dataclass(frozen=True)
class Plain(Guidance):
    """No guidance: one evaluation with the condition."""

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        denoise = bind(denoiser, cond, carry)
        return lambda x, sigma: (x0 := denoise(x, sigma), x0)
