"""Guides that contrast two estimates: classifier-free guidance, on an interval, autoguidance."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..recipes import recorded
from ..schedules import Bands
from ..tensors import expand
from .binding import Carry, Guidance, Guide, Pair, Plain, bind

__all__ = ["Autoguidance", "ClassifierFree", "Interval", "PerBand", "PictureAndText", "Piecewise", "as_guide", "classifier_free"]

Scale: TypeAlias = float | Callable[[float], float]


def as_guide(guidance: float | Guide) -> Guide:
    """A number is the scale of classifier-free guidance; a guide is returned as it is.

    Raises:
        TypeError: neither a number nor callable.
    """
    if isinstance(guidance, (int, float)):
        return Plain() if guidance == 1 else ClassifierFree(float(guidance))
    if not callable(guidance):
        raise TypeError(f"guidance must be a number or a guide (denoiser, cond) -> denoise, got {type(guidance).__name__}")
    return guidance


def classifier_free(denoiser: Denoiser, cond: Cond, null: Cond, scale: float | Tensor, carry: Carry | None = None) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022) with both halves in one batch.

    Args:
        denoiser: evaluated on 2B samples.
        cond: the condition, batch B.
        null: what it is contrasted with, batch B and the same names: ``cond.hidden()``, or a negative prompt.
        scale: one number, or one per sample (B,); a plain 1 evaluates ``cond`` alone.
        carry: see `bind`.
    """
    pair = _contrast(denoiser, cond, null, lambda sigma: scale, carry)
    return lambda x, sigma: pair(x, sigma)[0]


@recorded
@dataclass(frozen=True)
class Piecewise:
    """A scale by bands of sigma: ``scales[i]`` for edges[i - 1] < sigma <= edges[i], open at both ends.

    Args:
        edges: n rising levels.
        scales: n + 1 scales, that of the cleanest band first.

    Raises:
        ValueError: the edges do not rise or the lengths do not fit.
    """

    edges: Sequence[float]
    scales: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.edges) + 1 or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"n rising edges need n + 1 scales, got edges {self.edges} and scales {self.scales}")

    def __call__(self, sigma: float) -> float:
        return self.scales[bisect_left(self.edges, sigma)]


@recorded
@dataclass(frozen=True)
class PerBand:
    """A scale for each band of an ensemble of experts; levels are put into bands as the ensemble does it.

    Args:
        bands: those of the `diffx.experts.Experts`.
        scales: one per band, that of the cleanest first.

    Raises:
        ValueError: not one scale per band.
    """

    bands: Bands
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if len(self.scales) != len(self.bands):
            raise ValueError(f"there are {len(self.bands)} bands, got {len(self.scales)} scales")

    def __call__(self, sigma: float) -> float:
        return self.scales[int(self.bands.index(torch.tensor(sigma)))]


@recorded
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance against the hidden condition (`Cond.hidden`); maps stay visible.

    Args:
        scale: a number, or a function of the level such as `Piecewise`. Where it gives 1 the second half is not evaluated. A function
            reads the levels on the host, once per evaluation.

    Raises:
        ValueError: when bound to a condition without anything to hide.
    """

    scale: Scale

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        if self.scale == 1:
            return Plain().pair(denoiser, cond, carry)
        if not cond.names:
            raise ValueError("guidance contrasts a condition with its absence, got a Cond without label, tokens or vectors; use guidance=1")
        return _contrast(denoiser, cond, cond.hidden(), lambda sigma: _scale_at(self.scale, sigma), carry)


@recorded
@dataclass(frozen=True)
class Interval(Guidance):
    """Classifier-free guidance for low < sigma <= high only (Kynkäänniemi et al. 2024); outside, one conditional evaluation.

    Args:
        scale: scale inside the interval.
        low: lower level, not included.
        high: upper level, included.

    Raises:
        ValueError: low is not below high.
    """

    scale: float
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the interval must satisfy low < high, got ({self.low}, {self.high}]")

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        return ClassifierFree(Piecewise((self.low, self.high), (1.0, self.scale, 1.0))).pair(denoiser, cond, carry)


@recorded
@dataclass(frozen=True)
class Autoguidance(Guidance):
    """Guide away from a worse version of the network under the same condition (Karras et al. 2024): bad + scale * (good - bad).

    Args:
        bad: a smaller or less trained denoiser.
        scale: a number or a function of the level, as in `ClassifierFree`.
    """

    bad: Denoiser
    scale: Scale

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        good, bad = bind(denoiser, cond, carry), bind(self.bad, cond, None if carry is None else Carry())

        def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            main, scale = good(x, sigma), _scale_at(self.scale, sigma)
            return (main if _off(scale) else _mixed(bad(x, sigma), main, scale)), main

        return pair


@recorded
@dataclass(frozen=True)
class PictureAndText(Guidance):
    """Guidance with one scale for a picture and one for everything else (Brooks et al. 2023, InstructPix2Pix, arXiv:2211.09800, eq. 3).

    ``D() + picture * (D(map) - D()) + scale * (D(map, rest) - D(map))``, three evaluations in one batch; both scales 1 are the conditional
    estimate alone.

    Args:
        scale: of label, tokens and vectors.
        picture: of the map.
        name: of the map.

    Raises:
        ValueError: when bound to a condition without that map.
    """

    scale: float
    picture: float
    name: str = "source"

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        if self.name not in cond.maps:
            raise ValueError(f"there is no map {self.name!r} to be guided by; the conditions are {sorted({*cond.names, *cond.maps})}")
        if self.scale == self.picture == 1:
            return Plain().pair(denoiser, cond, carry)
        shown = cond.hidden()
        all_three = bind(denoiser, cond.cat(shown).cat(shown.hidden(self.name)), carry)

        def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            both, picture, nothing = all_three(torch.cat([x, x, x]), torch.cat([sigma, sigma, sigma])).chunk(3)
            return nothing + self.picture * (picture - nothing) + self.scale * (both - picture), both

        return pair


def _contrast(denoiser: Denoiser, cond: Cond, null: Cond, scale_at: Callable[[Tensor], float | Tensor], carry: Carry | None) -> Pair:
    """Both halves in one batch, the conditional half alone where the scale is 1."""
    both, plain = cond.cat(null), bind(denoiser, cond, carry)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scale = scale_at(sigma)
        if _off(scale):
            return (x0 := plain(x, sigma)), x0
        shared = None if carry is None else Carry(None if carry.value is None else torch.cat([carry.value, carry.value]))
        x0, x0_null = bind(denoiser, both, shared)(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
        if carry is not None and shared is not None and shared.value is not None:
            carry.value = shared.value.chunk(2)[0]
        return _mixed(x0_null, x0, scale), x0

    return pair


def _scale_at(scale: Scale, sigma: Tensor) -> float | Tensor:
    """The scale at each sample's level: a number if all agree, otherwise (B,)."""
    if not callable(scale):
        return scale
    scales = [scale(level) for level in sigma.tolist()]
    return scales[0] if len(set(scales)) == 1 else sigma.new_tensor(scales)


def _off(scale: float | Tensor) -> bool:
    return not isinstance(scale, Tensor) and scale == 1


def _mixed(away: Tensor, toward: Tensor, scale: float | Tensor) -> Tensor:
    return torch.lerp(away, toward, expand(scale, toward).to(toward.dtype) if isinstance(scale, Tensor) else scale)
