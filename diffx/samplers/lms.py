"""Linear multistep: Adams-Bashforth on uneven levels."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from .sampler import Level, Sampler, Step, level

__all__ = ["LMS", "weights"]


@recorded
@dataclass(frozen=True)
class LMS(Sampler):
    """Adams-Bashforth on d = (x - D) / sigma: the polynomial through the last ``order`` slopes, integrated exactly from a to b.

    One evaluation per step; the first steps have the order that their past allows.

    Args:
        steps: number of steps.
        schedule: whose grid is walked.
        order: number of slopes used, at least 1 (Euler).

    Raises:
        ValueError: order below 1.
    """

    order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        return self.begin()(denoise, x, sigma, sigma_next, generator)

    def begin(self) -> Step:
        """A step function that remembers the last slopes."""
        past: deque[tuple[Level, Tensor]] = deque(maxlen=self.order)

        def step(denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
            past.appendleft((sigma, (x - denoise(x, level(sigma, x))) / sigma))
            for weight, (_, slope) in zip(weights([s for s, _ in past], sigma_next), past, strict=True):
                x = torch.add(x, slope, alpha=weight)
            return x

        return step


def weights(nodes: Sequence[float], end: float) -> list[float]:
    """Integrals from ``nodes[0]`` to ``end`` of the Lagrange polynomials of ``nodes``, in closed form.

    Computed on t = (sigma - nodes[0]) / (end - nodes[0]) in [0, 1], where the coefficients stay of order one whatever the levels.
    """
    width = end - nodes[0]
    places = [(node - nodes[0]) / width for node in nodes]
    result = []
    for j, own in enumerate(places):
        polynomial = [1.0]  # ascending coefficients of the product of (t - p) / (own - p)
        for k, p in enumerate(places):
            if k != j:
                raised, lowered = [0.0, *polynomial], [*(-p * c for c in polynomial), 0.0]
                polynomial = [(r + low) / (own - p) for r, low in zip(raised, lowered, strict=True)]
        result.append(width * sum(c / (i + 1) for i, c in enumerate(polynomial)))
    return result
