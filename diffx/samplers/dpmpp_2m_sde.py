"""DPM-Solver++ (2M) for the reverse SDE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..recipes import recorded
from ..rng import Generators
from .dpmpp_2m import DPMpp2M
from .sampler import Level, lerp, randn_like

__all__ = ["DPMpp2MSDE"]


@recorded
@dataclass(frozen=True)
class DPMpp2MSDE(DPMpp2M):
    """SDE-DPM-Solver++ of order 2, multistep, midpoint form (Lu et al. 2022). One evaluation per step.

    With r = b/a and D* as in `DPMpp2M`: x <- r^(1 + eta) x + (1 - r^(1 + eta)) D* + b sqrt(1 - r^(2 eta)) n. The last step returns D.

    Args:
        steps: number of steps.
        schedule: whose grid is walked.
        eta: 1 is the reverse SDE, 0 the ODE (`DPMpp2M`).

    Raises:
        ValueError: negative eta.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta < 0:
            raise ValueError(f"eta must not be negative, got {self.eta}")

    def moved(self, best: Tensor, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        """As in `DPMpp2M`, with the noise of the SDE."""
        ratio = sigma_next / sigma
        x = lerp(best, x, ratio ** (1 + self.eta))
        if self.eta == 0 or sigma_next == 0:
            return x
        return x + sigma_next * (1 - ratio ** (2 * self.eta)) ** 0.5 * randn_like(x, generator)
