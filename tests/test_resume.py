"""A run that was killed and resumed equals the uninterrupted one, bit for bit, through the verb that people use."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffx import fit

TESTS = Path(__file__).parent


def argv(runs, name, workers, accumulation, *more):
    """Checkpoints at 2, 4, ...; validation after 3 optimizer steps, that is between a checkpoint and the kill."""
    return ["experiment=digits/edm", "small=true", f"runs={runs}", f"run={name}", f"data.num_workers={workers}", "trainer.max_steps=7",
            f"+trainer.accumulate_grad_batches={accumulation}", f"trainer.val_check_interval={3 * accumulation}", "callbacks.samples=null",
            "trainer.accelerator=cpu", *more]  # fmt: skip


def last(runs, name):
    return torch.load(runs / "digits" / "edm" / name / "checkpoints" / "last.ckpt", weights_only=True)


def differences(a, b, at=""):
    """Key paths at which two nested states differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{at}.{key}" for key in a.keys() ^ b.keys()]
        return found + [path for key in a.keys() & b.keys() for path in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [path for i, (x, y) in enumerate(zip(a, b, strict=True)) for path in differences(x, y, f"{at}[{i}]")]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [at]


@pytest.mark.parametrize(
    ("workers", "accumulation"), [(2, 2), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0, 1), (0, 2), (2, 1)))]
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, workers, accumulation):
    monkeypatch.chdir(tmp_path)
    assert fit.main(argv(tmp_path, "whole", workers, accumulation)) == 0
    doomed = argv(tmp_path, "killed", workers, accumulation, "+callbacks.kill={_target_: killer.Kill, step: 5}")
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    killed = subprocess.run([sys.executable, "-m", "diffx.fit", *doomed], env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    before = last(tmp_path, "killed")
    assert before["global_step"] == 4

    assert fit.main(argv(tmp_path, "killed", workers, accumulation)) == 0
    whole, resumed = last(tmp_path, "whole"), last(tmp_path, "killed")
    assert whole["global_step"] == resumed["global_step"] == 7
    assert differences(before["state_dict"], resumed["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "diffx", "datamodule"):
        assert not differences(whole.get(part), resumed.get(part), part)
    assert not differences(whole["callbacks"]["diffx.EMA"], resumed["callbacks"]["diffx.EMA"], "ema")


def test_a_student_resumes_although_its_teacher_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(name, experiment, *more):
        words = [
            f"experiment={experiment}",
            "small=true",
            f"runs={tmp_path}",
            f"run={name}",
            "callbacks.samples=null",
            "trainer.accelerator=cpu",
        ]
        assert fit.main([*words, *more]) == 0

    run("main", "digits/teacher", "callbacks.samples=null")
    teacher = tmp_path / "digits" / "teacher" / "main"
    given = [
        "~module.teacher.net",
        "+module.teacher.part=denoiser",
        f"+module.teacher.path={teacher}",
        "module.teacher._target_=diffx.load",
    ]
    run("whole", "digits/progressive", *given)
    run("cut", "digits/progressive", *given, "trainer.max_steps=2")
    teacher.rename(tmp_path / "elsewhere")
    run("cut", "digits/progressive", *given)
    whole, cut = (
        torch.load(tmp_path / "digits" / "progressive" / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    assert cut["global_step"] == 3 and not differences(whole["state_dict"], cut["state_dict"])
