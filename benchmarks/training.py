"""Runs that a benchmark needs: trained where they are missing, resumed where they were interrupted."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Run", "measured", "parser", "train"]


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
        """Train unless it was finished before, which an empty file ``finished`` in its folder says.

        ``cost.json`` beside it says what the training took; of one that went on from a checkpoint, what the last part took.
        """
        folder = self.folder(runs)
        if not (folder / "finished").exists():
            command = ["-m", "diffx.fit", f"experiment={self.experiment}", f"run={self.name}", f"runs={runs}", *self.overrides]
            resumed = any((folder / "checkpoints").glob("*.ckpt"))
            cost = {**measured([sys.executable, *command]), "resumed": resumed}
            (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
            (folder / "finished").touch()


def measured(command: Sequence[str]) -> dict[str, float]:
    """Run a command; what it took.

    Returns:
        ``wall_seconds``, ``cpu_seconds`` (of the process and those it waited for) and ``peak_memory_mib`` of the process itself.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.monotonic()
    process = subprocess.Popen(command)
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "wall_seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mib": round(used.ru_maxrss / 1024, 1),
    }


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
