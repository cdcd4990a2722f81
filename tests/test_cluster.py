"""What SLURM's variables say, and what contradicts them; SLURM itself is `test_slurm.py`."""

from __future__ import annotations

import os
import socket
import time

import pytest

from diffx import cluster
from diffx.recipes import runs
from diffx.recipes.errors import RecipeError

STEP = {
    "SLURM_JOB_ID": "120345",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
}


def fake(tmp_path, monkeypatch, name: str, script: str) -> None:
    """Put a program first on PATH."""
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_step():
    assert cluster.step({}) is None
    assert cluster.step(STEP) == cluster.Step("120345", 2, 4, 5, "gpu07", 15345)
    array = {**STEP, "SLURM_ARRAY_JOB_ID": "120340", "SLURM_ARRAY_TASK_ID": "3", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
    assert cluster.step(array) == cluster.Step("120340_3", 2, 4, 5, "10.0.0.7", 29500)
    assert cluster.step({**STEP, "TORCHELASTIC_RUN_ID": "x"}) is None, "torchrun inside a job"


def test_one_process_and_shells():
    batch = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NTASKS": "1"}
    assert cluster.step(batch) == cluster.Step("7", 1, 1, 0, "127.0.0.1", 15007)
    assert cluster.step({**STEP, "SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}) is None
    assert cluster.step({**STEP, "SLURM_JOB_NAME": "interactive"}) is not None, "srun in an allocation"
    with pytest.raises(RecipeError, match="put srun before the command"):
        cluster.step({**batch, "SLURM_NNODES": "2"})
    with pytest.raises(RecipeError, match="same number"):
        cluster.step({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4,3"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n[3-5],m1", "n3"), ("a-b[007,9]-x,c", "a-b007-x"), ("n1,n2", "n1"), ("h0 h1", "h0"), ("10.1.2.3", "10.1.2.3")],
)
def test_first_host(hosts, first):
    assert cluster.first_host(hosts) == first


def test_contradictions():
    step = cluster.step(STEP)
    for given in ({}, {"devices": "auto"}, {"devices": -1}, {"devices": 4, "num_nodes": 2}, {"devices": [0, 1, 2, 3]}, {"devices": "4"}):
        assert cluster.check_trainer(step, given) == {"num_nodes": 2, "devices": 4}
    with pytest.raises(RecipeError) as caught:
        cluster.check_trainer(step, {"devices": 8, "num_nodes": 1})
    assert len(caught.value.problems) == 2 and "submit with nodes=1" in str(caught.value)


def test_rendezvous(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster.check_rendezvous(cluster.Step("1", 2, 1, 1, "127.0.0.1", port))
        with pytest.raises(RecipeError, match="MASTER_PORT"):
            cluster.check_rendezvous(cluster.Step("1", 2, 1, 0, "127.0.0.1", port))
    nowhere = cluster.Step("1", 2, 1, 0, "no-such-host.invalid", port)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(2))
    with pytest.raises(RecipeError, match=r"did not resolve within 0\.1 s; set MASTER_ADDR"):
        cluster.check_rendezvous(nowhere, seconds=0.1)

    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RecipeError, match="does not resolve"):
        cluster.check_rendezvous(nowhere)
    cluster.check_rendezvous(cluster.Step("1", 1, 1, 0, "no-such-host.invalid", 1))


def test_requeue(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "scontrol", f'echo "$#: $*" >> {tmp_path}/asked')
    assert cluster.requeue("12_3") is None
    assert (tmp_path / "asked").read_text() == "2: requeue 12_3\n"
    fake(tmp_path, monkeypatch, "scontrol", "echo Job is no batch job >&2; exit 1")
    assert cluster.requeue("12") == "scontrol requeue 12: Job is no batch job"


def test_the_run_folder_is_the_jobs(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert runs.new_id() == "120345"
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert runs.new_id() == "120345.0", "the ranks of an srun in an allocation share it; the next srun has another"
