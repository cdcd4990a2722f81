"""Two ranks with one micro-batch each train what one rank with two micro-batches trains: same data, levels, noise, drops."""

import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from sharded_parts import furthest, technique, trained, two_micro_batches
from technique_list import TECHNIQUES
from test_resume import differences
from two_ranks import on_ranks

from diffx import FSDP, fit
from diffx.callbacks import Guard
from diffx.dtensors import gathered

pytestmark = pytest.mark.timeout(900)
SGD = "{_target_: torch.optim.SGD, _partial_: true, lr: 0.3}"


def words(runs: Path, experiment: str, name: str, *options: str) -> list[str]:
    """Three steps of plain SGD, which does not blow rounding up as Adam does, on the experiment in its small form."""
    return [f"experiment={experiment}", "small=true", f"runs={runs}", f"run={name}", "trainer.accelerator=cpu", "callbacks.samples=null",
            "trainer.gradient_clip_val=null", "module.lr_schedule=null", f"module.optimizer={SGD}", *options]  # fmt: skip


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
    ("experiment", "strategy"),
    [("digits/edm", "ddp"), *(pytest.param(name, how, marks=pytest.mark.slow)
                              for name, how in (("digits/edm", "fsdp"), ("digits/progressive", "ddp"), ("digits/cold_blur", "ddp")))],
)  # fmt: skip
def test_two_processes_equal_two_micro_batches(tmp_path, experiment, strategy):
    spread = train_on_two(tmp_path, experiment, "spread", f"trainer.strategy={strategy}")
    stacked = train(tmp_path, experiment, "stacked", "+trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    alone = train(tmp_path, experiment, "alone")
    for name, value in spread.items():
        torch.testing.assert_close(stacked[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert max((alone[name] - value).abs().max() for name, value in spread.items()) > 1e-3


# Every technique, on ranks forked from the test -------------------------------------------------------------------------------------------

QUICK = ("dmd", "experts", "edm_text")
RUNNING = {"vq", "autoencoder"}  # averages that follow every micro-batch: two of one rank are not one of two
WHOLE = {"experts_sharing"}  # refused by FSDP, see test_sharding.py


def strategy_of(name: str, sharded: bool) -> object:
    turns = technique(name)[0].takes_turns
    return FSDP() if sharded else "ddp_find_unused_parameters_true" if turns else "ddp"


def work(folder: Path, names: tuple[str, ...], sharded: bool) -> dict[str, dict[str, torch.Tensor]]:
    return {name: trained(technique(name), folder, world=2, strategy=strategy_of(name, sharded))["weights"] for name in names}


def check(folder: Path, names: tuple[str, ...], sharded: bool) -> None:
    first, second = on_ranks(work, folder, folder, names, sharded)
    for name in names:
        assert not differences(first[name], second[name], name)
        assert differences(technique(name)[0].state_dict(), first[name]), name
        if name not in RUNNING:
            assert furthest(two_micro_batches(lambda name=name: technique(name), folder)["weights"], first[name]) < 2e-6, name


def test_techniques_under_ddp(tmp_path):
    """Parts that take turns, experts that are idle, a frozen teacher, encoders trained along."""
    check(tmp_path, QUICK, sharded=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TECHNIQUES} - {*QUICK}))
def test_every_technique_under_ddp(tmp_path, name):
    check(tmp_path, (name,), sharded=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TECHNIQUES} - WHOLE))
def test_every_technique_under_fsdp(tmp_path, name):
    check(tmp_path, (name,), sharded=True)


def plain_ddp(folder: Path) -> list[str]:
    said = []
    for name in ("dmd", "experts"):
        with pytest.raises(ValueError, match="plain DDP waits") as caught:
            trained(technique(name), folder, world=2, strategy="ddp")
        said.append(str(caught.value))
    return said


# The guard --------------------------------------------------------------------------------------------------------------------------------


class Break(L.Callback):
    """One rank meets a batch that is not finite in the second step; notes the weights after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 1:
            batch["x"] = torch.full_like(batch["x"], float("nan"))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append({name: value.clone() for name, value in gathered(pl_module.state_dict(), keep=True).items()})


def guarded(folder: Path) -> dict[str, object]:
    made = {}
    for name, strategy in (("ddp", "ddp"), ("fsdp", FSDP())):
        guard, broken = Guard(spike=9.0, window=50), Break()
        trained(technique("dit"), folder / name, 3, world=2, strategy=strategy, callbacks=[broken, guard], gradient_clip_val=1.0)
        made[name] = {"skipped": guard.skipped, "seen": broken.seen}
    return made | {"plain ddp": plain_ddp(folder)}


@pytest.fixture(scope="module")
def guards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    return folder, on_ranks(guarded, folder, folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_leave_out_the_step_that_one_of_them_spoilt(guards, strategy):
    folder, ranks = guards
    for made in ranks:
        seen = made[strategy]["seen"]
        assert made[strategy]["skipped"] == 1
        assert not differences(seen[0], seen[1]) and differences(seen[1], seen[2])
        assert all(value.isfinite().all() for value in seen[2].values())
    assert not differences(*(made[strategy]["seen"] for made in ranks))
    told = [json.loads((folder / strategy / "guard" / f"step_00000001_rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [part["micro_batches"][0]["rows_not_finite"] for part in told] == [{}, {"x": [0, 1]}]


def test_plain_ddp_is_refused_where_parts_take_turns(guards):
    for said in guards[1][0]["plain ddp"]:
        assert "ddp_find_unused_parameters_true" in said
