"""Two ranks with one micro-batch each train what one rank with two micro-batches trains: same data, levels, noise, drops."""

import os
import subprocess
import sys
from pathlib import Path

import torch


def train(runs: Path, name: str, *options: str) -> dict[str, torch.Tensor]:
    """Raw weights after three steps of plain SGD, which does not blow rounding up as Adam does, on ``digits/edm`` in its small form."""
    words = ["experiment=digits/edm", "small=true", f"runs={runs}", f"run={name}", "trainer.accelerator=cpu", "callbacks.samples=null",
             "trainer.gradient_clip_val=null", "module.lr_schedule=null", "module.optimizer._target_=torch.optim.SGD",
             "~module.optimizer.betas", "module.optimizer.lr=0.3", *options]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "DIFFX_RUN_FOLDER"}
    done = subprocess.run([sys.executable, "-m", "diffx.fit", *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(runs / "digits" / "edm" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_two_processes_equal_two_micro_batches(tmp_path):
    spread = train(tmp_path, "spread", "trainer.devices=2", "trainer.strategy=ddp")
    stacked = train(tmp_path, "stacked", "+trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    alone = train(tmp_path, "alone")
    for name, value in spread.items():
        torch.testing.assert_close(stacked[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert max((alone[name] - value).abs().max() for name, value in spread.items()) > 1e-3
