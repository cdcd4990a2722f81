"""Batch files: what they ask for, that nothing in them is run by accident, and what is refused before it is queued."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from test_cluster import fake

from diffx import submit

PAYLOAD = 'it\'s; touch pwned $(touch pwned) `touch pwned` "$HOME" \\'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory whose srun prints its arguments, one a line."""
    monkeypatch.chdir(tmp_path)
    fake(tmp_path, monkeypatch, "srun", r'printf "%s\n" "$@"')
    return tmp_path


def run(text: str, **variables: str) -> list[str]:
    """What the batch file would have passed to srun."""
    done = subprocess.run(["bash", "-c", text], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def dry(capsys, *words: str) -> str:
    assert submit.main([*words, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_one_job(here, capsys):
    text = dry(capsys, "experiment=digits/edm", "small=true", "nodes=2", "devices=4", "time=1:30:00", "cpus=8", "partition=gpu", "seed=3")
    asked = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8", "--time=1:30:00", "--partition=gpu", "--requeue",
            "--signal=USR1@120", "--open-mode=append", "--output=runs/slurm/%x-%j.out", "--job-name=digits-edm"} == asked  # fmt: skip
    assert run(text) == ["--kill-on-bad-exit=1", sys.executable, "-m", "diffx.fit", "experiment=digits/edm", "small=true", "seed=3"]
    assert "gpus" not in dry(capsys, "experiment=digits/edm", "trainer.accelerator=cpu")


def test_arrays(here, capsys):
    text = dry(capsys, "experiment=digits/edm", "sweep.seed=[0, 1]", "sweep.module.optimizer.lr=[1e-3, 2e-3, 3e-3]", "parallel=2")
    assert "#SBATCH --array=0-5%2\n" in text and "%A_%a.out" in text
    assert run(text, SLURM_ARRAY_TASK_ID="4")[-2:] == ["seed=1", "module.optimizer.lr=0.002"]
    text = dry(capsys, "experiment=digits/expert", "bands=[0, 0.5, 1]", "sweep.seed=[7, 8]")
    assert run(text, SLURM_ARRAY_TASK_ID="3")[-3:] == ["module.schedule.low=0.5", "module.schedule.high=1", "seed=8"]


def test_nothing_of_the_configuration_is_run_by_the_shell(here, capsys):
    text = dry(capsys, "experiment=digits/edm", f"description='{PAYLOAD.replace(chr(39), chr(39) * 2)}'")
    assert PAYLOAD.replace("'", "''") in run(text)[-1]
    swept = submit.Options(sweeps={"description": [PAYLOAD, "x"]})
    text = submit.batch_file(swept, "a b;c", [], ["x\n#SBATCH --wrap=evil"], log=here, gpu=False)
    assert "touch pwned" in run(text, SLURM_ARRAY_TASK_ID="0")[-1] and "\n#SBATCH --wrap" not in text
    assert not (here / "pwned").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=digits/edm", "trainer.max_step=3"], "did you mean 'max_steps'"),
        (["experiment=digits/edm", "nodes=0", "partition=a b"], "one word"),
        (["experiment=digits/edm", "sweep.seed=3"], "must be a list"),
        (["experiment=digits/edm", "sweep.sed=[3]"], "did you mean 'seed'"),
        (["experiment=digits/edm", "bands=2"], "unknown argument 'low'"),
        (["experiment=digits/expert", "bands=[0, 2]"], "rising edges"),
        (["experiment=digits/edm", "sweep.seed=[1, 2]", "run=x"], "one folder"),
        (["experiment=digits/edm", "runs=a b"], "other"),
    ],
)
def test_mistakes_are_found_before_the_queue(here, capsys, words, message):
    assert submit.main([*words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err or message == "other"


def test_submission(here, capsys, monkeypatch):
    fake(here, monkeypatch, "sbatch", 'echo "77;main"; test "$1" = --parsable -a -f "$2"')
    assert submit.main(["experiment=digits/edm", "nodes=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("job 77: 1 task, from runs/slurm/digits-edm-") and "run folder runs/digits/edm/77," in out
    assert submit.main(["experiment=digits/edm", "run=mine"]) == 0 and "run folder runs/digits/edm/mine," in capsys.readouterr().out
    fake(here, monkeypatch, "sbatch", "echo invalid partition >&2; exit 1")
    assert submit.main(["experiment=digits/edm"]) == 1
    assert "invalid partition" in capsys.readouterr().err
