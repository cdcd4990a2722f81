"""Batches in parts: a network sees some samples at a time, the sampler walks all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..recipes import recorded
from .binding import Guide
from .contrast import as_guide

__all__ = ["Split"]


@recorded
@dataclass(frozen=True)
class Split:
    """A guide that asks for the estimates of ``rows`` samples at a time, so that the whole batch takes each step together.

    Memory is that of a part, and what a step costs beside its evaluations is paid once: with `diffx.residency.offloaded` every expert
    moves to the device once, not once for each part.

    Args:
        rows: most samples that a network sees at once.
        guide: what binds the conditions of a part, a number or a guide that says nothing of single samples.

    Raises:
        ValueError: rows below 1.
    """

    rows: int
    guide: float | Guide = 1.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def __call__(self, denoiser: Denoiser, cond: Cond) -> Denoise:
        """Bind the conditions of each part when the number of samples is known, that is at the first evaluation."""
        inner, bound = as_guide(self.guide), {}

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            parts = []
            for start in range(0, len(x), self.rows):
                rows = slice(start, start + self.rows)
                if start not in bound:
                    bound[start] = inner(denoiser, cond.rows(rows))
                parts.append(bound[start](x[rows], sigma[rows]))
            return torch.cat(parts)

        return denoise
