"""Look at a machine before training on it: ``python -m diffx.doctor [experiment=NAME] [--json]``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import cli, cluster
from .recipes.errors import RecipeError

if TYPE_CHECKING:
    from .recipes.compose import Config

__all__ = ["Finding", "examine", "main"]

USAGE = """
python -m diffx.doctor [experiment=NAME [key=value ...]] [--json]

Looks at versions, optional packages, devices, how ranks would meet, SLURM, the place of run folders and shared memory; with an experiment
also at its Trainer's sizes against SLURM's, and at one batch of its data. Trains nothing.

keys
  experiment=NAME        with any keys that diffx.fit takes, e.g. runs=FOLDER
flags
  --json                 the findings as one JSON object

Exit code: 0 when training can start (there may be warnings), 1 when something must be changed, 2 for a mistake in the configuration.

examples
  python -m diffx.doctor
  srun --nodes=2 --ntasks-per-node=1 python -m diffx.doctor experiment=digits/edm
"""
GIB = 2**30
LITTLE_SPACE, NO_SPACE, LITTLE_SHARED_MEMORY = 10 * GIB, GIB // 2, GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: of the thing.
        verdict: ``"ok"``, ``"warning"`` or ``"error"``.
        text: what was found, and what to do about it.
    """

    name: str
    verdict: Literal["ok", "warning", "error"]
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 1 where a finding is an error, 2 for a mistake on the command line."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> int:
    line = cli.parse(argv, USAGE, flags=("json",))
    if line.keys and not line.experiment:
        raise RecipeError(f"{line.keys[0]}: keys belong to an experiment; name one with experiment=NAME")
    config = cli.experiment(line) if line.experiment else None
    findings = list(examine(config))
    failed = any(finding.verdict == "error" for finding in findings)
    if "json" in line.flags:
        print(json.dumps({"ok": not failed, "findings": [vars(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.verdict:8} {finding.name:14} {finding.text}")
    return int(failed)


def examine(config: Config | None = None) -> Iterator[Finding]:
    """All findings; a check that fails itself is an error and does not keep the others from being made."""
    runs = Path(config.tree.get("runs", "runs") if config else "runs")
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions), ("devices", _devices), ("ranks", _ranks), ("slurm", lambda: _slurm(config)),
        ("run folder", lambda: _place(runs)), ("shared memory", lambda: _shared_memory(config)),
    ]  # fmt: skip
    if config is not None:
        checks.append(("data", lambda: _data(config)))
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, "error", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _versions() -> Iterator[Finding]:
    """Installed packages against what diffx asks for; what an extra lacks is no error."""
    from packaging.requirements import Requirement

    from .version import __version__

    yield Finding("python", "ok", f"{platform.python_version()}, diffx {__version__}, {platform.platform()}")
    wanted = [Requirement(text) for text in importlib.metadata.requires("diffx") or ()]
    core = [requirement for requirement in wanted if requirement.marker is None]
    found: list[str] = []
    wrong: list[str] = []
    for requirement in core:
        version = _installed(requirement.name)
        (found if version and requirement.specifier.contains(version, prereleases=True) else wrong).append(
            f"{requirement.name} {version or 'missing'}" if version else str(requirement) + " missing"
        )
    yield Finding("packages", "ok", ", ".join(found))
    if wrong:
        yield Finding("packages", "error", f"{', '.join(wrong)}; diffx needs {', '.join(map(str, core))}")
    for extra in sorted(set(importlib.metadata.metadata("diffx").get_all("Provides-Extra") or ()) - {"dev", "docs"}):
        parts = [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": extra})]
        lacking = [part.name for part in parts if _installed(part.name) is None]
        yield Finding(f"extra {extra}", "ok", f"not installed: {', '.join(lacking)}" if lacking else "installed")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding("processor", "ok", f"{os.cpu_count()} cores, torch uses {threads} {'thread' if threads == 1 else 'threads'}")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, whole = torch.cuda.mem_get_info(index)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        yield Finding(f"cuda:{index}", "ok", f"{about.name}, {free / GIB:.1f} of {whole / GIB:.1f} GiB free, {bf16} bfloat16")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        yield Finding("cuda", "warning", f"there is a driver, but torch {torch.__version__} sees no GPU: is it built for CPU only?")


def _ranks() -> Iterator[Finding]:
    """A process group of one on the loopback: the first thing that ranks need, and what a sandbox or a firewall forbids first."""
    from datetime import timedelta

    import torch
    from torch import distributed

    if not distributed.is_available():
        yield Finding("ranks", "warning", "torch is built without torch.distributed: one process only")
        return
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=20), world_size=1, rank=0)
        try:
            distributed.all_reduce(torch.ones(1))
        finally:
            distributed.destroy_process_group()
    backends = [name for name, there in (("gloo", True), ("nccl", distributed.is_nccl_available())) if there]
    yield Finding("ranks", "ok", f"{' and '.join(backends)}; a group of one process works")
    host = socket.gethostname()
    problem = cluster.unresolved(host, 5)
    text = f"this machine's name {host} " + ("resolves" if problem is None else f"cannot be used: {problem}; {cluster.ADVICE}")
    yield Finding("name", "ok" if problem is None else "warning", text)


def _slurm(config: Config | None) -> Iterator[Finding]:
    """The job step against itself, against the experiment, and the place where its ranks would meet."""
    step = cluster.step()
    if step is None:
        where = "sbatch is here" if shutil.which("sbatch") else "there is no sbatch"
        yield Finding("slurm", "ok", f"not in a job; {where}")
        return
    cluster.check_trainer(step, config.tree.get("trainer") if config else None)
    cluster.check_rendezvous(step)
    yield Finding(
        "slurm", "ok", f"job {step.job}: {step.nodes} nodes x {step.tasks} tasks, rank {step.rank} meets at {step.address}:{step.port}"
    )
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < step.tasks:
        yield Finding(
            "slurm", "error", f"{step.tasks} tasks per node, but {torch.cuda.device_count()} GPUs; ask with --gpus-per-node={step.tasks}"
        )


def _place(runs: Path) -> Iterator[Finding]:
    """Where run folders will be: writable, roomy, and whether temporary files can be renamed into it."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"diffx" * 1000)
    except OSError as error:
        yield Finding("run folder", "error", f"{there} cannot be written ({error.strerror}); choose another place with runs=FOLDER")
        return
    space = shutil.disk_usage(there)
    verdict: Literal["ok", "warning", "error"] = "error" if space.free < NO_SPACE else "warning" if space.free < LITTLE_SPACE else "ok"
    yield Finding("run folder", verdict, f"{runs.absolute()}: {space.free / GIB:.1f} of {space.total / GIB:.1f} GiB free")
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev == there.stat().st_dev:
        yield Finding("temporary", "ok", f"{temporary}, on the same file system as the run folder")
    else:
        yield Finding("temporary", "warning", f"{temporary} is on another file system than the run folder: diffx's checkpoints do not "
                      "pass through it, but those of others are copied, not renamed; set TMPDIR beside the run folder")  # fmt: skip


def _shared_memory(config: Config | None) -> Iterator[Finding]:
    """What data workers hand their batches over in."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding("shared memory", "ok", "no /dev/shm on this system")
        return
    free = shutil.disk_usage(folder).free
    workers = (config.tree["data"].get("num_workers") or 0) if config else 0
    tight = free < LITTLE_SHARED_MEMORY and workers
    advice = f"; {workers} data workers may run out of it: docker run --shm-size=8g, or data.num_workers=0" if tight else ""
    yield Finding("shared memory", "warning" if tight else "ok", f"{free / GIB:.1f} GiB free in {folder}{advice}")


def _data(config: Config) -> Iterator[Finding]:
    """Open the data as a run would, and read one batch of training and of validation."""
    import torch

    from .recipes.assemble import seeded
    from .recipes.build import build
    from .recipes.check import check

    check(config, imported=True)
    began = time.monotonic()
    data: Any = build(seeded(config, "data"), at="data")
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    opened, began = time.monotonic() - began, time.monotonic()
    batch = next(iter(loader))
    took = time.monotonic() - began
    shapes = ", ".join(f"{name} {_shape(value)}" for name, value in batch.items())
    yield Finding("data", "ok", f"{data}".replace("\n", " ")[:200])
    yield Finding("batch", "ok", f"{shapes}; opened in {opened:.1f} s, first batch in {took:.2f} s")
    bad = [
        name
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        yield Finding("batch", "error", f"{', '.join(bad)} of the first batch holds numbers that are not finite")
    want, got = config.tree["module"].get("shape"), list(getattr(data, "shape", ()))
    if want and got and list(want) != got:
        yield Finding("batch", "warning", f"module.shape is {want}, but the data give {got}")
    if hasattr(data, "teardown"):
        data.teardown("fit")


def _shape(value: Any) -> str:
    return (
        f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}"
        if hasattr(value, "shape")
        else type(value).__name__
    )


if __name__ == "__main__":
    sys.exit(main())
