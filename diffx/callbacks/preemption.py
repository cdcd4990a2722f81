"""Runs that are asked to stop: saved at an agreed step, requeued, and over before the batch system loses patience."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from .. import cluster
from ..module import DiffusionModule
from ..recipes import recorded
from .agreement import Agreement
from .checkpoints import Checkpoints

__all__ = ["Preempted", "Preemption"]

log = logging.getLogger(__name__)

STOP, REQUEUE = 1, 2


class Preempted(Exception):
    """Raised out of ``trainer.fit`` when a signal ended it; everything up to ``step`` is saved.

    Args:
        received: the signal.
        step: optimizer steps done.
        saved: the checkpoint, None where no `Checkpoints` callback stands in the trainer.
        requeued: the SLURM job that starts again by itself, if one does.
        problem: why none does although it should.
    """

    def __init__(self, received: int, step: int, saved: Path | None, requeued: str | None = None, problem: str | None = None) -> None:
        self.received, self.step, self.saved, self.requeued, self.problem = received, step, saved, requeued, problem
        place = f"saved {saved}" if saved else "nothing was saved, because there is no callback that saves"
        then = f"; job {requeued} is requeued" if requeued else f"; not requeued: {problem}" if problem else ""
        super().__init__(f"{signal.Signals(received).name}: stopped after step {step}, {place}{then}")

    @property
    def exit_code(self) -> int:
        """0 for a job that goes on later, else 128 + the signal's number, so that a script does not take the run for finished."""
        return 0 if self.requeued else 128 + self.received


@recorded
class Preemption(Checkpoint):
    """Save and stop on SIGUSR1, SIGUSR2 or SIGTERM; after the first two a SLURM job is also requeued, and resumes in its run folder.

    The handlers do nothing but raise a flag. After each optimizer step all ranks agree on the highest flag, by one number over a gloo
    group, for which no accelerator has to wait; then all save the same step through `Checkpoints`, which belongs beside this callback,
    rank 0 calls ``scontrol requeue``, and `Preempted` leaves ``trainer.fit``. Saving inside a handler, as other trainers do, deadlocks as
    soon as one rank is a step ahead. A signal during validation ends the validation after its current batch. Ctrl-C keeps its meaning.

    SIGTERM does not requeue: whoever sends it (``scancel``, a preempting partition, a shutdown) either requeues the job or wants it gone.
    Ask for the other signals before the time limit: ``#SBATCH --signal=USR1@120``, as ``python -m diffx.submit`` does.

    Args:
        every_n_steps: optimizer steps between two agreements; with one process a flag is seen after every step.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._received = 0
        self._handlers: dict[int, Any] = {}
        self._agreement: Agreement | None = None
        self._step = 0
        self._shared_batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Listen, in the place of Lightning's own handlers, which are back when training is over."""
        self._received, self._step = 0, trainer.global_step
        self._agreement = Agreement(trainer)
        if threading.current_thread() is not threading.main_thread():
            log.warning("Preemption hears no signals: training does not run in the main thread")
            return
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; one that requeues is not forgotten over a later SIGTERM."""
        if self._received in (0, signal.SIGTERM):
            self._received = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """After an optimizer step: stop if any rank was asked to."""
        step = trainer.global_step
        if step != self._step and (trainer.world_size == 1 or step % self.every_n_steps == 0):
            self._step = step
            self._stop_if_asked(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Find out after how many batches all ranks can agree: some may have fewer."""
        batches = trainer.num_val_batches[0] if trainer.num_val_batches else 0
        known = self._agreement is not None and not trainer.sanity_checking
        self._shared_batches = -self._agree(-int(min(batches, 2**31))) if known else 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int,
                                dataloader_idx: int = 0) -> None:  # fmt: skip
        """During training, a validation is not worth being killed for."""
        if dataloader_idx == 0 and batch_idx < self._shared_batches:
            self._stop_if_asked(trainer, pl_module)

    def _agree(self, value: int) -> int:
        assert self._agreement is not None
        return self._agreement.highest(value)

    def _stop_if_asked(self, trainer: Trainer, module: DiffusionModule) -> None:
        """Agree; then save, requeue and raise `Preempted`, or do nothing."""
        flag = 0 if not self._received else STOP if self._received == signal.SIGTERM else REQUEUE
        agreed = self._agree(flag)
        if not agreed:
            return
        received = self._received if flag == agreed else signal.SIGTERM if agreed == STOP else signal.SIGUSR1
        step, saved = trainer.global_step, None
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.save(trainer, module)
                saved = callback.path(trainer) / f"step_{step:08d}.ckpt"
        job, problem = cluster.step(), None
        if agreed == REQUEUE and job is not None and trainer.is_global_zero:
            problem = cluster.requeue(job.job)
        requeued = job.job if agreed == REQUEUE and job is not None and problem is None else None
        raise Preempted(received, step, saved, requeued, problem)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Listen no longer."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers, self._agreement = {}, None
