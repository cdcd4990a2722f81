"""How fast training runs, how much it computes, and how much of it is waiting for data."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..dtensors import is_sharded
from ..module import DiffusionModule
from ..recipes import recorded

__all__ = ["Clock", "Throughput"]


class Clock:
    """Wall time since the last reading, without the time spent in pauses."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Stop counting."""
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        """Count on."""
        if self._paused_at is not None:
            self._start += time.perf_counter() - self._paused_at
            self._paused_at = None

    def read(self) -> float:
        """Seconds since the last reading; starts the next one."""
        now = time.perf_counter()
        passed, self._start = now - self._start, now
        return passed


class FetchClock(Profiler):
    """Adds up the seconds in which the training loop waits for its next batch; everything else passes through unmeasured."""

    ACTION = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0
        self._begin = 0.0

    def start(self, action_name: str) -> None:
        """`Profiler.start`."""
        if action_name == self.ACTION:
            self._begin = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """`Profiler.stop`."""
        if action_name == self.ACTION:
            self.waited += time.perf_counter() - self._begin


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of what runs under it, by torch's formulas.

    Torch's own ``FlopCounterMode`` takes normalisations apart, which rounds otherwise; here everything runs as it would.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run ``func``, and add its operations."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket) if isinstance(func, OpOverload) else None
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@recorded
class Throughput(Callback):
    """Log ``speed/images_per_s``, ``speed/step_s``, ``speed/gflop_s`` and ``speed/data_wait`` (share of waiting for batches) every N steps.

    Wall times over the whole window without its validations, sample grids and checkpoints included; nothing is synchronised. The share of
    waiting is measured in the place of Lightning's default profiler; beside a profiler of your own it is left out, since that one reports
    it itself.

    Operations are those of the first micro-batch of a run, backward included, by torch's formulas (a multiply-add is two; matrix products,
    convolutions and attention; what is computed twice counts twice). They are left out where networks are compiled or sharded: neither can
    be seen into.

    Args:
        every_n_steps: optimizer steps per reading; None takes the trainer's ``log_every_n_steps``.

    Attributes:
        rates: the last reading, name -> value.
        flops: operations of a micro-batch on this rank; 0 where they were not counted.

    Raises:
        ValueError: ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or None, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.rates: dict[str, float] = {}
        self._clock = Clock()
        self._fetch: FetchClock | None = None
        self._every = 0
        self._step = 0
        self.flops = 0
        self._pending = False
        self._counter: Operations | None = None

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        """Take the default profiler's place."""
        if type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = FetchClock()
        self._fetch = trainer.profiler if isinstance(trainer.profiler, FetchClock) else None

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Start the clock."""
        self._every = self.every_n_steps or trainer.log_every_n_steps or 50
        self._step = trainer.global_step
        self._clock = Clock()
        if self._fetch is not None:
            self._fetch.waited = 0.0
        self.flops, self._pending = 0, _is_plain(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """Count the operations of the first micro-batch."""
        if self._pending:
            self._pending = False
            self._counter = Operations()
            self._counter.__enter__()

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Stop counting."""
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops, self._counter = self._counter.total, None

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """Read the clock on every N-th step."""
        self._stop_counting()
        steps = trainer.global_step - self._step
        if steps < self._every:
            return
        seconds = self._clock.read()
        self.rates = {"speed/images_per_s": steps * pl_module.global_batch / seconds, "speed/step_s": seconds / steps}
        if self.flops:
            done = self.flops * trainer.accumulate_grad_batches * trainer.world_size * steps
            self.rates["speed/gflop_s"] = done / seconds / 1e9
        if self._fetch is not None:
            self.rates["speed/data_wait"] = self._fetch.waited / seconds
            self._fetch.waited = 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self.rates, step=trainer.global_step)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Validation does not count."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Training goes on."""
        self._clock.resume()


def _is_plain(module: DiffusionModule) -> bool:
    """Whether the counter sees what a module computes."""
    compiled = any(part._compiled_call_impl is not None for part in module.modules())
    return not compiled and not any(is_sharded(p) for p in module.parameters())
