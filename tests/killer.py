"""A callback that kills its own process, as a power cut would."""

import os
import signal

import lightning as L


class Kill(L.Callback):
    """SIGKILL in the middle of the forward pass after ``step`` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
