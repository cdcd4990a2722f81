"""Send an experiment to SLURM: ``python -m diffx.submit experiment=digits/edm nodes=2 time=12:00:00``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cli
from .recipes.compose import COMMAND_LINE, parse_value
from .recipes.errors import RecipeError

__all__ = ["Options", "batch_file", "main"]

USAGE = """
python -m diffx.submit experiment=NAME [key=value ...] [--dry-run]

keys of the job
  nodes=1                nodes
  devices=1              tasks per node, one per device
  gpus=N                 GPUs per node; as many as devices unless it is 0 or trainer.accelerator=cpu
  cpus=N                 processors per task
  memory=64G             per node
  time=1-00:00:00        limit; two minutes before it the run saves, and the job is requeued
  partition= account= qos= constraint=     as the cluster knows them
  warning=120            seconds between the signal and the limit
  master=ADDRESS         where the ranks meet; by default the first node, by its name
  before=FILE            a shell script to source first (modules, environments)

keys of the array
  sweep.KEY=[a, b]       one task per value of KEY; several sweeps: one per combination
  bands=3                one task per expert: module.schedule.low and .high of the first, second, last third of the noise levels;
                         or their edges, bands=[0, 0.5, 0.875, 1]
  parallel=N             tasks that may run at once

All other keys go to diffx.fit and are checked now, not when the job starts. The run folder is named after the job.
  --dry-run              print the batch file, submit nothing

examples
  python -m diffx.submit experiment=digits/edm nodes=2 devices=8 time=12:00:00 cpus=8 --dry-run
  python -m diffx.submit experiment=digits/edm sweep.seed=[0,1,2] sweep.module.optimizer.lr=[1e-3,2e-3]
  python -m diffx.submit experiment=digits/expert bands=3
