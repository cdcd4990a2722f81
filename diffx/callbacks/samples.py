"""Pictures, and sounds, of what a model has learned so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer

from .. import media, rng
from ..module import DiffusionModule
from ..recipes import recorded
from .ema import find_ema

if TYPE_CHECKING:
    from ..conditions import Cond

__all__ = ["SampleLogger"]


@recorded
class SampleLogger(Callback):
    """Sample a grid every so often, always from the same noise and conditions, into ``<run folder>/samples/`` and the logger.

    Pictures become ``step_000500.png``, clips ``step_000500.gif``, sounds a picture of their spectra and ``step_000500.wav``;
    ``last.png`` (``.gif``, ``.wav``) shows the end of training. With an `EMA`
    callback the averages are sampled and the logger's tag names the profile: ``samples/ema`` instead of ``samples/raw``. Training
    randomness is untouched.

    Args:
        every_n_steps: optimizer steps between grids.
        n: samples per grid.
        guidance: scale (1 = off, 0 = unconditional) or guide, as in ``module.sample``.
        cond: conditions of the grid, or class labels, repeated up to ``n``. By default those of the first validation batch (without
            validation data: of a training batch), except that plain class labels run through all of the data's ``classes``.
        seed: sample ``i`` starts from noise of seed ``seed + i``.
        sampler: replaces the module's own.
        chunk: largest batch to sample at once; all ``n`` by default.
        fps: frames per second of clips.
        rate: samples per second of sounds; None = the ``sample_rate`` of the data. Without either there is no WAV file.

    Raises:
        ValueError: ``every_n_steps`` or ``n`` below 1; when training starts, samples that are neither pictures, clips nor sounds.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        n: int = 16,
        guidance: float | Callable[..., Any] = 1.0,
        cond: Cond | Sequence[int] | None = None,
        seed: int = 0,
        sampler: Callable[..., Any] | None = None,
        chunk: int | None = None,
        fps: float = 8.0,
        rate: int | None = None,
    ) -> None:
        if every_n_steps < 1 or n < 1:
            raise ValueError(f"every_n_steps and n must be at least 1, got {every_n_steps} and {n}")
        self.every_n_steps = every_n_steps
        self.n = n
        self.guidance = guidance
        self.cond = cond
        self.seed = seed
        self.sampler = sampler
        self.chunk = chunk
        self.fps = fps
        self.rate = rate
        self._fixed: Cond | None = None
        self._batch: Any = None
        self._step = -1
        self._latest: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Check the shape before the first step rather than at the first grid."""
        if not media.showable(pl_module.shape):
            raise ValueError("SampleLogger shows pictures (C, H, W) and clips (C, T, H, W) with C = 1, 3 or 4, and sounds (C, L), but the "
                             f"module's samples have shape {tuple(pl_module.shape)}; remove the callback")  # fmt: skip
        self._fixed = None
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw the grid when its step was just taken."""
        step = trainer.global_step
        if self._fixed is None:
            self._batch = batch
        if step != self._step and step % self.every_n_steps == 0:
            self._latest = self._show(trainer, pl_module)
        self._step = step

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """The last grid; not sampled again when it is there already."""
        path = self._latest
        if path is None or path.stem != _name(trainer.global_step):
            path = self._show(trainer, pl_module)
        if trainer.is_global_zero:
            for shown in path.parent.glob(f"{path.stem}.*"):
                shutil.copyfile(shown, shown.with_stem("last"))

    def _show(self, trainer: Trainer, module: DiffusionModule) -> Path:
        """Sample on every rank, since sharded networks need all of them, and write on the first."""
        ema = find_ema(trainer)
        with rng.forked(self.seed, "samples"), ema.applied(module) if ema else nullcontext(), trainer.precision_plugin.forward_context():
            if self._fixed is None:
                self._fixed = self._conditions(trainer, module)
                self._batch = None
            x = module.sample(self.n, self._fixed, guidance=self.guidance, sampler=self.sampler, seed=self.seed, chunk=self.chunk)
        path = Path(trainer.default_root_dir, "samples", _name(trainer.global_step)).with_suffix(".gif" if x.ndim == 5 else ".png")
        if trainer.is_global_zero:
            sheet = media.grid(x)
            media.save(sheet, path, fps=self.fps)
            tag = f"samples/{ema.first if ema else 'raw'}"
            for logger in trainer.loggers:
                media.log_media(logger, tag, sheet, trainer.global_step, fps=self.fps)
            rate = self.rate or getattr(trainer.datamodule, "sample_rate", None)
            if x.ndim == 3 and rate is not None:
                sound = media.track(x, rate)
                media.save_sound(sound, path.with_suffix(".wav"), rate)
                for logger in trainer.loggers:
                    media.log_sound(logger, tag, sound, rate, trainer.global_step)
        return path

    def _conditions(self, trainer: Trainer, module: DiffusionModule) -> Cond:
        if self.cond is not None and not isinstance(self.cond, Sequence):
            return _repeated(self.cond, self.n)
        labels = self.cond
        batch = _first_batch(trainer)
        batch = self._batch if batch is None else trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        with torch.no_grad():
            cond = _repeated(module.request(batch), self.n)
        classes = getattr(trainer.datamodule, "classes", None)
        if labels is None and classes and cond.label is not None and cond.names == ("label",) and not cond.maps:
            labels = range(classes)
        if labels is None:
            return cond
        return replace(cond, label=torch.tensor([labels[i % len(labels)] for i in range(self.n)], device=module.device))


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _repeated(cond: Cond, n: int) -> Cond:
    """The first ``n`` rows, beginning again at the first when there are fewer."""
    if not len(cond):
        return cond
    rows = [i % len(cond) for i in range(n)]
    spans = None if cond.spans is None else [cond.spans[i] for i in rows]
    return replace(cond.map(lambda t: t[rows].clone()), spans=spans)


def _first_batch(trainer: Trainer) -> Any:
    """The first validation batch, or None without validation data."""
    loaders = trainer.val_dataloaders
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return None if loaders is None else next(iter(loaders), None)
