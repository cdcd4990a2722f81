"""Two nodes under a real SLURM on this machine: `make test-slurm`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, missing
from test_resume import differences

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]

TESTS = Path(__file__).resolve().parent
SGD = "{_target_: torch.optim.SGD, _partial_: true, lr: 0.3}"  # does not blow rounding up, as Adam does
SMALL = ["experiment=digits/edm", "small=true", "trainer.accelerator=cpu", "callbacks.samples=null", "callbacks.bands=null"]
PLAIN = ["trainer.gradient_clip_val=null", "module.lr_schedule=null", f"module.optimizer={SGD}", "trainer.val_check_interval=100"]
LONG = ["trainer.max_steps=12", "callbacks.checkpoints={every_n_steps: 100, keep: 5}", "trainer.val_check_interval=8"]
VARIABLES = {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = missing()
    if reason:
        pytest.skip(f"NO SLURM CLUSTER WAS TRIED: {reason}")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def submit(cluster: Cluster, runs: Path, *words: str, local: bool = True) -> str:
    """Submit a run on both nodes; the job's number."""
    more = ["master=127.0.0.1"] if local else []
    out = cluster.run(sys.executable, "-m", "diffx.submit", *words, f"runs={runs}", "nodes=2", *more, more=VARIABLES)
    found = re.match(r"job (\d+):", out)
    assert found, out
    return found[1]


def output(runs: Path, job: str) -> str:
    return next(runs.glob(f"slurm/*-{job}.out")).read_text()


def last(runs: Path, run: str) -> dict:
    return torch.load(runs / "digits/edm" / run / "checkpoints/last.ckpt", weights_only=True)


def test_two_nodes_equal_two_micro_batches_and_draw_different_noise(cluster, tmp_path):
    """The ranks see the slices that one process sees one after the other: same data, levels and noise."""
    job = submit(cluster, tmp_path, *SMALL, *PLAIN, f"+callbacks.witness={{_target_: witness.Witness, folder: {tmp_path}/saw}}")
    alone = ["trainer.accelerator=cpu", "+trainer.accumulate_grad_batches=2", f"runs={tmp_path}", "run=stacked"]
    environment = {**{key: value for key, value in os.environ.items() if key != "DIFFX_RUN_FOLDER"}, **VARIABLES}
    state = cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED")
    assert state == "COMPLETED", output(tmp_path, job)
    command = [sys.executable, "-m", "diffx.fit", *SMALL, *PLAIN, *alone]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spread, stacked = last(tmp_path, job), last(tmp_path, "stacked")
    gap = max(float((spread["state_dict"][name] - value).abs().max()) for name, value in stacked["state_dict"].items())
    print(f"largest difference of a weight: {gap:.2e}")
    assert spread["diffx"]["images_seen"] == stacked["diffx"]["images_seen"] and gap < 2e-5
    draws = [(tmp_path / f"saw/rank{rank}").read_text().split()[1:] for rank in (0, 1)]
    assert len(draws[0]) == 3 and len({*draws[0], *draws[1]}) == 6


def test_requeue_under_rank_skew_loses_nothing(cluster, tmp_path):
    """A signal while rank 0 sleeps and rank 1 waits in the gradient's reduction; the job comes back and ends where it would have ended."""
    slow = f"+callbacks.witness={{_target_: witness.Witness, folder: {tmp_path}/saw, slow: 0.7}}"
    job = submit(cluster, tmp_path, *SMALL, *LONG, slow)
    limit = time.monotonic() + 120
    while not (tmp_path / "saw/rank0").exists() or int((tmp_path / "saw/rank0").read_text().split()[0]) < 4:
        assert time.monotonic() < limit, output(tmp_path, job)
        time.sleep(0.1)
    time.sleep(0.2)
    signalled = time.monotonic()
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(job, "PENDING", seconds=60)
    print(f"signal to requeued: {time.monotonic() - signalled:.1f} s")
    saved = last(tmp_path, job)["global_step"]
    steps = [int((tmp_path / f"saw/rank{rank}").read_text().split()[0]) for rank in (0, 1)]
    assert steps[0] == steps[1] == saved and 4 <= saved < 12
    # SLURM waits two minutes otherwise; within the same second it refuses the credential, for those of the killed job were revoked
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    cluster.wait(job, "RUNNING", seconds=60)
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", output(tmp_path, job)
    text = output(tmp_path, job)
    assert f"SIGUSR1: stopped after step {saved}" in text and f"job {job} is requeued" in text and "continues from" in text

    whole = submit(cluster, tmp_path, *SMALL, *LONG)
    assert cluster.wait(whole, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", output(tmp_path, whole)
    one, other = last(tmp_path, job), last(tmp_path, whole)
    assert one["global_step"] == other["global_step"] == 12
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "diffx"):
        assert not differences(one[part], other[part], part)
    assert not differences(one["callbacks"]["diffx.EMA"], other["callbacks"]["diffx.EMA"], "ema")


def test_an_address_that_does_not_resolve_is_answered_at_once(cluster, tmp_path):
    """The nodes of this cluster have names that nobody knows; without a check the ranks would wait for half an hour."""
    job = submit(cluster, tmp_path, *SMALL, local=False)
    cluster.wait(job, "RUNNING", "FAILED", seconds=60)
    started = time.monotonic()
    assert cluster.wait(job, "FAILED", "COMPLETED", seconds=60) == "FAILED"
    text = output(tmp_path, job)
    print(f"answered {time.monotonic() - started:.1f} s after the start")
    assert "does not resolve" in text and "MASTER_ADDR" in text and time.monotonic() - started < 30
