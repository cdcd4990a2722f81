"""EDM: a denoiser trained on noise of all levels (Karras et al. 2022, arXiv:2206.00364)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..augment import AugmentPipe
from ..conditions import Cond
from ..denoiser import Denoiser
from ..distances import Distance
from ..module import Batch
from ..rng import noised
from ..tensors import mean_flat
from .gaussian import Gaussian

__all__ = ["EDM"]


class EDM(Gaussian):
    """Denoising score matching in the sigma frame: the weighted squared error of ``D(x + sigma n, sigma)`` against ``x`` (eq. 2 and 8).

    Args:
        denoiser: network with preconditioning; eps, v, x0 and flow networks train here as well as EDM's own.
        weighting: sigma ``(B,)`` -> weight of the error; the denoiser's own by default, i.e. plain squared error on the raw output.
        distance: (estimate, x, batch) -> (B,), the error of an estimate; the mean square by default. See `diffx.distances`.
        uncertainty: learned uncertainty over noise levels (EDM2), e.g. `diffx.weightings.LearnedUncertainty`; trained along, not averaged.
        augment: non-leaking augmentation; the network must take the vector ``"augment"``.
        options: see `Gaussian`.
    """

    trained = (*Gaussian.trained, "uncertainty")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        weighting: Callable[[Tensor], Tensor] | None = None,
        distance: Distance | None = None,
        uncertainty: nn.Module | None = None,
        augment: AugmentPipe | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser=denoiser, **options)
        self.weighting = weighting or denoiser.weight
        self.distance = distance
        self.uncertainty = uncertainty
        self.augment = augment

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `DiffusionModule`; in training augmented."""
        x, cond = super().inputs(batch)
        if self.augment is None or not self.training:
            return x, cond
        x, label = self.augment(x)
        return x, replace(cond, vectors={**cond.vectors, "augment": label})

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted error ``"loss"`` and the plain squared one ``"mse"``, each ``(B,)``; u is the position on the training schedule."""
        x, cond = self.inputs(batch)
        sigma = self.levels(len(x)) if u is None else self.schedule.sigma(u)
        return self.errors(self.estimate(noised(x, sigma), sigma, cond), x, sigma, batch)

    def levels(self, n: int) -> Tensor:
        """The noise levels (n,) of a training step: the schedule at stratified positions. Override where not all of them are meant."""
        return self.schedule.sigma(self.positions(n))

    def estimate(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The denoiser's estimate (B, *) of clean data in a training step. Override where training asks it in another way than sampling."""
        return self.denoiser(noisy, sigma, cond)

    def errors(self, estimate: Tensor, x: Tensor, sigma: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The named errors, each (B,), of ``estimate`` (B, *) at levels ``sigma`` (B,) against clean ``x``."""
        mse = mean_flat((estimate - x).square())
        loss = self.weighting(sigma) * (mse if self.distance is None else self.distance(estimate, x, batch))
        return {"loss": loss if self.uncertainty is None else self.uncertainty(sigma, loss), "mse": mse}
