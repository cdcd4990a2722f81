"""Cold diffusion: learning the way back from any degradation (Bansal et al. 2022, arXiv:2208.09392)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..conditions import Cond
from ..degradations import Degradation, GaussianStart, Improved, Naive, Walk, check_degradation
from ..module import Batch, DiffusionModule
from ..tensors import mean_flat

__all__ = ["ColdDiffusion"]


class ColdDiffusion(DiffusionModule):
    """Trains a restorer ``R(x_s, s)`` on the absolute error to the data at random levels s, and restores or generates step by step.

    The restorer is ``x_s + net(x_s, s)``: a fresh network leaves pictures as they are. What wholly degraded pictures look like is
    summed up on the way by ``start``, from which `sample` begins.

    Args:
        net: ``(x (B, C, H, W), level (B,), cond) -> (B, C, H, W)``, any network of diffx.
        degradation: of the pictures, or of latents.
        start: law of wholly degraded data; a `GaussianStart` for the network's classes by default.
        noise: standard deviation of what `sample` adds to its start, to break symmetry (section 6.2). A network that never saw noise is
            better off with none.
        sampler: the way back; `Improved` by default.
        options: see `DiffusionModule`.

    Raises:
        ValueError: a degradation that changes data at level 0, or its shape; negative noise.
    """

    trained = ("net", "text")
    averaged = ("net", "text")

    def __init__(
        self, net: nn.Module, *, degradation: Degradation, start: GaussianStart | None = None, noise: float = 0.0,
        sampler: Walk | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if noise < 0:
            raise ValueError(f"noise must be >= 0, got {noise}")
        latent = self.codec.shape(self.shape)
        check_degradation(degradation, latent)
        self.net, self.degradation, self.noise = net, degradation, noise
        self.start = start or GaussianStart(latent, getattr(getattr(net, "conditions", None), "classes", 0))
        self.sampler: Any = sampler or Improved()
        if self.text is not None:
            self.text.attach(net)

    def condition(self, batch: Batch) -> Cond:
        """Class label, sources of text and vectors by name, as far as the data has and the network takes them."""
        return self.conditions_of(batch, self.net)

    def restore(self, x: Tensor, level: Tensor, cond: Cond = Cond()) -> Tensor:
        """The estimate (B, *) of clean latents from ``x`` at ``level`` (B,)."""
        return x + self.net(x, level.to(x), cond)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Mean absolute error ``"loss"`` of the restorer and its mean square ``"mse"``, each ``(B,)``.

        At u the level is ``ceil(u T)``, at least 1.
        """
        x, cond = self.inputs(batch)
        u = self.positions(len(x)) if u is None else u
        level = (u * self.degradation.steps).ceil().long().clamp(1, self.degradation.steps)
        parameters = self.degradation.parameters(x)
        if self.training:
            worst = torch.full_like(level, self.degradation.steps)
            self.start.update(self.degradation(x, worst, parameters), batch.get("label"))
        error = self.restore(self.degradation(x, level, parameters), level, cond) - x
        return {"loss": mean_flat(error.abs()), "mse": mean_flat(error.square())}

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float = 1.0, sampler: Walk | None = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `DiffusionModule.sample`: a draw of ``start`` is taken for wholly degraded data and restored.

        Raises:
            ValueError: guidance, which cold diffusion does not know; another shape than the module's; nothing was trained yet.
        """
        if guidance != 1:
            raise ValueError(f"cold diffusion knows no guidance, got {guidance}; sample with guidance = 1")
        if shape is not None and tuple(shape) != self.shape:
            raise ValueError(f"the start was fitted to samples of shape {self.shape}, got {tuple(shape)}")

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            x = self.start.draw(size[0], cond.label, generators)
            x = x + self.noise * rng.randn(size, generators, device=self.device)
            *_, last = self._states(x, self.degradation.steps, cond, self.degradation.parameters(x, generators), sampler)
            return last

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def degrade(self, x: Tensor, level: int | None = None, *, seed: int = 0) -> Tensor:
        """Degraded data ``(B, *shape)`` at ``level``, the last one by default; ``seed`` decides what is random, see `restored`."""
        level = self.degradation.steps if level is None else level
        with self.drawing():
            z = self.codec.encode(x.to(self.device))
            parameters = self.degradation.parameters(z, rng.sample_generators(seed, len(z)))
            return self.codec.decode(self.degradation(z, torch.full((len(z),), level, device=self.device), parameters))

    def restored(self, x: Tensor, cond: Cond = Cond(), *, level: int | None = None, sampler: Walk | None = None,
                 seed: int = 0) -> Iterator[Tensor]:  # fmt: skip
        """The way back from degraded data ``(B, *shape)`` at ``level``, one state per step; the last one is the restored data in [-1, 1].

        Args:
            x: what `degrade` returned.
            cond: conditions of the data, batch B or empty.
            level: at which it is; the last one by default.
            sampler: the module's own by default.
            seed: as in `degrade`.

        Raises:
            ValueError: a level out of range.
        """
        level = self.degradation.steps if level is None else level
        if not 0 <= level <= self.degradation.steps:
            raise ValueError(f"levels must lie in [0, {self.degradation.steps}], got {level}")
        with self.drawing():
            z = self.codec.encode(x.to(self.device))
            parameters = self.degradation.parameters(z, rng.sample_generators(seed, len(z)))
            for state in self._states(z, level, cond.to(self.device), parameters, sampler):
                yield self.codec.decode(state).clamp(-1, 1)

    def restorations(self, x: Tensor, cond: Cond = Cond(), *, sampler: Walk | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Data ``(B, *shape)``, wholly degraded and brought back: ``"own"`` by the module's way (or ``sampler``), ``"naive"`` by `Naive`.

        From these `diffx.metrics.evaluate` computes ``psnr``, ``psnr_gain``, ``frechet_ratio`` and ``restored_accuracy``.
        """
        ways = {"own": sampler or self.sampler, "naive": Naive()}
        worst = self.degrade(x, seed=seed)
        return {name: deque(self.restored(worst, cond, sampler=way, seed=seed), maxlen=1)[0] for name, way in ways.items()}

    def _states(self, x: Tensor, level: int, cond: Cond, parameters: Any, sampler: Walk | None) -> Iterator[Tensor]:
        walk: Walk = sampler or self.sampler
        return walk.states(x, level, lambda z, s: self.restore(z, s, cond), lambda z, s: self.degradation(z, s, parameters))
