"""`DiffusionModule`: what every technique is.

A technique is one LightningModule with two public methods of its own, `loss` and `sample`. The base supplies the Lightning face of it:
keyed seeding of every micro-batch, optimizer and learning rate, logging, validation on fixed noise, checkpoints that carry their recipe.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import rng
from .batch import Batch, batch_size, check_range
from .codecs import Codec, Identity
from .conditions import Cond
from .lr_schedules import LRSchedule
from .parts import Parts, freeze
from .recipes import recipe_of, recorded
from .recipes.load import SCHEMA, load
from .sharding import FSDP, check_strategy, shard
from .text import Encoder, Sources, as_sources, pooled_name
from .version import __version__

__all__ = ["ADAMW", "Batch", "DiffusionModule", "freeze"]

ADAMW = partial(AdamW, lr=1e-4, fused=True)  # the fused kernel takes a third of the time of the loop over tensors on a CPU


class DiffusionModule(Parts, ABC):
    """Base of all techniques.

    Its parts that are trained and averaged are named in the class attributes of `Parts`.

    Args:
        shape: shape of one sample in data space, e.g. ``(3, 64, 64)``; data lies in [-1, 1].
        codec: map between data space and the space the network works in; None works on the data itself. An ``nn.Module`` is frozen.
        text: encoder of the batch's ``"text"``, several by the names of their sources, or `Sources` (see `diffx.text`); None: no text.
        optimizer: called with parameter groups (see `parameter_groups`).
        lr_schedule: factor on the learning rate as a function of images seen (see `diffx.lr_schedules`); None keeps it constant.
        drop: rate(s) at which conditions are hidden in training, see `Cond.drop`; what makes guidance possible later.
        seed: base key of all training and validation randomness.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        codec: Codec | None = None,
        text: Encoder | Mapping[str, Encoder] | Sources | None = None,
        optimizer: Callable[..., Optimizer] = ADAMW,
        lr_schedule: LRSchedule | None = None,
        drop: float | Mapping[str, float] = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.codec = freeze(codec) if isinstance(codec, nn.Module) else codec or Identity()
        self.text = as_sources(text)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.drop = drop
        self.seed = seed
        self.images_seen = 0
        self.local_batch = 0
        self.phase = 0
        self.phase_start = (0, 0)  # optimizer steps and images seen when the current phase began
        self._slice = (0, 1)
        self._shared: torch.Generator | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Record the constructor arguments of every technique, a user's own included."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            recorded(cls)

    # What a technique writes ------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Named parts of the loss, each ``(B,)`` or ``()``; the mean of ``"loss"`` is descended.

        ``u`` ``(B,)`` in [0, 1] fixes the position on the schedule (noise level, mask ratio, degradation alike); None draws it with
        `positions`.
        """

    @abstractmethod
    def sample(self, n: int, cond: Cond = Cond(), *, guidance: Any = 1.0, sampler: Any = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Draw ``n`` samples ``(n, *shape)`` in data space, [-1, 1].

        Args:
            n: number of samples.
            cond: conditions of batch size ``n``, or empty.
            guidance: 1 is off, 0 unconditional; a number or a guide.
            sampler: replaces the technique's own.
            seed: sample ``i`` is a function of ``seed + i`` alone; None draws a fresh seed.
            shape: of one sample in data space; the module's own by default.
            chunk: largest batch to work on at once; all ``n`` by default.
        """

    def condition(self, batch: Batch) -> Cond:
        """Conditions named in a batch; the class label by default. Override to add more."""
        return Cond(label=batch.get("label"))

    def request(self, batch: Batch) -> Cond:
        """What samples beside these items are asked to show. Override where the module is told something else than the items say."""
        return self.condition(batch)

    def conditions_of(self, batch: Batch, net: nn.Module) -> Cond:
        """Class label, sources of text and vectors by name, as far as a batch has and ``net`` takes them (see its ``conditions``)."""
        takes = getattr(net, "conditions", None)
        cond = Cond() if self.text is None else self.text.cond(batch, lambda name: takes is None or name in takes.names)
        if vectors := {name: batch[name] for name in getattr(takes, "vectors", ()) if isinstance(batch.get(name), Tensor)}:
            cond = replace(cond, vectors={**cond.vectors, **vectors})
        return replace(cond, label=batch["label"]) if "label" in batch and (takes is None or "label" in takes.names) else cond

    # What a technique uses --------------------------------------------------------------------------------------------------------------

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """Clean latents ``(B, *)`` and conditions, with some of them hidden in training. The key ``"latent"`` means already encoded."""
        with torch.no_grad():
            x = batch["latent"] if "latent" in batch else self.codec.encode(batch["x"])
        cond = self.condition(batch)
        return x, self.hide(cond) if self.training and len(cond) else cond

    def hide(self, cond: Cond) -> Cond:
        """The conditions of a training batch with some of them hidden at random. Override where they are not hidden independently."""
        return cond.drop(self.drop) if self.text is None else self.text.drop(cond, self.drop)

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Refuse data whose samples have another shape than the module's. Override where something else in a batch is learnt."""
        if tuple(data_shape) != self.shape:
            raise ValueError(f"module.shape is {self.shape}, but the data gives samples of shape {tuple(data_shape)}; make them equal")

    def check_batch(self, batch: Batch) -> None:
        """Look at the first training batch; raises ValueError or TypeError for data that cannot be meant. Override to look for more."""
        check_range(batch)

    def positions(self, n: int) -> Tensor:
        """Positions ``(n,)`` on the schedule in (0, 1), stratified over the global batch of the current optimizer step."""
        return rng.stratified(n, slice=self._slice, device=self.device, generator=self._shared)

    def alike(self, purpose: str) -> torch.Generator | None:
        """Generator of what all ranks must draw alike, for it decides how often networks are called, and sharded ones are called together.

        A function of the purpose and the optimizer step; None, the default generator, outside of a trainer.
        """
        if self._trainer is None:
            return None
        return rng.generator(self.seed, purpose, self.global_step if self.training else 0)

    def sampled(self, n: int, cond: Cond, draw: Callable[[tuple[int, ...], Cond, list[torch.Generator]], Tensor], *,
                seed: int | None, shape: Sequence[int] | None, chunk: int | None) -> Tensor:  # fmt: skip
        """The border of every `sample`: checks, one generator per sample, chunks, evaluation mode, decoding.

        ``draw(shape (m, *latent), cond, generators)`` makes one chunk of latents. Gradients are off but may be enabled inside: nothing here
        runs in inference mode.
        """
        if n < 1 or len(cond) not in (0, n):
            raise ValueError(f"sample needs n >= 1 and conditions for all n samples or none; got n = {n} and conditions for {len(cond)}")
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        latent = self.codec.shape(self.shape if shape is None else shape)
        parts = []
        with self.drawing():
            for start in range(0, n, chunk or n):
                m = min(chunk or n, n - start)
                part = cond.rows(slice(start, start + m)).map(lambda t: t.clone()).to(self.device)
                z = draw((m, *latent), part, rng.sample_generators(seed, m, start))
                parts.append(self.codec.decode(z).clamp(-1, 1))
            return torch.cat(parts)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Evaluation mode without gradients, which may be enabled inside; the mode before comes back afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self.train(training)

    def check_guidance(self, guidance: Any, cond: Cond) -> None:
        """Refuse a guidance scale that nothing was trained for.

        Raises:
            ValueError: a number other than 1 without conditions, or on a module that never saw all of them hidden.
        """
        if not isinstance(guidance, (int, float)) or guidance == 1:
            return
        if not cond.names:
            raise ValueError(f"guidance = {guidance} needs conditions to guide towards, but cond is empty; pass cond or guidance = 1")
        rates = self.drop if isinstance(self.drop, Mapping) else {"*": self.drop}
        dropped = {name for name, rate in rates.items() if rate}
        if "*" not in dropped and (never := {*cond.names} - dropped - {pooled_name(name) for name in dropped}):
            raise ValueError(f"guidance = {guidance} needs a model that was trained with its conditions hidden at times, but drop is "
                             f"{self.drop}, so {sorted(never)} never were; train with drop = 0.1 or sample with guidance = 1")  # fmt: skip

    def new_phase(self) -> None:
        """Begin the technique's next stage: optimizer and learning rate start afresh, callbacks with ``on_phase`` hear of it."""
        self.phase += 1
        self.phase_start = (self.global_step, self.images_seen)
        self.trainer.strategy.setup_optimizers(self.trainer)
        for callback in self.trainer.callbacks:
            if hasattr(callback, "on_phase"):
                callback.on_phase(self.trainer, self)

    @classmethod
    def load(cls, path: str, weights: str = "ema", **arguments: Any) -> Self:
        """Load a checkpoint of this very class; what its recipe could not write down is given as ``arguments``. See `diffx.load`."""
        return load(path, weights, cls=cls, **arguments)

    # Lightning --------------------------------------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        """Images per optimizer step: data-parallel ranks x micro-batches x local batch."""
        return self.local_batch * self._replica()[1] * self.trainer.accumulate_grad_batches

    def _replica(self) -> tuple[int, int]:
        """Data-parallel rank and count: what the strategy would tell a distributed sampler, so model-parallel ranks share their draws."""
        known = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return known["rank"], known["num_replicas"]

    def configure_model(self) -> None:
        """Shard the networks where the strategy wants it; see `diffx.sharding` for what it refuses."""
        check_strategy(self.trainer.strategy, self)
        if isinstance(self.trainer.strategy, FSDP):
            shard(self, self.trainer.strategy.device_mesh["data_parallel"], self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Compare the data's shape with the module's, and begin to train: a module from a checkpoint comes in evaluation mode."""
        self.train()
        data_shape = getattr(getattr(self.trainer, "datamodule", None), "shape", None)
        if data_shape is not None:
            self.check_shape(data_shape)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Seed by (seed, step, slice), compute the loss, log it on the steps that the logger keeps."""
        micro_batches = self.trainer.accumulate_grad_batches
        rank, replicas = self._replica()
        index = batch_idx % micro_batches * replicas + rank
        self._slice = (index, replicas * micro_batches)
        self._shared = rng.generator(self.seed, "positions", self.global_step)
        rng.seed_default(self.seed, "step", self.global_step, index)
        if not self.local_batch:
            self.check_batch(batch)
        self.local_batch = batch_size(batch)
        parts = self.loss(batch)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log_parts("train", parts, batch)
            if self.text is not None:
                self.log_dict({f"text/{name}": rate for name, rate in self.text.rates().items()}, batch_size=self.local_batch)
        return parts["loss"].mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss on noise that is the same in every validation."""
        with rng.forked(self.seed, "validation", batch_idx, self._replica()[0]):
            self._slice, self._shared = (0, 1), None
            self.log_parts("val", self.loss(batch), batch)

    def log_parts(self, stage: str, parts: Mapping[str, Tensor], batch: Batch) -> None:
        """Log the mean of each part as ``stage/part``."""
        values = {f"{stage}/{name}": value.detach().mean() for name, value in parts.items()}
        self.log_dict(values, prog_bar=True, batch_size=batch_size(batch), sync_dist=stage == "val", on_step=stage == "train",
                      on_epoch=stage == "val")  # fmt: skip

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer over `parameter_groups`; learning rate from ``lr_schedule`` at every step."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_schedule is None:
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._lr_factor), "interval": "step"}}

    def _lr_factor(self, _: int) -> float:
        assert self.lr_schedule is not None
        return self.lr_schedule(self.images_seen - self.phase_start[1], self.phase_images())

    def phase_images(self) -> float:
        """Images that the current phase will last; infinity where nobody knows. Phases of known length override it."""
        steps = self.trainer.max_steps - self.phase_start[0]
        return steps * self.global_batch if steps > 0 and self.local_batch else math.inf

    def phase_done(self) -> bool:
        """Whether the current phase has had its last step. Techniques with phases override it."""
        return False

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and count the images of it."""
        super().optimizer_step(*args, **kwargs)
        self.images_seen += self.global_batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe and the counters as plain types."""
        checkpoint["diffx"] = {
            "schema": SCHEMA,
            "version": __version__,
            "recipe": recipe_of(self),
            "images_seen": self.images_seen,
            "local_batch": self.local_batch,
            "phase": self.phase,
            "phase_start": self.phase_start,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back."""
        for name in ("images_seen", "local_batch", "phase", "phase_start"):
            setattr(self, name, checkpoint["diffx"][name])
