"""The verbs from outside: early answers, exit codes, run folders, resuming, and what a failing run leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffx import cli, fit, sample
from diffx.asked import sampler_for
from diffx.recipes import runs
from diffx.recipes.compose import compose
from diffx.recipes.errors import RecipeError

ROOT = Path(__file__).resolve().parents[1]

TINY = """
description: a very small thing
defaults: [/_default]
module:
  _target_: diffx.techniques.EDM
  shape: [1, 8, 8]
  denoiser:
    _target_: diffx.Denoiser
    net: {_target_: diffx.networks.UNet, channels: 1, classes: 10, width: 8, mults: [1], blocks: 1}
  sampler: {_target_: diffx.samplers.Euler, steps: 2}
data: {_target_: diffx.data.Digits, batch_size: 4}
callbacks: {ema: null, samples: null, bands: null, throughput: null, checkpoints: {every_n_steps: 1, keep: 5}, progress: {every_n_steps: 1}}
trainer: {max_steps: 2, val_check_interval: 100}
logger: {tensorboard: null, csv: {}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with one small experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.SHARED, raising=False)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/tiny.yaml").write_text(TINY)
    return tmp_path


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# Early answers ----------------------------------------------------------------------------------------------------------------------------

EARLY = [
    ("fit --help", 0, "experiment=NAME"),
    ("fit --list", 0, "digits/edm"),
    ("fit experiment=digits/edm --print", 0, "halflife"),
    ("fit experiment=digits/edm --print=resolved", 0, "halflife"),
    ("fit experiment=digits/edm module.denoiser.net.widht=8 trainer.max_step=3", 2, "did you mean 'width'"),
    ("fit experiment=digits/ed", 2, "digits/edm"),
    ("fit", 2, "experiment=NAME"),
    ("fit --lst", 2, "--list"),
    ("sample --help", 0, "checkpoint=PATH"),
    ("sample chekpoint=x", 2, "did you mean 'checkpoint'"),
]


@pytest.mark.parametrize(("line", "code", "text"), EARLY, ids=[line for line, _, _ in EARLY])
def test_answers_come_before_torch_and_within_half_a_second(line, code, text, tmp_path):
    """CPU seconds of a whole process; the import log shows that neither torch nor lightning was touched."""
    verb, *arguments = line.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", f"diffx.{verb}", *arguments, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert text in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.5
    log = python("-X", "importtime", "-m", f"diffx.{verb}", *arguments, cwd=tmp_path).stderr
    imported = {row.rpartition("|")[2].strip().partition(".")[0] for row in log.splitlines() if row.startswith("import time")}
    assert "diffx" in imported and not imported & {"torch", "lightning", "diffusers", "timm", "torchvision", "omegaconf", "sklearn"}


def test_import_diffx_is_light_and_complete():
    """`import diffx` loads no library; every public name is there, is listed, and is not kept in the package's own dictionary."""
    script = "import sys, diffx; print(sorted({'torch', 'lightning', 'diffusers', 'timm', 'torchvision', 'omegaconf'} & set(sys.modules)))"
    assert python("-c", script).stdout.strip() == "[]"
    script = (
        "import sys, diffx\nfor n in diffx.__all__: assert getattr(diffx, n) is not None and n in dir(diffx)\n"
        "kept = [n for n in diffx.__all__ if n in vars(diffx) and n != '__version__']\n"
        "print(kept, sorted({'diffusers', 'timm', 'torchvision', 'sklearn', 'omegaconf'} & set(sys.modules) - set(sys.argv)))"
    )
    done = python("-c", script)
    assert done.stdout.startswith("[] "), done.stdout + done.stderr


