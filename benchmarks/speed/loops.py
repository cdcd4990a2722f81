"""Starting a program, and what the training loop costs beside the step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.harness import Setting, Subject
from benchmarks.speed.rows import Goal, Makers, Row

__all__ = ["LOOPS"]

BARE_FIT = """
import torch, lightning
from torch.utils.data import DataLoader, TensorDataset
class Tiny(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(64, 64)
    def training_step(self, batch, _):
        return (self.net(batch[0]) - batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())
trainer = lightning.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
trainer.fit(Tiny(), DataLoader(TensorDataset(torch.randn(8, 64)), 4))
"""
FIT = ("-m", "diffx.fit", "experiment=digits/edm", "small=true", "trainer.max_steps=1", "~callbacks.samples", "resume=never")
STEPS = 200


def _program(name: str, arguments: Sequence[str]) -> Subject:
    """A run of Python of its own; the clock counts the CPU time of children."""

    def call() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return Subject(name, call, counted=False)


def help_makers(setting: Setting) -> Makers:
    """Programs that answer without training."""
    programs = {
        "import lightning": ("-c", "import lightning"),
        "diffx --help": ("-m", "diffx.fit", "--help"),
        "diffx --list": ("-m", "diffx.fit", "--list"),
        "diffx, a misspelt key": ("-c", "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'diffx.fit', "
                                        "'experiment=digits/edm', 'module.sed=1']).returncode != 2)"),
    }  # fmt: skip
    return {name: partial(_program, name, arguments) for name, arguments in programs.items()}


def start_makers(setting: Setting) -> Makers:
    """From the call to the end of the first training step."""
    runs = tempfile.TemporaryDirectory()

    def ours(name: str) -> Subject:
        subject = _program(name, (*FIT, f"runs={runs.name}"))
        return Subject(name, lambda: (runs, subject.call())[1], counted=False)

    return {
        "bare Lightning fit": partial(_program, "bare Lightning fit", ("-c", BARE_FIT)),
        "diffx fit, one step": partial(ours, "diffx fit, one step"),
    }


# The loop -------------------------------------------------------------------------------------------------------------------------------


class TinyNet(nn.Module):
    """A perceptron whose step takes less than what surrounds it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))

    def forward(self, x: Tensor, noise: Tensor, cond: Any = None) -> Tensor:
        return self.layers(x.flatten(1)).view_as(x) * noise.view(-1, 1, 1, 1)


def _module(log: bool | None) -> Any:
    """The EDM technique over the tiny network; ``log``: log on kept steps as diffx does (None), in each step as is usual, or never."""
    from diffx import EDM, Denoiser

    class Module(EDM):
        def log_parts(self, stage: str, parts: Any, batch: Any) -> None:
            if log is None:
                super().log_parts(stage, parts, batch)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if log:
                self.log("train/loss", loss, prog_bar=True)
            return loss

    return Module(Denoiser(TinyNet()), shape=(1, 8, 8))


def loop_makers(setting: Setting) -> Makers:
    """200 steps of a tiny EDM on the digits, each side with its way of logging, averaging and showing progress; set-up included."""

    def fit(name: str, log: bool | None, callbacks: Callable[[], list[Any]], **options: Any) -> Subject:
        import lightning as L
        from lightning.pytorch.loggers import TensorBoardLogger

        from diffx.data import Digits

        folder = tempfile.TemporaryDirectory()
        logged = options.pop("logged", False)

        def call() -> None:
            logger = TensorBoardLogger(folder.name, name="tb", version="") if logged else False
            given = {"enable_progress_bar": False, "enable_checkpointing": False, **options}
            trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=STEPS, max_epochs=-1, logger=logger, callbacks=callbacks(),
                                enable_model_summary=False, check_val_every_n_epoch=None, val_check_interval=10 * STEPS,
                                num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=folder.name, **given)  # fmt: skip
            trainer.fit(_module(log), Digits(64))

        return Subject(name, call, counted=False)

    def ours() -> list[Any]:
        from lightning.pytorch.callbacks import TQDMProgressBar

        from diffx.callbacks import EMA, Guard, Preemption, Throughput

        return [EMA(), Guard(), Preemption(), Throughput(), TQDMProgressBar(refresh_rate=20)]

    def few() -> list[Any]:
        return [callback for callback in ours() if type(callback).__name__ in {"EMA", "TQDMProgressBar"}]

    def usual() -> list[Any]:
        from lightning.pytorch.callbacks import EMAWeightAveraging

        return [EMAWeightAveraging()]

    return {
        "Trainer, all off": lambda: fit("Trainer, all off", False, list),
        "diffx, logging, EMA, bar": lambda: fit("diffx, logging, EMA, bar", None, few, logged=True, enable_progress_bar=True),
        "diffx, all default callbacks": lambda: fit(
            "diffx, all default callbacks", None, ours, logged=True, enable_progress_bar=True, enable_checkpointing=True
        ),
        "Trainer, usual logging, EMA, bar": lambda: fit(
            "Trainer, usual logging, EMA, bar", True, usual, logged=True, enable_progress_bar=True
        ),
    }


LOOPS: tuple[Row, ...] = (
    Row("help", "programs that only answer", help_makers, (Goal("diffx --help", "import lightning", 0.10),), rounds=5, short=True),
    Row("start", "start to first step", start_makers, (Goal("diffx fit, one step", "bare Lightning fit", 1.15),), rounds=5),
    Row("loop", "training loop of a tiny network, 200 steps", loop_makers, (
        Goal("diffx, logging, EMA, bar", "Trainer, all off", 1.30),
        Goal("diffx, logging, EMA, bar", "Trainer, usual logging, EMA, bar", 0.80),
    ), rounds=5),
)  # fmt: skip
