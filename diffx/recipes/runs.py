"""Run folders ``runs/<experiment>/<id>/``: who names them, what is written into them, where a run continues."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .compose import Config
from .errors import RecipeError, hint
from .text import show

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["announced", "choose", "describe", "is_rank_zero", "latest_run", "locked", "new_id", "resume_from"]

SHARED = "DIFFX_RUN_FOLDER"  # rank 0 tells the ranks that it starts
PACKAGES = ("torch", "lightning", "torchvision", "omegaconf", "einops", "timm", "diffusers", "numpy", "safetensors", "tensorboard")


def is_rank_zero() -> bool:
    """Whether this process writes files: no launcher has given it a rank above zero."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def new_id() -> str:
    """The job's number under a batch system, so that a requeued job finds its folder, else the time.

    Raises:
        RecipeError: several independent processes start one run and nothing names it for all of them.
    """
    environment = os.environ
    shell = environment.get("SLURM_JOB_NAME") in {"bash", "interactive"}
    if shell and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # several runs in one allocation
        return f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    if "SLURM_JOB_ID" in environment and not shell:
        task = environment.get("SLURM_ARRAY_TASK_ID")
        return f"{environment.get('SLURM_ARRAY_JOB_ID', environment['SLURM_JOB_ID'])}_{task}" if task else environment["SLURM_JOB_ID"]
    if environment.get("TORCHELASTIC_RUN_ID", "none") != "none":
        return environment["TORCHELASTIC_RUN_ID"]
    if int(environment.get("WORLD_SIZE", "1")) > 1 or not is_rank_zero():
        raise RecipeError("several processes start this run and each would choose its own folder: pass run=NAME, or torchrun --standalone")
    return time.strftime("%Y%m%d-%H%M%S")


def choose(config: Config) -> Path:
    """The run folder, made if it is new. ``run`` names one; processes that rank 0 starts are told by rank 0.

    Raises:
        RecipeError: no common name, see `new_id`.
        OSError: the folder cannot be written.
    """
    if SHARED in os.environ and not is_rank_zero():
        return Path(os.environ[SHARED])
    root, run = Path(config.tree.get("runs", "runs")) / config.name, config.tree.get("run")
    if run is not None:
        folder = Path(str(run)) if os.sep in str(run) or Path(str(run)).is_dir() else root / str(run)
    elif config.tree.get("resume") == "last":
        folder = latest_run(root)
    else:
        folder = root / new_id()
        timed = "-" in folder.name and folder.name[:8].isdigit()
        while timed and folder.exists():  # two runs within one second
            folder = folder.with_name(f"{folder.name}+")
    folder = folder.resolve()
    if is_rank_zero():
        _make(folder)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the same run folder; the system lifts the lock when this one ends, however it ends.

    Raises:
        RecipeError: another process trains there, with its number and host.
    """
    if not is_rank_zero() or fcntl is None:
        yield
        return
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # belongs to the process: data workers that outlive it do not hold it
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                yield  # a file system without locks
                return
            file.seek(0)
            raise RecipeError(f"{folder} is in use by another run ({file.read().strip() or 'unknown'}); wait for it, or choose another "
                              "folder with run=NAME") from None  # fmt: skip
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


@contextmanager
def announced(folder: Path) -> Iterator[None]:
    """While this holds, processes that rank 0 starts learn of its run folder."""
    before = os.environ.get(SHARED)
    os.environ[SHARED] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SHARED]
        else:
            os.environ[SHARED] = before


def latest_run(root: Path) -> Path:
    """The newest run folder below ``runs/<experiment>`` that holds a checkpoint.

    Raises:
        RecipeError: there is none.
    """
    found = [path.parent for path in root.glob("*/checkpoints") if any(path.glob("*.ckpt"))]
    if not found:
        near = hint(root.name, [path.name for path in root.parent.glob("*/")])
        raise RecipeError(f"no run with a checkpoint in {root}{near}")
    return max(found, key=lambda folder: max(path.stat().st_mtime for path in folder.glob("checkpoints/*.ckpt")))


def resume_from(config: Config, folder: Path) -> Path | None:
    """The checkpoint to continue from, None to start; damaged files are passed over (`diffx.files.latest`).

    Raises:
        RecipeError: ``resume=last`` or a path, and there is no good checkpoint.
    """
    from .. import files

    wanted = config.tree.get("resume", "auto")
    if wanted == "never":
        return None
    if wanted not in {"auto", "last"}:
        named = Path(wanted)
        if not named.exists():
            raise RecipeError(f"resume={wanted}: there is no such file; it takes auto, last, never or the path of a checkpoint")
        if named.is_file() or files.is_folder(named):
            files.verify(named)
            return named
        folder = named
    found = files.latest(folder / "checkpoints")
    if found is None and wanted != "auto":
        raise RecipeError(f"resume={wanted}: there is no good checkpoint in {folder / 'checkpoints'}")
    return found


def describe(folder: Path, config: Config, argv: Sequence[str]) -> None:
    """Write ``config.yaml``, ``config.input.yaml`` and ``env.json``; earlier ones of a continued run are kept under their time.

    Raises:
        OSError: the folder cannot be written.
    """
    command = shlex.join(["python", "-m", "diffx.fit", *argv])
    head = f"# {command}\n"
    overrides = "".join(f"#   {text}\n" for text in config.overrides)
    texts = {
        "config.yaml": head + show({key: value for key, value in config.tree.items() if key not in {"run", "resume"}}),
        "config.input.yaml": f"{head}# {config.file}\n{overrides}{show(config.raw)}",
        "env.json": json.dumps(environment(argv), indent=2) + "\n",
    }
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
            path.replace(path.with_name(f"{path.stem}.{stamp}{path.suffix}"))
        path.write_text(text, encoding="utf-8")


def environment(argv: Sequence[str]) -> Mapping[str, Any]:
    """Versions, source revision, machine and batch-system variables of this process."""
    from ..version import __version__

    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": list(argv),
        "versions": {"diffx": __version__, "python": platform.python_version(), **found},
        "git": _git(),
        "host": platform.node(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "folder": os.getcwd(),
        "slurm": {name: value for name, value in os.environ.items() if name.startswith("SLURM_") and "JOB" in name},
    }


def _git() -> Mapping[str, Any] | None:
    """Revision of the sources that run, and whether they differ from it."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", __file__)  # an installed copy inside somebody's repository says nothing about it
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _make(folder: Path) -> None:
    """Make the folder and try it, so that an unwritable place is found before hours of training."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"diffx" * 1000)
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write the run folder {folder} ({error.strerror}); choose another place with runs=FOLDER"
        ) from error
