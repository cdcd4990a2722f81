"""A signal ends a run at a step that is saved, whenever it comes; the run that goes on from there is the uninterrupted one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from diffx import fit
from diffx.recipes import runs

sys.path.append(str(Path(__file__).parents[1]))
from test_cluster import fake
from test_resume import differences

WORDS = ["experiment=digits/edm", "small=true", "trainer.accelerator=cpu", "callbacks.samples=null", "callbacks.bands=null",
         "logger.tensorboard=null", "trainer.max_steps=5",
         "trainer.val_check_interval=2", "callbacks.checkpoints.every_n_steps=100", "trainer.limit_val_batches=3"]  # fmt: skip


class Send(L.Callback):
    """Send this process a signal in a hook at a step."""

    def __init__(self, hook: str, step: int, number: int) -> None:
        self.step, self.number = step, number
        setattr(self, hook, self.send)

    def send(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def train(monkeypatch, folder: Path, run: str, *more: str) -> int:
    monkeypatch.delenv(runs.SHARED, raising=False)
    return fit.main([*WORDS, f"runs={folder}", f"run={run}", *more])


def last(folder: Path, run: str) -> dict:
    return torch.load(folder / "digits/edm" / run / "checkpoints/last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, folder, "run") == 0
    return last(folder, "run")


@pytest.mark.parametrize(
    ("hook", "step", "number", "stops"),
    [
        ("on_train_batch_start", 2, signal.SIGUSR1, 3),
        pytest.param("on_before_optimizer_step", 2, signal.SIGUSR2, 3, marks=pytest.mark.slow),
        ("on_validation_batch_start", 2, signal.SIGTERM, 2),
        pytest.param("on_validation_batch_end", 4, signal.SIGUSR1, 4, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_undisturbed(tmp_path, monkeypatch, capsys, whole, hook, step, number, stops):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
    send = f"+callbacks.send={{_target_: test_preemption.Send, hook: {hook}, step: {step}, number: {int(number)}}}"
    assert train(monkeypatch, tmp_path, "run", send) == 128 + number
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
    assert f"{number.name}: stopped after step {stops}, saved " in capsys.readouterr().out
    cut = last(tmp_path, "run")
    average = cut["callbacks"]["diffx.EMA"]["profiles"]["ema"]["weights"]
    assert cut["global_step"] == stops and any(not torch.equal(cut["state_dict"][name], value) for name, value in average.items())
    assert train(monkeypatch, tmp_path, "run") == 0
    resumed = last(tmp_path, "run")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "diffx", "datamodule"):
        assert not differences(whole.get(part), resumed.get(part), part)
    assert not differences(whole["callbacks"]["diffx.EMA"], resumed["callbacks"]["diffx.EMA"], "ema")


def test_a_job_is_requeued_once_and_ends_well(tmp_path, monkeypatch, capsys):
    fake(tmp_path, monkeypatch, "scontrol", f'echo "$*" >> {tmp_path}/asked')
    names = ("SLURM_NNODES", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_JOB_NAME": "t", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                        "SLURM_NODEID": "0", **dict.fromkeys(names, "1")}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(runs.SHARED, raising=False)
    send = "+callbacks.send={_target_: test_preemption.Send, hook: on_train_batch_start, step: 1, number: 10}"
    assert fit.main([*WORDS, f"runs={tmp_path}", send]) == 0
    assert (tmp_path / "asked").read_text() == "requeue 9\n"
    assert "job 9 is requeued" in capsys.readouterr().out
    fake(tmp_path, monkeypatch, "scontrol", "echo not allowed >&2; exit 1")
    assert fit.main([*WORDS, f"runs={tmp_path}", send.replace("step: 1", "step: 3")]) == 128 + signal.SIGUSR1
    out = capsys.readouterr().out
    assert "continues from" in out and "not requeued: scontrol requeue 9: not allowed" in out
    assert fit.main([*WORDS, f"runs={tmp_path}", "trainer.devices=2"]) == 2
