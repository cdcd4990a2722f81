"""What a degradation is, and the check that it begins with the data itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng

__all__ = ["Degradation", "Parameters", "check_degradation"]

Parameters = Mapping[str, Tensor]
"""What is random about the degradation of a sample, name -> (B, *); the same at all its levels."""


@dataclass(frozen=True)
class Degradation(ABC):
    """Data made worse in ``steps`` steps; immutable. A subclass gives `apply`, and `parameters` where something about it is random.

    Args:
        steps: number of levels beyond 0.

    Raises:
        ValueError: fewer than one step.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a degradation needs at least 1 step, got steps={self.steps}")

    def __call__(self, x: Tensor, level: Tensor, parameters: Parameters | None = None) -> Tensor:
        """Degrade data.

        Args:
            x: (B, *).
            level: (B,) whole numbers from 0, which leaves x untouched, to ``steps``.
            parameters: of these samples, see `parameters`; drawn anew from the default generators if not given.

        Raises:
            ValueError: a level out of range, which is looked at on the CPU only.
        """
        if level.device.type == "cpu":  # an accelerator would have to be waited for
            low, high = (int(bound) for bound in level.aminmax())
            if low < 0 or high > self.steps:
                raise ValueError(f"levels must lie in [0, {self.steps}], got {low if low < 0 else high}")
        return self.apply(x, level, self.parameters(x) if parameters is None else parameters)

    @abstractmethod
    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Degrade ``x`` (B, *) to ``level`` (B,), which is in range."""

    def parameters(self, x: Tensor, generator: rng.Generators = None) -> Parameters:
        """Draw what is random for the samples of ``x`` (B, *); nothing by default. One generator, or one per sample."""
        return {}


def check_degradation(degradation: Degradation, shape: Sequence[int]) -> None:
    """Try a degradation on random data of one sample's ``shape``.

    Raises:
        ValueError: level 0 changes the data, or the shape does.
    """
    with rng.forked("degradation"):
        x = rng.rand((2, *shape)) * 2 - 1
        parameters = degradation.parameters(x)
        same = degradation(x, torch.zeros(2, dtype=torch.long), parameters)
        worst = degradation(x, torch.full((2,), degradation.steps), parameters)
    if same.shape != x.shape or worst.shape != x.shape:
        raise ValueError(f"a degradation keeps the shape of the data, {tuple(shape)}; {degradation} makes it {tuple(worst.shape[1:])}")
    if not torch.allclose(same, x, atol=1e-6, rtol=0):
        raise ValueError(f"level 0 must leave the data untouched, but {degradation} changes it by up to {(same - x).abs().max():.2g}")
