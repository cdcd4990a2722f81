"""EDM: a denoiser trained on noise of all levels (Karras et al. 2022, arXiv:2206.00364). The base of every Gaussian technique."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..augment import AugmentPipe
from ..codecs import Codec
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, as_guide
from ..lr_schedules import LRSchedule
from ..module import ADAMW, Batch, DiffusionModule
from ..samplers import Heun, Sampler
from ..schedules import LogNormal, Schedule
from ..tensors import expand, mean_flat
from ..text import Encoder, Sources

__all__ = ["EDM"]


class EDM(DiffusionModule):
    """Denoising score matching in the sigma frame: the weighted squared error of ``D(x + sigma n, sigma)`` against ``x`` (eq. 2 and 8).

    Args:
        denoiser: network with preconditioning; eps, v, x0 and flow networks train here as well as EDM's own.
        shape: shape of one sample in data space.
        schedule: training noise levels; EDM's log-normal by default.
        weighting: sigma ``(B,)`` -> weight of the squared error; the denoiser's own by default, i.e. plain squared error on the raw output.
        uncertainty: learned uncertainty over noise levels (EDM2), e.g. `diffx.weightings.LearnedUncertainty`; trained along, not averaged.
        augment: non-leaking augmentation; the network must take the vector ``"augment"``.
        sampler: used by `sample` unless another is given; Heun with 18 steps by default.
        codec, text, optimizer, lr_schedule, drop, seed: see `DiffusionModule`. Text encoders that are not frozen are averaged, too.

    Raises:
        ValueError: the network does not take a source of text, or takes another width.
    """

    trained: tuple[str, ...] = ("denoiser", "uncertainty", "text")
    averaged: tuple[str, ...] = ("denoiser", "text")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        shape: Sequence[int],
        schedule: Schedule = LogNormal(),
        weighting: Callable[[Tensor], Tensor] | None = None,
        uncertainty: nn.Module | None = None,
        augment: AugmentPipe | None = None,
        sampler: Sampler | None = None,
        codec: Codec | None = None,
        text: Encoder | Mapping[str, Encoder] | Sources | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
        lr_schedule: LRSchedule | None = None,
        drop: float | Mapping[str, float] = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(shape=shape, codec=codec, text=text, optimizer=optimizer, lr_schedule=lr_schedule, drop=drop, seed=seed)
        self.denoiser = denoiser
        self.schedule = schedule
        self.weighting = weighting or denoiser.weight
        self.uncertainty = uncertainty
        self.augment = augment
        self.sampler = sampler or Heun()
        if self.text is not None:
            self.text.attach(denoiser.net)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted squared error ``"loss"`` and the plain one ``"mse"``, each ``(B,)``; u is the position on the training schedule."""
        x, cond = self.inputs(batch)
        if self.augment is not None and self.training:
            x, label = self.augment(x)
            cond = replace(cond, vectors={**cond.vectors, "augment": label})
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        noisy = x + expand(sigma, x) * torch.randn_like(x)
        mse = mean_flat((self.denoiser(noisy, sigma, cond) - x).square())
        loss = self.weighting(sigma) * mse
        return {"loss": loss if self.uncertainty is None else self.uncertainty(sigma, loss), "mse": mse}

    def on_fit_start(self) -> None:
        """Compare shape and number of classes with the data's before the first step: an accelerator would not tell which label is wrong."""
        super().on_fit_start()
        takes = getattr(getattr(self.denoiser.net, "conditions", None), "classes", 0)
        classes = getattr(getattr(self.trainer, "datamodule", None), "classes", None) or 0
        if takes and classes > takes:
            raise ValueError(f"the data has {classes} classes, the network takes {takes}; build it with classes={classes}")
        self._check_buckets(getattr(getattr(self.trainer, "datamodule", None), "buckets", ()))

    def _check_buckets(self, buckets: Sequence[Sequence[int]]) -> None:
        """A canvas that the network cannot halve often enough would stop the run only when its turn comes."""
        divisor = getattr(self.denoiser.net, "divisor", 1)
        latents = {tuple(size): tuple(self.codec.shape((self.shape[0], *size))[1:]) for size in buckets}
        if wrong := [size for size, latent in latents.items() if any(side % divisor for side in latent)]:
            raise ValueError(f"the network needs sides (of latents) that {divisor} divides, but the data has buckets {wrong}; "
                             "give grid_buckets or equal_area_buckets the step that fits")  # fmt: skip

    def check_batch(self, batch: Batch) -> None:
        """Refuse to train a class-conditional network on batches without labels."""
        super().check_batch(batch)
        classes = getattr(getattr(self.denoiser.net, "conditions", None), "classes", 0)
        if classes and self.condition(batch).label is None:
            raise ValueError(f"the network takes labels of {classes} classes, but a batch holds {sorted(batch)}; name the labels in the "
                             "data, override condition(), or build the network with classes=0")  # fmt: skip

    def condition(self, batch: Batch) -> Cond:
        """Class label, sources of text and vectors by name, as far as the data has and the network takes them. Override to add more."""
        cond = Cond() if self.text is None else self.text.cond(batch, self.denoiser.takes)
        known = getattr(getattr(self.denoiser.net, "conditions", None), "vectors", ())
        if vectors := {name: batch[name] for name in known if isinstance(batch.get(name), Tensor)}:
            cond = replace(cond, vectors={**cond.vectors, **vectors})
        return replace(cond, label=batch["label"]) if "label" in batch and self.denoiser.takes("label") else cond

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Guide = 1.0, sampler: Sampler | None = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Walk unit noise down the sampler's grid under the guided denoiser; arguments as in `DiffusionModule.sample`."""
        self.check_guidance(guidance, cond)
        guide = as_guide(guidance)
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            noise = rng.randn(size, generators, device=self.device)
            return walk(guide(self.denoiser, cond), noise, generator=generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)
