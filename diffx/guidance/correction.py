"""Guides that correct what a stronger guide distorts: rescaling and thresholding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..recipes import recorded
from ..tensors import expand
from .binding import Carry, Guidance, Pair
from .contrast import as_guide

__all__ = ["DynamicThreshold", "Rescale", "StaticThreshold"]


@recorded
@dataclass(frozen=True)
class Rescale(Guidance):
    """Pull the standard deviation of the guided output back to that of the conditional one (Lin et al. 2023, section 3.4).

    ``phi * out * std(out_cond) / std(out) + (1 - phi) * out``, std per sample.

    Args:
        guide: what is rescaled, a number or a guide of this module.
        phi: 0 leaves the output, 1 rescales fully.
        space: "native" acts on the network's own output (eps, v, F, ...) as published, "x0" on the estimate of clean data.

    Raises:
        ValueError: phi outside [0, 1] or an unknown space.
    """

    guide: float | Guidance
    phi: float = 0.7
    space: Literal["native", "x0"] = "native"

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1 or self.space not in ("native", "x0"):
            raise ValueError(f"Rescale needs phi in [0, 1] and space 'native' or 'x0', got phi={self.phi}, space={self.space!r}")

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        inner = _nested(self.guide).pair(denoiser, cond, carry)

        def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            guided, plain = inner(x, sigma)
            if guided is plain:
                return guided, plain
            if self.space == "x0":
                return self._rescaled(guided, plain), plain
            out = self._rescaled(denoiser.target(x, sigma, guided), denoiser.target(x, sigma, plain))
            return denoiser.assemble(x, sigma, out), plain

        return pair

    def _rescaled(self, guided: Tensor, plain: Tensor) -> Tensor:
        wide, wanted = (t.flatten(1).std(1, correction=0) for t in (guided, plain))
        factor = self.phi * wanted / wide.clamp(min=torch.finfo(wide.dtype).tiny) + 1 - self.phi
        return guided * expand(factor, guided)


@recorded
@dataclass(frozen=True)
class DynamicThreshold(Guidance):
    """Clip each sample at the ``p``-quantile s of its own magnitudes, but not below 1, and divide by s (Saharia et al. 2022, Imagen).

    For data in [-1, 1], not for latents.

    Args:
        guide: what is thresholded, a number or a guide of this module.
        p: quantile in (0, 1].

    Raises:
        ValueError: p outside (0, 1].
    """

    guide: float | Guidance = 1.0
    p: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p must lie in (0, 1], got {self.p}")

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        return _then(_nested(self.guide).pair(denoiser, cond, carry), self._clip)

    def _clip(self, x0: Tensor) -> Tensor:
        s = expand(_quantile(x0.abs().flatten(1), self.p).clamp(min=1), x0)
        return torch.clamp(x0, -s, s) / s


@recorded
@dataclass(frozen=True)
class StaticThreshold(Guidance):
    """Clip the estimate to [-1, 1]. For data in [-1, 1], not for latents.

    Args:
        guide: what is clipped, a number or a guide of this module.
    """

    guide: float | Guidance = 1.0

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        return _then(_nested(self.guide).pair(denoiser, cond, carry), lambda x0: x0.clamp(-1, 1))


def _then(pair: Pair, change: Callable[[Tensor], Tensor]) -> Pair:
    def changed(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        guided, plain = pair(x, sigma)
        return change(guided), plain

    return changed


def _nested(guide: float | Guidance) -> Guidance:
    guide = as_guide(guide)  # type: ignore[assignment]
    if not isinstance(guide, Guidance):
        raise TypeError(f"only guides of diffx.guidance nest, got {type(guide).__name__}; derive it from diffx.guidance.Guidance")
    return guide


def _quantile(rows: Tensor, p: float) -> Tensor:
    """Linearly interpolated quantile of each row (B, N); unlike ``torch.quantile`` without a limit on the size."""
    place = p * (rows.shape[1] - 1)
    low, high = (rows.kthvalue(k + 1, dim=1).values for k in (math.floor(place), math.ceil(place)))
    return torch.lerp(low, high, place - math.floor(place))
