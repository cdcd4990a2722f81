"""Checkpoints that are whole, verified, and never lost to the next one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from .. import files, folders
from ..module import DiffusionModule
from ..recipes import recorded

__all__ = ["AtomicCheckpointIO", "Checkpoints"]

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads and writes a trainer's checkpoints through `diffx.files`: atomically, with checksums, tensors and plain types only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write; a disk that is full or read-only stops the run with an ``OSError`` that names path and reason."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            files.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read, after comparing checksums; ``weights_only=False`` trusts the file and skips that.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged.
        """
        if weights_only is not False and "://" not in str(path):
            files.verify(path)
        if Path(path).is_dir():
            return folders.read(path)
        return super().load_checkpoint(path, map_location, weights_only is not False)


@recorded
class Checkpoints(Checkpoint):
    """Save to ``<run folder>/checkpoints/``: ``step_00001000.ckpt`` and so on, the newest also as ``last.ckpt``.

    The last one of each phase of a technique stays for good, as ``phase_0.ckpt`` and so on: the students of progressive distillation.

    Saves happen after an optimizer step and never between the micro-batches of one: every N steps, at the end of training, and when
    training is interrupted or fails, if the state is still that after a step (and there is one process: nobody knows where the others
    are). The callback brings its own `AtomicCheckpointIO` unless the trainer was given another one. `diffx.files.latest` finds the newest
    good file.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many to keep; the older ones are what a damaged newest one falls back to.
        folder: where, instead of the run folder's ``checkpoints``.

    Raises:
        ValueError: ``every_n_steps`` or ``keep`` below 1.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 3, folder: str | None = None) -> None:
        super().__init__()
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"every_n_steps and keep must be at least 1, got {every_n_steps} and {keep}")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.folder = folder
        self._step = self._saved = 0
        self._boundary = False
        self._buffers: list[Tensor] = []
        self._versions: list[int] = []

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        """Install the atomic reader and writer."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            files.prune(self.path(trainer))

    def path(self, trainer: Trainer) -> Path:
        """The folder of the checkpoints."""
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir, "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """What was resumed from is saved already."""
        self._step = self._saved = trainer.global_step
        self._boundary = True
        self._buffers = list(pl_module.buffers())
        self._versions = [buffer._version for buffer in self._buffers]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: DiffusionModule, optimizer: Any) -> None:
        """From here until the end of the batch the weights are between two steps."""
        self._boundary = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """Save when it is time; a run that ends here is saved here, with the loops' counters as in the middle of a run."""
        step = trainer.global_step
        self._boundary = step != self._step
        self._step = step
        self._versions = [buffer._version for buffer in self._buffers]
        if self._boundary and (pl_module.phase_done() or step % self.every_n_steps == 0 or 0 <= trainer.max_steps <= step):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Save now, on all ranks, unless this step is saved already. For callbacks, between an optimizer step and the next batch."""
        self._save(trainer, f"phase_{pl_module.phase}.ckpt" if pl_module.phase_done() else None)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Save what a stop for another reason left unsaved."""
        if self._boundary:
            self._save(trainer)
        self._boundary = False

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Save the last complete step; a disk that fails here is reported without hiding the exception."""
        boundary = self._boundary and self._untouched(pl_module)
        self._boundary = False
        if boundary and trainer.world_size == 1 and not isinstance(exception, OSError):
            try:
                self._save(trainer)
            except OSError as error:
                log.warning("%s", error)

    def _untouched(self, module: DiffusionModule) -> bool:
        """Whether no forward pass has changed a buffer (a batch norm's statistics) since the step: then nothing of the next one is left."""
        buffers = list(module.buffers())
        same = len(buffers) == len(self._buffers) and all(a is b for a, b in zip(buffers, self._buffers, strict=True))
        return same and [buffer._version for buffer in buffers] == self._versions

    def _save(self, trainer: Trainer, result: str | None = None) -> None:
        step = trainer.global_step
        if step == self._saved:
            return
        folder = self.path(trainer)
        path = folder / f"step_{step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = step
        if trainer.is_global_zero:
            for name in ("last.ckpt", *([result] if result else [])):
                files.link(path, folder / name)
            files.prune(folder, self.keep)
