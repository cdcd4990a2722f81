"""A callback that tells a test what each rank does, and makes one of them slow."""

import time
from pathlib import Path

import lightning as L
import torch

from diffx import files


class Witness(L.Callback):
    """After every optimizer step write ``rank<r>`` with the step and the first number that the rank's step-keyed generator gives.

    Args:
        folder: where.
        slow: seconds that rank 0 sleeps before every step but the first.
    """

    def __init__(self, folder: str, slow: float = 0.0) -> None:
        self.folder, self.slow = Path(folder), slow
        self.draws: list[float] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        """The default generator was seeded for this rank and step, and has drawn the step's noise."""
        with torch.random.fork_rng(devices=[]):
            self.draws.append(float(torch.randn(())))

    def on_train_batch_start(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_rank == 0 and trainer.global_step:
            time.sleep(self.slow)

    def on_train_batch_end(self, trainer: L.Trainer, *_) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([str(trainer.global_step), *map(str, self.draws)])
        files.write(self.folder / f"rank{trainer.global_rank}", lambda file: file.write(text.encode()))  # whole, whenever it is read