"""
WORD = re.compile(r"[A-Za-z0-9_.,:@%+*&|()\[\]/=-]+")
TEXTS = {"memory", "time", "partition", "account", "qos", "constraint", "master", "before"}  # never read as YAML: 1:30:00 would be a number


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.submit --help``."""

    nodes: int = 1
    devices: int = 1
    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    warning: int = 120
    master: str | None = None
    before: str | None = None
    parallel: int | None = None
    bands: int | list | None = None
    sweeps: dict[str, list] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1, got {getattr(self, name)}" for name in ("nodes", "devices", "cpus", "warning", "parallel")
                    if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        for name in sorted(TEXTS - {"before"}):
            value = getattr(self, name)
            if value is not None and not WORD.fullmatch(value):
                problems.append(f"{name} must be one word without spaces or quotes, got {value!r}")
        if self.before is not None and not Path(self.before).is_file():
            problems.append(f"before={self.before}: there is no such file")
        problems += [f"sweep.{key} must be a list of at least one value, got {values!r}"
                     for key, values in self.sweeps.items() if not isinstance(values, list) or not values]  # fmt: skip
        if self.bands is not None and not _rising(self.edges):
            problems.append(f"bands must be a number of experts or rising edges from 0 to 1, got {self.bands!r}")
        if problems:
            raise RecipeError(*problems)

    @property
    def edges(self) -> list[float]:
        """Edges of the experts' bands as shares of the training levels."""
        return [k / self.bands for k in range(self.bands + 1)] if isinstance(self.bands, int) else list(self.bands or ())

    def tasks(self) -> list[list[str]]:
        """For each task of the array its overrides; a single empty list means that there is no array."""
        axes = [[f"{key}={json.dumps(value)}" for value in values] for key, values in self.sweeps.items()]
        bands = [[f"module.schedule.low={low}", f"module.schedule.high={high}"] for low, high in itertools.pairwise(self.edges)] or [[]]
        return [[*band, *choice] for band in bands for choice in itertools.product(*axes)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    job = prepared(argv)
    if job.dry:
        print(job.text, end="")
    else:
        job.submit()


@dataclass(frozen=True)
class Batch:
    """A checked job.

    Args:
        name: of the experiment, and of the run if it has one of its own.
        text: the batch file.
        runs: folder of all runs; batch files and output lie in its ``slurm``.
        folder: of the run; ``{job}`` in it stands for the job's number.
        tasks: how many there are.
        dry: whether it is only to be looked at.
    """

    name: str
    text: str
    runs: Path
    folder: Path
    tasks: int
    dry: bool

    def submit(self, after: str | None = None) -> str:
        """Write the batch file and queue it; the number of the job.

        Args:
            after: number of a job that has to end well before.

        Raises:
            OSError: there is no sbatch, or it refuses the job.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        file = self.runs / "slurm" / f"{_job_name(self.name)}-{stamp}-{os.getpid()}.sh"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.text, encoding="utf-8")
        job = _sbatch(file, after)
        print(f"job {job}: {self.tasks} {'tasks' if self.tasks > 1 else 'task'}, from {file}")
        print(f"run folder {str(self.folder).replace('{job}', job)}, output {file.parent}")
        return job


def prepared(argv: Sequence[str]) -> Batch:
    """Check the command line of a job and write its batch file's text.

    Raises:
        RecipeError: a mistake on the command line.
    """
    line = cli.parse(argv, USAGE, flags=("dry-run",))
    options, overrides = _split(line)
    tasks = options.tasks()
    for task in tasks:
        config = cli.experiment(cli.Line(line.experiment, (*overrides, *task), frozenset(), line.folders))
    run = config.tree.get("run")
    if run and len(tasks) > 1:
        raise RecipeError("run= would put all tasks of the array into one folder; leave it out, they are named after the job")
    runs = Path(config.tree.get("runs", "runs"))
    words = [f"experiment={line.experiment}", *overrides, *(f"--experiments-dir={Path(folder).resolve()}" for folder in line.folders)]
    text = batch_file(options, config.name, words, argv, log=runs / "slurm", gpu=_on_gpu(config.tree))
    folder = runs / config.name / (run or ("{job}" if tasks == [[]] else "{job}_<task>"))
    return Batch(f"{config.name}-{run}" if run else config.name, text, runs, folder, len(tasks), "dry-run" in line.flags)


def _split(line: cli.Line) -> tuple[Options, list[str]]:
    """The job's keys, and the rest, which are diffx.fit's."""
    own: list[str] = []
    rest: list[str] = []
    sweeps, problems = {}, []
    known = set(Options.__dataclass_fields__) - {"sweeps"}
    for text in line.keys:
        name, _, value = text.partition("=")
        if name.startswith("sweep."):
            try:
                sweeps[name.removeprefix("sweep.")] = parse_value(value)
            except ValueError as error:
                problems.append(f"{name} {COMMAND_LINE}: {error}")
        else:
            (own if name in known else rest).append(text)
    if problems:
        raise RecipeError(*problems)
    words = [f"{name}={json.dumps(value)}" if name in TEXTS else text for text in own for name, _, value in [text.partition("=")]]
    options = cli.options(cli.Line(None, tuple(words)), Options)
    return dataclasses.replace(options, sweeps=sweeps), rest


def batch_file(options: Options, experiment: str, words: Sequence[str], argv: Sequence[str], *, log: Path, gpu: bool) -> str:
    """The batch script. Everything that comes from a command line or an experiment is quoted for the shell.

    Args:
        options: of the job.
        experiment: its name, for the job's.
        words: arguments of ``diffx.fit`` that all tasks share.
        argv: the command line that asked, for the first line.
        log: folder of the output.
        gpu: whether each task needs a GPU.

    Raises:
        RecipeError: the folder has characters that a ``#SBATCH`` line cannot hold.
    """
    if not WORD.fullmatch(str(log)):
        raise RecipeError(f"runs={log.parent}: SLURM cannot write its output to a folder of this name; use letters, digits, . _ - and /")
    tasks = options.tasks()
    gpus = options.gpus if options.gpus is not None else options.devices if gpu else 0
    parallel = f"%{options.parallel}" if options.parallel else ""
    settings: dict[str, Any] = {
        "job-name": _job_name(experiment), "nodes": options.nodes, "ntasks-per-node": options.devices, "cpus-per-task": options.cpus,
        "gpus-per-node": gpus or None, "mem": options.memory, "time": options.time, "partition": options.partition,
        "account": options.account, "qos": options.qos, "constraint": options.constraint,
        "array": None if tasks == [[]] else f"0-{len(tasks) - 1}{parallel}",
        "signal": f"USR1@{options.warning}", "open-mode": "append", "output": f"{log}/%x-{'%j' if tasks == [[]] else '%A_%a'}.out",
    }  # fmt: skip
    asked = shlex.join(["python", "-m", "diffx.submit", *argv]).replace("\n", " ")
    lines = ["#!/bin/bash", f"# {asked}", *(f"#SBATCH --{key}={value}" for key, value in settings.items() if value is not None),
             "#SBATCH --requeue", "", "set -euo pipefail", f"cd {shlex.quote(os.getcwd())}"]  # fmt: skip
    lines += [f"source {shlex.quote(str(Path(options.before).resolve()))}"] if options.before else []
    lines += [f"export MASTER_ADDR={shlex.quote(options.master)}"] if options.master else []
    lines += [f"export OMP_NUM_THREADS={options.cpus or 1}"]
    if tasks != [[]]:
        lines += ["", 'case "$SLURM_ARRAY_TASK_ID" in']
        lines += [f"    {number}) task=({shlex.join(task)}) ;;" for number, task in enumerate(tasks)]
        lines += ["esac"]
    command = [sys.executable, "-m", "diffx.fit", *words]
    lines += ["", f"srun --kill-on-bad-exit=1 {shlex.join(command)}" + ("" if tasks == [[]] else ' "${task[@]}"'), ""]
    return "\n".join(lines)


def _sbatch(file: Path, after: str | None) -> str:
    """Submit; the job's number. A job whose condition can no longer come true leaves the queue.

    Raises:
        OSError: there is no sbatch, or it refuses the job.
    """
    condition = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    try:
        done = subprocess.run(["sbatch", "--parsable", *condition, str(file)], capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise OSError(f"there is no sbatch on this machine; copy {file} to the cluster, or look at it with --dry-run") from error
    if done.returncode != 0:
        raise OSError(f"sbatch refused {file}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def _on_gpu(tree: Mapping[str, Any]) -> bool:
    return (tree.get("trainer") or {}).get("accelerator", "auto") != "cpu"


def _job_name(experiment: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", experiment).strip("-") or "diffx"


def _rising(edges: Sequence[Any]) -> bool:
    numbers = len(edges) > 1 and all(isinstance(edge, (int, float)) for edge in edges)
    return numbers and edges[0] == 0 and edges[-1] == 1 and all(a < b for a, b in itertools.pairwise(edges))


if __name__ == "__main__":
    sys.exit(main())
