"""Runs that a benchmark needs: trained where they are missing, resumed where they were interrupted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Run"]


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
