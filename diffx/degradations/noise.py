"""Noise as one degradation among others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import rng
from ..recipes import recorded
from ..tensors import expand
from .degradation import Degradation, Parameters

__all__ = ["HotNoise"]


@recorded
@dataclass(frozen=True)
class HotNoise(Degradation):
    """``cos(a) x + sin(a) n`` with a = pi / 2 level / steps and one noise n per sample, the same at all its levels.

    With this degradation the improved walk is deterministic sampling (DDIM) with the noise that the restorer's estimate leaves.

    Args:
        steps: number of levels.
    """

    def parameters(self, x: Tensor, generator: rng.Generators = None) -> Parameters:
        """The ``"noise"`` (B, *) of each sample."""
        return {"noise": rng.randn(tuple(x.shape), generator, device=x.device).to(x.dtype)}

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Mix data ``(B, *)`` with its noise."""
        angle = expand(level.to(x) / self.steps, x) * (0.5 * 3.141592653589793)
        return angle.cos() * x + angle.sin() * parameters["noise"].to(x)
