"""Progress: a bar for people at a terminal, lines for log files."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from ..module import DiffusionModule
from ..recipes import recorded
from .throughput import Clock

__all__ = ["ProgressLine", "progress"]

GRADIENT_NORMS = ("train/grad_norm", "grad_norm")


def progress(every_n_steps: int = 50, refresh_rate: int = 20) -> ProgressBar:
    """Lightning's bar when the output is a terminal, `ProgressLine` otherwise.

    Args:
        every_n_steps: optimizer steps per line.
        refresh_rate: batches per refresh of the bar; refreshing each one costs more than a small network's step.
    """
    return TQDMProgressBar(refresh_rate=refresh_rate) if sys.stdout.isatty() else ProgressLine(every_n_steps)


@recorded
class ProgressLine(ProgressBar):
    """One line per N optimizer steps: step, loss, images/s, learning rate and, where something logs it, the gradient norm.

    The loss is read on the printed steps only. A validation adds a line with its losses.

    Args:
        every_n_steps: optimizer steps per line.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._enabled = True
        self._clock = Clock()
        self._step = 0

    def disable(self) -> None:
        """Print nothing; Lightning calls it on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Where ``module.print`` goes."""
        if self._enabled:
            print(*args, **{"flush": True, **kwargs})

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock = Clock()
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Print on every N-th step."""
        step = trainer.global_step
        if not self._enabled or step == self._step or step % self.every_n_steps:
            return
        rate = (step - self._step) * pl_module.global_batch / self._clock.read()
        self._step = step
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning hands out the micro-batch's share of it
        parts = [f"loss {loss:.4g}", f"{rate:.4g} images/s", f"lr {trainer.optimizers[0].param_groups[0]['lr']:.3g}"]
        norm = next((value for name, value in trainer.callback_metrics.items() if name in GRADIENT_NORMS), None)
        parts += [] if norm is None else [f"grad norm {float(norm):.3g}"]
        self.print("  ".join([f"step {step}" + (f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""), *parts]))

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Validation does not count as training time."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Print what was measured."""
        self._clock.resume()
        if trainer.sanity_checking or not self._enabled:
            return
        measured = trainer.callback_metrics.items()
        if values := [f"{name} {float(value):.4g}" for name, value in measured if name.startswith("val/") or name == "bands/mean"]:
            self.print("  ".join([f"step {trainer.global_step}  validation", *values]))
