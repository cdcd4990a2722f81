"""Train experts as eDiff-I does: ``python -m diffx.tree root=digits/edm experiment=digits/expert steps=2000 high=3 low=3``."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli, submit
from .recipes.errors import RecipeError

if TYPE_CHECKING:
    from .techniques.experts import Job

__all__ = ["Options", "main"]

USAGE = """
python -m diffx.tree root=NAME experiment=NAME steps=N [key=value ...] [--submit]

keys
  root=NAME        experiment of the network for all noise
  experiment=NAME  experiment of an expert: its schedule is a band, its denoiser inherited, such as digits/expert
  steps=N          optimizer steps of the root
  high=9 low=3     halvings of the noise levels at the noisy and at the clean end
  between=N        steps of each network that is only begun from; a twentieth of the root's by default
  final=N          steps of each expert; a fifth of the root's by default
  skip=[1, 2]      halvings to leave out
  name=tree        what the names of the runs begin with

All other keys go to every run, with --submit to every job of diffx.submit, too, and are checked now.
  --submit         send the runs to SLURM, each waiting for its parent's; without it the commands are printed, to be run in their order

examples
  python -m diffx.tree root=digits/edm experiment=digits/expert steps=2000 high=3 low=3 | sh -e
  python -m diffx.tree root=digits/edm experiment=digits/expert steps=100000 nodes=2 time=12:00:00 --submit
"""


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.tree --help``."""

    root: str
    experiment: str
    steps: int
    high: int = 9
    low: int = 3
    between: int | None = None
    final: int | None = None
    skip: list[int] = field(default_factory=list)
    name: str = "tree"

    def __post_init__(self) -> None:
        if problems := [f"{name} must be at least 1, got {value}" for name in ("steps", "between", "final")
                        if (value := getattr(self, name)) is not None and value < 1]:  # fmt: skip
            raise RecipeError(*problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    line = cli.parse(argv, USAGE, flags=("submit",))
    known = {key.name for key in dataclasses.fields(Options)}
    own = [text for text in line.keys if text.partition("=")[0] in known]
    rest = [text for text in line.keys if text not in own] + [f"--experiments-dir={folder}" for folder in line.folders]
    options = cli.options(cli.Line(line.experiment, tuple(own)), Options)
    runs = Path(line.value("runs") or "runs")

    from .techniques.experts import expert_tree

    jobs = expert_tree(options.steps, high=options.high, low=options.low, between=options.between, final=options.final, skip=options.skip)
    lines = {job: [*words_of(job, options, runs), *rest] for job in jobs}
    if "submit" in line.flags:
        batches = {job: submit.prepared(words) for job, words in lines.items()}  # all are checked before the first is queued
        sent: dict[str | None, str] = {}
        for job, batch in batches.items():
            sent[job.name] = batch.submit(after=sent.get(job.parent))
    else:
        for words in lines.values():
            cli.experiment(cli.parse(words, USAGE))
        print("\n".join(f"python -m diffx.fit {shlex.join(words)}" for words in lines.values()))
    parts = ", ".join(str(folder(job.name, options, runs)) for job in jobs if job.kept)
    last = shlex.join(["python", "-m", "diffx.merge", f"parts=[{parts}]", f"out={runs / options.name}.ckpt"])
    print(f"when all jobs are done: {last}" if "submit" in line.flags else last)


def words_of(job: Job, options: Options, runs: Path) -> list[str]:
    """The arguments of ``diffx.fit`` that make a job's run."""
    words = [f"experiment={options.experiment if job.parent else options.root}", f"run={options.name}-{job.name}",
             f"trainer.max_steps={job.steps}"]  # fmt: skip
    if job.parent is None:
        return words
    return [*words, f"module.schedule.low={job.low}", f"module.schedule.high={job.high}",
            f"module.denoiser.path={folder(job.parent, options, runs)}"]  # fmt: skip


def folder(job: str, options: Options, runs: Path) -> Path:
    """Where the run of a job lies."""
    return runs / (options.root if job == "root" else options.experiment) / f"{options.name}-{job}"


if __name__ == "__main__":
    sys.exit(main())
