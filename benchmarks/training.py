"""Runs that a benchmark needs: trained where they are missing, resumed where they were interrupted."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Run", "parser", "train"]


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        experiment: such as ``digits/edm``.
        name: of the run, ``run=`` on the command line.
        overrides: further ``key=value`` arguments.
    """

    experiment: str
    name: str = "main"
    overrides: tuple[str, ...] = ()

    def folder(self, runs: Path) -> Path:
        """Where the run lies in the folder of all runs."""
        return runs / self.experiment / self.name

    def train(self, runs: Path) -> None:
        """Train unless it was finished before, which an empty file ``finished`` in its folder says."""
        finished = self.folder(runs) / "finished"
        if not finished.exists():
            command = ["-m", "diffx.fit", f"experiment={self.experiment}", f"run={self.name}", f"runs={runs}", *self.overrides]
            subprocess.run([sys.executable, *command], check=True)
            finished.touch()


def train(runs: Path, planned: Iterable[Run]) -> None:
    """Train, one after the other, what is not finished yet; from here on this process computes on one thread."""
    torch.set_num_threads(1)
    for run in planned:
        run.train(runs)


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The command line that all benchmarks with trainings share: where the runs lie."""
    made = argparse.ArgumentParser(prog=program, description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    return made
