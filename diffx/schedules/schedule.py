"""What every schedule is: a rising map from a position ``u`` in [0, 1] to a noise level ``sigma``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .. import rng

__all__ = ["Schedule"]


class Schedule(ABC):
    """A rising map ``u -> sigma`` with its inverse, a law of training levels and a grid for samplers.

    ``sigma`` is the standard deviation of the noise divided by the scale of the signal, whatever process a schedule comes from; ``u = 0``
    is the cleanest level and ``u = 1`` the noisiest. A subclass gives `sigma_min`, `sigma_max` and the two hooks `_sigma` and `_u`, which
    see float64 and may leave the range: the public methods clamp. Between the end levels the map rises strictly and `u` inverts it.

    Attributes:
        nested: whether ``grid(2 * n)`` contains ``grid(n)``, which progressive distillation needs.
    """

    nested: bool = True

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Lowest level above zero, finite and positive."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """Highest level, finite even where the process itself ends in pure noise."""

    @abstractmethod
    def _sigma(self, u: Tensor) -> Tensor:
        """The law itself, in float64, for ``u`` in [0, 1]."""

    @abstractmethod
    def _u(self, sigma: Tensor) -> Tensor:
        """The inverse law, in float64, for ``sigma`` in [sigma_min, sigma_max]."""

    def sigma(self, u: Tensor) -> Tensor:
        """Noise level at ``u`` (any shape; clamped to [0, 1]), computed in float64 and returned in the dtype of ``u``."""
        return self._sigma(u.double().clamp(0, 1)).clamp(self.sigma_min, self.sigma_max).to(_floating(u))

    def u(self, sigma: Tensor) -> Tensor:
        """Position of ``sigma`` (any shape; clamped to the range of the schedule), the inverse of `sigma`."""
        return self._u(sigma.double().clamp(self.sigma_min, self.sigma_max)).clamp(0, 1).to(_floating(sigma))

    def draw(
        self,
        n: int,
        *,
        band: tuple[float, float] = (0.0, 1.0),
        slice: tuple[int, int] = (0, 1),
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``(n,)`` float32 training levels at positions stratified over the global batch (`diffx.rng.stratified`).

        Args:
            n: levels of this slice.
            band: part of [0, 1] to draw from; a band of an ensemble of experts, all of it by default.
            slice: (index, count), the part of the global batch that these levels belong to.
            device: where the levels go; they are drawn on the CPU.
            generator: seeded alike for all slices of one global batch.

        Raises:
            ValueError: the band is not an interval inside [0, 1], or the slice is impossible.
        """
        low, high = band
        if not 0 <= low < high <= 1:
            raise ValueError(f"band must be (low, high) with 0 <= low < high <= 1, got {band}")
        u = low + (high - low) * rng.stratified(n, slice=slice, generator=generator).double()
        return self.sigma(u).float().to(device)

    def grid(self, steps: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Levels that a sampler walks: ``(steps + 1,)``, falling from `sigma_max`, the last one 0.

        A very fine grid may go below `sigma_min`, which bounds what is drawn and inverted.

        Raises:
            ValueError: fewer than one step, or so many that levels coincide.
        """
        if steps < 1:
            raise ValueError(f"a grid needs at least 1 step, got {steps}")
        levels = self._sigma(self._positions(steps)).clamp(max=self.sigma_max)
        if not (levels.diff() < 0).all():
            raise ValueError(f"levels of a grid of {steps} steps coincide at the ends of this schedule, got {self}; use fewer steps")
        return torch.cat([levels, levels.new_zeros(1)]).to(device, dtype)

    def _positions(self, steps: int) -> Tensor:
        """Where the non-zero levels of a grid lie: uniform in ``u``, with ``u = 0`` replaced by the level 0."""
        return 1 - torch.arange(steps, dtype=torch.float64) / steps


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