def test_the_lazy_table_and_the_type_checkers_view_agree():
    import ast

    import diffx

    source = ast.parse((ROOT / "diffx/__init__.py").read_text())
    shown = {}
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module != "version":
            shown.update({alias.name: node.module for alias in node.names})
    assert shown == diffx._ROOM
    assert {*shown, "__version__"} == set(diffx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nix'"):
        _ = diffx.Nix


# Options ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Some:
    name: str
    n: int = 1
    rate: float = 0.5
    labels: list[int] | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RecipeError(f"n must be at least 1, got {self.n}")


def test_options():
    line = cli.parse(["name=20260101", "n=2_0", "rate=1", "labels=[1, 2]"], "usage")
    assert cli.options(line, Some) == Some("20260101", 20, 1, [1, 2])
    with pytest.raises(RecipeError) as caught:
        cli.options(cli.parse(["name=x", "n=0", "rat=2", "labels=[a]"], "usage"), Some)
    assert len(caught.value.problems) == 3
    with pytest.raises(RecipeError, match=r"name=\.\.\. must be given"):
        cli.options(cli.parse([], "usage"), Some)


def test_flags():
    line = cli.parse(
        ["experiment=a", "--check", "x=1", "--experiments-dir", "f", "--experiments-dir=g", "~y", "x=2"], "usage", flags=("check",)
    )
    assert line == cli.Line("a", ("x=1", "~y", "x=2"), frozenset({"check"}), ("f", "g"))
    assert line.value("x") == "2" and line.value("z") is None
    with pytest.raises(RecipeError, match="unknown flag '--chek'; did you mean '--check'"):
        cli.parse(["--chek"], "usage", flags=("check",))


@pytest.mark.parametrize(
    ("error", "code"),
    [(RecipeError("a", "b"), 2), (ValueError("v"), 1), (FileNotFoundError(2, "gone", "f"), 1), (OSError(28, "No space left"), 1)],
)
def test_failures_are_clean_messages(error, code, capsys, monkeypatch):
    def verb(argv):
        raise error

    assert cli.entrance(verb, []) == code
    assert capsys.readouterr().err.startswith("error: ")
    monkeypatch.setenv("DIFFX_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.entrance(verb, [])


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.entrance(lambda argv: 1 // 0, [])


# Run folders ------------------------------------------------------------------------------------------------------------------------------


def config_of(*overrides: str):
    return compose("tiny", overrides)


def test_run_ids(here, monkeypatch):
    assert runs.choose(config_of("run=mine")) == here / "runs/tiny/mine"
    first, second = runs.choose(config_of()), runs.choose(config_of())
    assert first.parent == here / "runs/tiny" and first != second
    assert runs.choose(config_of("runs=else where")).parent == here / "else where/tiny"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert runs.choose(config_of()) == runs.choose(config_of()) == here / "runs/tiny/77"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert runs.choose(config_of()).name == "70_3"
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert "70" not in runs.choose(config_of()).name.split("_")


def test_ranks_agree(here, monkeypatch):
    """Processes that rank 0 starts inherit its folder; ranks that nobody told refuse to invent one."""
    chosen = runs.choose(config_of())
    monkeypatch.setenv("LOCAL_RANK", "1")
    with runs.announced(chosen):
        assert runs.choose(config_of()) == chosen and not runs.is_rank_zero()
    with pytest.raises(RecipeError, match="run=NAME"):
        runs.choose(config_of())
    assert runs.choose(config_of("run=mine")) == here / "runs/tiny/mine"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "abc")
    assert runs.choose(config_of()).name == "abc"


def test_a_folder_that_cannot_be_written(here, capsys):
    (here / "runs").write_text("in the way")
    assert fit.main(["experiment=tiny", "run=x"]) == 1
    assert "cannot write the run folder" in capsys.readouterr().err
    if os.path.exists("/dev/full"):
        assert fit.main(["experiment=tiny", "runs=/dev/full"]) == 1
        assert "choose another place" in capsys.readouterr().err


# Runs -------------------------------------------------------------------------------------------------------------------------------------


def test_fit_resume_sample(here, capsys):
    """One run from its first step to a picture: folder, announcement, resuming in three ways, the command it prints."""
    assert fit.main(["experiment=tiny", "run=a"]) == 0
    folder = here / "runs/tiny/a"
    out = capsys.readouterr().out
    assert "starts at step 0" in out and "python -m diffx.fit run=runs/tiny/a resume=last" in out
    assert {"config.yaml", "config.input.yaml", "env.json", "checkpoints", "csv"} <= {path.name for path in folder.iterdir()}
    assert (folder / "config.yaml").read_text().startswith("# python -m diffx.fit experiment=tiny run=a\n")
    assert {"versions", "git", "host", "slurm"} <= set(json.loads((folder / "env.json").read_text()))

    assert fit.main(["run=runs/tiny/a", "trainer.max_steps=3"]) == 0
    assert "continues from runs/tiny/a/checkpoints/last.ckpt" in capsys.readouterr().out
    assert fit.main(["experiment=tiny", "resume=last", "trainer.max_steps=4"]) == 0
    assert "continues from runs/tiny/a/checkpoints/last.ckpt" in capsys.readouterr().out
    assert [path.name for path in sorted(folder.glob("checkpoints/step*"))] == [f"step_{n:08d}.ckpt" for n in (1, 2, 3, 4)]
    assert len([*folder.glob("config.2*.yaml")]) >= 1, "the earlier configuration is kept"

    last = folder / "checkpoints/last.ckpt"
    damaged = last.read_bytes()[:3000]
    last.unlink()  # a hard link to step 4
    last.write_bytes(damaged)
    assert fit.main(["experiment=tiny", "run=a", "trainer.max_steps=5"]) == 0
    assert "continues from runs/tiny/a/checkpoints/step_00000004.ckpt" in capsys.readouterr().out
    assert fit.main(["experiment=tiny", "run=b", "resume=runs/tiny/a/checkpoints/step_00000002.ckpt", "trainer.max_steps=3"]) == 0
    assert "continues from" in capsys.readouterr().out
    assert fit.main(["experiment=tiny", "run=a", "resume=never", "trainer.max_steps=1"]) == 0
    assert "starts at step 0" in capsys.readouterr().out

    assert sample.main(["checkpoint=runs/tiny/b", "labels=[1, 2, 3]", "guidance=1.5", "steps=3", "save=npz"]) == 0
    picture, arrays = map(Path, capsys.readouterr().out.split()[-2:])
    assert picture.is_file() and picture.parent == Path("runs/tiny/b/samples")
    import numpy as np

    with np.load(arrays) as stored:
        assert stored["images"].shape == (3, 1, 8, 8) and stored["labels"].tolist() == [1, 2, 3]
        first = stored["images"]
    assert sample.main(["checkpoint=runs/tiny/b", "labels=[1, 2, 3]", "guidance=1.5", "steps=3", "save=npz", "chunk=1", "out=o"]) == 0
    with np.load(next(Path("o").glob("*.npz"))) as stored:
        assert np.abs(stored["images"] - first).max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=tiny", "resume=nowhere.ckpt"], "no such file"),
        (["experiment=tiny", "resume=last"], "no run with a checkpoint"),
        (["experiment=tiny", "run=new", "resume=last"], "no good checkpoint"),
        (["run=runs/nowhere"], "config.yaml"),
        (["experiment=tiny", "module.shape=[1, 8, 8, 8]", "data.batch_size=0"], "data (diffx.data.Digits): batch_size must be >= 1"),
    ],
)
def test_wrong_starts(here, capsys, arguments, message):
    assert fit.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_check_builds_and_trains_nothing(here, capsys):
    assert fit.main(["experiment=tiny", "--check"]) == 0
    assert "denoiser" in capsys.readouterr().out
    assert not (here / "runs").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_says_how_to_resume(here, capsys, monkeypatch, error):
    import diffx

    handler = signal.getsignal(signal.SIGINT)
    steps = []
    loss = diffx.EDM.loss

    def failing(self, batch, u=None):
        steps.append(1)
        if len(steps) == 2:
            raise error("stop")
        return loss(self, batch, u)

    monkeypatch.setattr(diffx.EDM, "loss", failing)
    try:
        with pytest.raises((SystemExit, RuntimeError)):
            fit.main(["experiment=tiny", "run=a"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "to resume:   python -m diffx.fit run=runs/tiny/a resume=last" in capsys.readouterr().out
    assert fit.main(["run=runs/tiny/a", "resume=last"]) == 0


def test_one_seed_for_all(here):
    from diffx.recipes.assemble import assemble

    one, same, other = (assemble(config_of(f"seed={seed}")) for seed in (1, 1, 2))
    assert (one.module.seed, one.data.seed) == (1, 1)
    assert assemble(config_of("seed=1", "data.seed=5")).data.seed == 5
    weights = [next(p for p in parts.module.parameters() if p.ndim > 1) for parts in (one, same, other)]
    assert (weights[0] == weights[1]).all() and not (weights[0] == weights[2]).all()


def test_sampler_for():
    from diffx import EDM, Denoiser, Heun
    from diffx.networks import MLP
    from diffx.schedules import Karras

    module = EDM(Denoiser(MLP(width=8)), shape=(2,), sampler=Heun(7, Karras(rho=3.0)))
    assert sampler_for(module) is None
    assert sampler_for(module, steps=3).steps == 3
    euler = sampler_for(module, "Euler")
    assert type(euler).__name__ == "Euler" and euler.steps == 7 and euler.schedule == Karras(rho=3.0)


def test_two_runs_in_one_folder(here, capsys):
    """The second is refused while the first lives, and not a moment longer, even if it was killed."""
    folder = here / "runs/tiny/a"
    folder.mkdir(parents=True)
    script = "import sys, time\nfrom pathlib import Path\nfrom diffx.recipes import runs\nwith runs.locked(Path(sys.argv[1])):\n    print(1, flush=True)\n    time.sleep(60)"  # fmt: skip  # noqa: E501
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        assert fit.main(["experiment=tiny", "run=a"]) == 2
        assert f"in use by another run (process {first.pid} on " in capsys.readouterr().err
        first.kill()
    with runs.locked(folder):
        pass
