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
from typing import Any

import torch

from diffx.recipes.compose import compose

__all__ = ["Run", "measured", "parser", "train"]


TRAINED_BY = ("module", "data", "trainer", "seed")  # the sections of a recipe that decide what is trained


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

        Raises:
            SystemExit: what lies there was trained by another recipe.
        """
        folder = self.folder(runs)
        if (folder / "finished").exists():
            written, asked = _deciding(str(folder / "config.yaml")), _deciding(self.experiment, (*self.overrides, f"runs={runs}"))
            if differing := [name for name in TRAINED_BY if written[name] != asked[name]]:
                raise SystemExit(
                    f"{folder} was trained by another recipe than {self.experiment} is now: {', '.join(differing)} differ; move it away"
                )
        else:
            command = ["-m", "diffx.fit", f"experiment={self.experiment}", f"run={self.name}", f"runs={runs}", *self.overrides]
            resumed = any((folder / "checkpoints").glob("*.ckpt"))
            cost = {**measured([sys.executable, *command]), "resumed": resumed}
            (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
            (folder / "finished").touch()


def _deciding(recipe: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The deciding sections of a recipe as text, the folder of runs called ``runs`` wherever it lies."""
    tree: Any = compose(recipe, overrides).tree
    return {name: json.dumps(tree.get(name), sort_keys=True).replace(f'"{tree.get("runs", "runs")}/', '"runs/') for name in TRAINED_BY}


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
