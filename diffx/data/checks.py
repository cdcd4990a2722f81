"""Checks at the border between data and Trainer; each error says what was got, what was expected and what to do."""

from __future__ import annotations

import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor

__all__ = ["align_accumulation", "check_range", "check_stream"]

VALIDATE = "set Trainer(val_check_interval=<micro-batches between validations>, check_val_every_n_epoch=None)"


def check_stream(trainer: L.Trainer, *, validates: bool, epoch: float) -> None:
    """Refuse Trainer settings that mean nothing, or something else, on an endless stream.

    Args:
        trainer: the Trainer that is about to fit.
        validates: whether there is validation data.
        epoch: optimizer steps that one pass over the data takes.

    Raises:
        ValueError: the Trainer counts in epochs, or accumulates in a way that the position in the data cannot follow.
    """
    if trainer.fast_dev_run:
        return
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    counted = isinstance(limit, int)
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ValueError(
            "GradientAccumulationScheduler changes the global batch during a run; set Trainer(accumulate_grad_batches=...) instead"
        )
    if trainer.overfit_batches > 0:
        raise ValueError(f"overfit_batches={trainer.overfit_batches}: the training stream has no end to cut; use a smaller data set")
    if not counted and limit != 1.0:
        raise ValueError(f"limit_train_batches={limit}: a fraction of an endless stream; set max_steps, or an integer limit_train_batches")
    if counted and limit % accumulate:
        raise ValueError(
            f"limit_train_batches={limit} must be a multiple of accumulate_grad_batches={accumulate}, or samples are miscounted"
        )
    if not counted and trainer.max_steps == -1 and trainer.max_epochs not in (None, -1):
        raise ValueError(
            f"max_epochs={trainer.max_epochs} never ends an endless stream; set max_steps={round(epoch * trainer.max_epochs)} "
            f"(one pass over the data is {epoch:g} steps), or max_epochs=-1 to train until stopped"
        )
    if validates and trainer.limit_val_batches != 0 and not counted:
        _check_interval(trainer)


def _check_interval(trainer: L.Trainer) -> None:
    interval = getattr(trainer, "val_check_interval", None)  # absent when validation is timed
    if isinstance(interval, float) and interval != 1.0:
        raise ValueError(f"val_check_interval={interval}: a fraction of an endless stream; {VALIDATE}")
    if isinstance(interval, float):
        warnings.warn(f"validation runs at the end of an epoch, which an endless stream does not have; {VALIDATE}", stacklevel=2)


def align_accumulation(trainer: L.Trainer) -> None:
    """Let a resumed run begin with a whole accumulation window.

    Lightning steps whenever its count of micro-batches is a multiple of ``accumulate_grad_batches``. A run that resumes with another
    accumulation than before would take its first step too early; so the count is lowered to a multiple.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    surplus = progress.ready % trainer.accumulate_grad_batches
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress, name, getattr(progress, name) - surplus)


def check_range(x: Tensor) -> None:
    """Refuse float data outside [-1, 1]; other types pass.

    Raises:
        ValueError: a value lies outside [-1, 1] or is not finite.
    """
    if not x.is_floating_point() or x.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(x.float()))
    if not (low >= -1.0001 and high <= 1.0001):  # resampling may overshoot by rounding; a comparison with nan is false
        raise ValueError(
            f'float data must lie in [-1, 1], got batch["x"] in [{low:g}, {high:g}]; '
            "scale it (x / 127.5 - 1 for [0, 255], 2 x - 1 for [0, 1]) or hand over uint8 pictures"
        )
    if low >= 0:
        warnings.warn(f'batch["x"] lies in [{low:g}, {high:g}]: if the data is scaled to [0, 1], make it 2 x - 1', stacklevel=2)
