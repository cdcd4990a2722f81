"""`Gaussian`: what every technique with a denoiser of Gaussian noise is, whatever it is trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, as_guide
from ..module import Batch, DiffusionModule
from ..samplers import Heun, Sampler
from ..schedules import LogNormal, Schedule

__all__ = ["Gaussian"]


class Gaussian(DiffusionModule):
    """A denoiser in the sigma frame, the law of its training levels and the sampler that walks it. A subclass writes `loss`.

    Args:
        denoiser: network with preconditioning.
        schedule: training noise levels; EDM's log-normal by default.
        sampler: used by `sample` unless another is given; Heun with 18 steps by default.
        options: see `DiffusionModule`. Text encoders that are not frozen are averaged, too.

    Raises:
        ValueError: the network does not take a source of text, or takes another width.
    """

    trained: tuple[str, ...] = ("denoiser", "text")
    averaged: tuple[str, ...] = ("denoiser", "text")

    def __init__(self, denoiser: Denoiser, *, schedule: Schedule = LogNormal(), sampler: Sampler | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.denoiser = denoiser
        self.schedule = schedule
        self.sampler = sampler or Heun()
        if self.text is not None:
            self.text.attach(denoiser.net)

    # Conditions and borders -------------------------------------------------------------------------------------------------------------

    def condition(self, batch: Batch) -> Cond:
        """Class label, sources of text and vectors by name, as far as the data has and the network takes them. Override to add more."""
        return self.conditions_of(batch, self.denoiser.net)

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

    # Walks ------------------------------------------------------------------------------------------------------------------------------

    def guided(self, n: int, cond: Cond, guidance: Any) -> tuple[Cond, Guide]:
        """The conditions of ``n`` samples and the guide that binds them to the denoiser, at the beginning of every walk.

        Override it for a network that is told the guidance, or that hands something on from call to call. A guide is called once per chunk
        of samples, so what it keeps belongs to one walk.

        Raises:
            ValueError: see `check_guidance`.
        """
        self.check_guidance(guidance, cond)
        return cond, as_guide(guidance)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Walk unit noise down the sampler's grid under the guided denoiser; arguments as in `DiffusionModule.sample`."""
        cond, guide = self.guided(n, cond, guidance)
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            noise = rng.randn(size, generators, device=self.device)
            return walk(guide(self.denoiser, cond), noise, generator=generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def encode(self, x: Tensor, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None) -> Tensor:
        """Walk data ``(B, *shape)`` up to noise of about unit variance, ``(B, *latent)``; the way back is `decode`.

        The data counts as a state at the lowest level of the sampler's schedule, which must be small but honest, such as 0.02: nearer to 0
        the direction of the first step is lost in rounding. Decoding under another label carries a picture's style over to that class.

        Args:
            x: data in [-1, 1].
            cond: what the data is, batch B or empty.
            guidance: as in `sample`.
            sampler: a deterministic one, walked upwards; the module's own by default.

        Raises:
            ValueError: the module's own sampler knows no levels; see also `guided`.
        """
        walk = self._walker(sampler)
        cond, guide = self.guided(len(x), cond, guidance)
        levels = [walk.schedule.sigma_min, *walk.sigmas()[-2::-1]]
        with self.drawing():
            return walk.walk(guide(self.denoiser, cond.to(self.device)), self.codec.encode(x), levels) / levels[-1]

    def decode(
        self, noise: Tensor, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None
    ) -> Tensor:
        """Walk given unit noise ``(B, *latent)`` down to data ``(B, *shape)`` in [-1, 1]; arguments as in `encode`."""
        walk = self._walker(sampler)
        cond, guide = self.guided(len(noise), cond, guidance)
        with self.drawing():
            return self.codec.decode(walk(guide(self.denoiser, cond.to(self.device)), noise)).clamp(-1, 1)

    def _walker(self, sampler: Sampler | None) -> Sampler:
        walk = sampler or self.sampler
        if not isinstance(walk, Sampler):
            raise ValueError(f"encode and decode walk the levels of a sampler of diffx, but {walk} has none; give one, such as Heun()")
        return walk
