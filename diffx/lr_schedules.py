"""Learning-rate schedules as pure functions of the images seen.

An `LRSchedule` is called with the images seen since the phase began and the images the phase will last (infinity where nobody knows) and
returns the factor on the optimizer's learning rate. Counting images instead of steps keeps a recipe valid when the batch or the number of
GPUs changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .recipes import recorded

__all__ = ["Cosine", "InverseSqrt", "LRSchedule", "Linear", "Ramp"]

LRSchedule: TypeAlias = Callable[[float, float], float]


def _ramp(images: float, length: float) -> float:
    return min(images / length, 1.0) if length else 1.0


@recorded
@dataclass(frozen=True)
class Ramp:
    """Linear from 0 to 1 over ``images``, then constant (EDM: 10 million images; Karras et al. 2022, training configuration)."""

    images: float = 10e6

    def __call__(self, images: float, total: float) -> float:
        """Factor on the learning rate."""
        return _ramp(images, self.images)


@recorded
@dataclass(frozen=True)
class InverseSqrt:
    """Ramp up, hold, then fall with one over the square root of the images (EDM2, Karras et al. 2024).

    Args:
        hold: images after which the fall begins (EDM2 gives batches: 70,000 or 35,000 times the batch size).
        ramp: images of the linear ramp from 0.
    """

    hold: float
    ramp: float = 10e6

    def __call__(self, images: float, total: float) -> float:
        """Factor on the learning rate."""
        return _ramp(images, self.ramp) / math.sqrt(max(images / self.hold, 1.0))


@recorded
@dataclass(frozen=True)
class Linear:
    """Ramp up over ``ramp`` images, then linear to ``floor`` at the end of the phase (progressive distillation: no ramp, floor 0)."""

    ramp: float = 0.0
    floor: float = 0.0

    def __call__(self, images: float, total: float) -> float:
        """Factor on the learning rate."""
        return _ramp(images, self.ramp) * (self.floor + (1 - self.floor) * (1 - _progress(images, total, self.ramp)))


@recorded
@dataclass(frozen=True)
class Cosine:
    """Ramp up over ``ramp`` images, then half a cosine from 1 to ``floor`` at the end of the phase."""

    ramp: float = 0.0
    floor: float = 0.0

    def __call__(self, images: float, total: float) -> float:
        """Factor on the learning rate."""
        fall = (1 + math.cos(math.pi * _progress(images, total, self.ramp))) / 2
        return _ramp(images, self.ramp) * (self.floor + (1 - self.floor) * fall)


def _progress(images: float, total: float, ramp: float) -> float:
    """Share of the phase after the ramp that has passed, in [0, 1]; 0 where the end is unknown."""
    if images <= ramp or math.isinf(total):
        return 0.0
    return min((images - ramp) / max(total - ramp, 1.0), 1.0)
