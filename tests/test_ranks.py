"""Two ranks with one micro-batch each train what one rank with two micro-batches trains: same data, levels, noise, drops."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffx import fit

SGD = "{_target_: torch.optim.SGD, _partial_: true, lr: 0.3}"
# Experiment -> what it needs beside. The parts of DMD2 take turns: in every step some parameters have a gradient on no rank.
PLANS = {
    "digits/edm": (),
    "digits/progressive": (),
    "digits/cold_blur": (),
    "digits/dmd": ("module.groups=null", "callbacks.ema=null"),
}


def words(runs: Path, experiment: str, name: str, *options: str) -> list[str]:
    """Three steps of plain SGD, which does not blow rounding up as Adam does, on the experiment in its small form."""
    return [f"experiment={experiment}", "small=true", f"runs={runs}", f"run={name}", "trainer.accelerator=cpu", "callbacks.samples=null",
            "trainer.gradient_clip_val=null", "module.lr_schedule=null", f"module.optimizer={SGD}",
            *PLANS[experiment], *options]  # fmt: skip


def weights(runs: Path, experiment: str, name: str) -> dict[str, torch.Tensor]:
    return torch.load(runs / experiment / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def train(runs: Path, experiment: str, name: str, *options: str) -> dict[str, torch.Tensor]:
    """Raw weights after training in this process."""
    assert fit.main(words(runs, experiment, name, *options)) == 0
    return weights(runs, experiment, name)


def train_on_two(runs: Path, experiment: str, name: str, *options: str) -> dict[str, torch.Tensor]:
    """Raw weights after training in two processes, the first of which starts the second."""
    command = [sys.executable, "-m", "diffx.fit", *words(runs, experiment, name, "trainer.devices=2", *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return weights(runs, experiment, name)


@pytest.mark.parametrize(
    "experiment",
    ["digits/edm", "digits/dmd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("digits/progressive", "digits/cold_blur"))],
)
def test_two_processes_equal_two_micro_batches(tmp_path, experiment):
    ddp = "ddp_find_unused_parameters_true" if experiment == "digits/dmd" else "ddp"
    spread = train_on_two(tmp_path, experiment, "spread", f"trainer.strategy={ddp}")
    stacked = train(tmp_path, experiment, "stacked", "+trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    alone = train(tmp_path, experiment, "alone")
    for name, value in spread.items():
        torch.testing.assert_close(stacked[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert max((alone[name] - value).abs().max() for name, value in spread.items()) > 1e-3
