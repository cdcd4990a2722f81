"""Measure several subjects against each other on a machine that others use too.

All subjects run in one process and one thread, interleaved round by round, the order reversed every other round. The clock is the CPU time
of the process, which other people's processes do not inflate (shared caches and memory bandwidth still do). What is reported:

- ``ratio``: median [lower .. upper quartile] over the rounds of a subject's time over the first subject's time *in the same round*;
- ``ms``: median CPU time of one call;
- ``of_roof``: floating point operations per second over those of a 1024 x 1024 float32 matrix product measured in the same round.

Operations are counted by torch's ``FlopCounterMode`` (a multiply-add is two). Absolute times of different rounds or runs do not compare.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Subject", "arguments", "compare", "report", "training_step"]

ROOF = 1024


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: a name, a call to be measured, and the number of parameters it trains."""

    name: str
    call: Callable[[], object]
    parameters: int = 0


def training_step(name: str, net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Subject:
    """Forward, backward, fused AdamW and zero_grad of ``net`` in train mode."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss(net).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(name, step, sum(p.numel() for p in net.parameters()))


def clock(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def operations(call: Callable[[], object]) -> int:
    """Floating point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def compare(subjects: Sequence[Subject], rounds: int = 15, warmup: int = 2) -> dict[str, Any]:
    """Run the subjects against each other; the first is the reference of all ratios.

    Args:
        subjects: at least one.
        rounds: how often each is measured.
        warmup: unmeasured calls of each before that.

    Returns:
        Plain dictionaries, ready for JSON.
    """
    torch.set_num_threads(1)
    a, b = torch.randn(2, ROOF, ROOF)
    flops = {subject.name: operations(subject.call) for subject in subjects}
    for subject in subjects:
        for _ in range(warmup):
            subject.call()
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    roofs = []
    for index in range(rounds):
        roofs.append(2 * ROOF**3 / statistics.median(clock(lambda: a @ b) for _ in range(3)))
        for subject in subjects if index % 2 == 0 else reversed(subjects):
            times[subject.name].append(clock(subject.call))
    reference = times[subjects[0].name]
    results = [
        {
            "name": subject.name,
            "parameters": subject.parameters,
            "gflop": flops[subject.name] / 1e9,
            "ms": 1e3 * statistics.median(times[subject.name]),
            "ratio": quartiles([t / r for t, r in zip(times[subject.name], reference, strict=True)]),
            "ms_of_rounds": [1e3 * t for t in times[subject.name]],
            "of_roof": statistics.median(flops[subject.name] / t / roof for t, roof in zip(times[subject.name], roofs, strict=True)),
        }
        for subject in subjects
    ]
    machine = {"torch": torch.__version__, "python": platform.python_version(), "roof_gflops": statistics.median(roofs) / 1e9}
    return {"rounds": rounds, "threads": 1, **machine, "results": results}


def quartiles(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def report(title: str, outcome: dict[str, Any], path: Path | None = None) -> None:
    """Print a table, and write the figures to ``path`` as JSON."""
    print(f"{title}: {outcome['rounds']} rounds, 1 thread, torch {outcome['torch']}, roof {outcome['roof_gflops']:.0f} GFLOP/s")
    for row in outcome["results"]:
        middle, low, high = row["ratio"]
        size = f"{row['parameters'] / 1e6:8.3f} M {row['gflop']:8.2f} GFLOP"
        print(f"  {row['name']:<34}{size} {row['ms']:8.1f} ms  ratio {middle:.3f} [{low:.3f}..{high:.3f}]  of roof {row['of_roof']:.3f}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"title": title, **outcome}, indent=1))


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each subject (at least 2)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()
