"""Measure several subjects against each other on a machine that others use too.

All subjects run in one process and one thread, interleaved round by round, the order reversed every other round. On a CPU the clock is the
CPU time of the process and of the children it has waited for, which other people's processes do not inflate (shared caches and memory
bandwidth still do); on an accelerator it is the wall clock between two synchronisations, and so it is for a subject whose work is done by
processes that live on. What is reported:

- ``ratio``: median [lower .. upper quartile] over the rounds of a subject's time over the first subject's time *in the same round*;
- ``ms``: median time of one call;
- ``of_roof``: floating point operations per second over those of a square matrix product measured in the same round, in the same precision;
- ``peak_mb``: the most memory that tensors made by one call hold at once, beside what was there before.

Operations are counted by torch's ``FlopCounterMode`` (a multiply-add is two). Absolute times of different rounds or runs do not compare.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["PLAIN", "Setting", "Subject", "compare", "paired", "report", "training_step"]

ROOF = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Setting:
    """Where and how subjects run.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, or ``"bf16"`` for autocast to it.
        compile: compile the networks.
        fused: the fused AdamW; False is what the constructor does by itself.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    fused: bool = True

    def autocast(self) -> Any:
        """The context that forward passes run in."""
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def randn(self, *size: int) -> Tensor:
        """Data for a benchmark, on the device."""
        return torch.randn(*size, device=self.device)

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def __str__(self) -> str:
        return f"{self.device} {self.precision} {'compiled' if self.compile else 'eager'}"


PLAIN = Setting()


@dataclass(frozen=True)
class Subject:
    """One side of a comparison.

    Args:
        name: in tables.
        call: what is measured.
        parameters: how many numbers it trains.
        counted: count its operations and its memory; False for calls in which both mean nothing, such as starting a program.
        images: samples that one call takes.
        wall: other processes do the work, so only the wall clock sees it.
    """

    name: str
    call: Callable[[], object]
    parameters: int = 0
    counted: bool = True
    images: int = 0
    wall: bool = False


def training_step(name: str, net: nn.Module, loss: Callable[[nn.Module], Tensor], *, setting: Setting = PLAIN, images: int = 0,
                  after: Callable[[nn.Module], Callable[[], object]] | None = None) -> Subject:  # fmt: skip
    """Forward, backward, AdamW and zero_grad of ``net`` in train mode, and what ``after`` makes of the network, such as its averages."""
    net = net.to(setting.device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, **({"fused": True} if setting.fused else {}))
    more = after(net) if after is not None else None
    if setting.compile:
        net.compile()

    def step() -> None:
        with setting.autocast():
            value = loss(net)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if more is not None:
            more()

    return Subject(name, step, sum(p.numel() for p in net.parameters()), images=images)


def clock(call: Callable[[], object], setting: Setting = PLAIN, wall: bool = False) -> float:
    """Seconds of one call."""
    if setting.device == "cpu" and not wall:
        start = _cpu_seconds()
        call()
        return _cpu_seconds() - start
    setting.wait()
    start = time.perf_counter()
    call()
    setting.wait()
    return time.perf_counter() - start


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def operations(call: Callable[[], object]) -> int:
    """Floating point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_memory(call: Callable[[], object], setting: Setting = PLAIN) -> int:
    """Bytes that tensors made by one call hold at most, beside what was there before."""
    if setting.device == "cuda":
        setting.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events: Any = profiler.profiler
    held = peak = 0
    for event in sorted(events.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def compare(subjects: Sequence[Subject], rounds: int = 15, setting: Setting = PLAIN) -> dict[str, Any]:
    """Run the subjects against each other; the first is the reference of all ratios.

    Args:
        subjects: at least one.
        rounds: how often each is measured, after the calls in which its operations and memory are counted.
        setting: where they run.

    Returns:
        Plain dictionaries, ready for JSON.
    """
    if setting.device == "cpu":
        torch.set_num_threads(1)
    side = ROOF[setting.device]
    a, b = torch.randn(2, side, side, device=setting.device, dtype=torch.bfloat16 if setting.precision == "bf16" else torch.float32)
    for subject in subjects:
        if setting.compile or not subject.counted:
            subject.call()
    flops = {s.name: operations(s.call) if s.counted and not setting.compile else 0 for s in subjects}
    peaks = {s.name: peak_memory(s.call, setting) if s.counted else 0 for s in subjects}
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    roofs = []
    for index in range(rounds):
        roofs.append(2 * side**3 / statistics.median(clock(lambda: a @ b, setting) for _ in range(3)))
        for subject in subjects if index % 2 == 0 else reversed(subjects):
            times[subject.name].append(clock(subject.call, setting, subject.wall))
    reference = times[subjects[0].name]
    results = [
        {
            "name": subject.name,
            "parameters": subject.parameters,
            "gflop": flops[subject.name] / 1e9,
            "peak_mb": peaks[subject.name] / 1e6,
            "ms": 1e3 * statistics.median(times[subject.name]),
            "images_per_s": subject.images / statistics.median(times[subject.name]),
            "ratio": quartiles([t / r for t, r in zip(times[subject.name], reference, strict=True)]),
            "ms_of_rounds": [1e3 * t for t in times[subject.name]],
            "of_roof": statistics.median(flops[subject.name] / t / roof for t, roof in zip(times[subject.name], roofs, strict=True)),
        }
        for subject in subjects
    ]
    machine = {"torch": torch.__version__, "python": platform.python_version(), "roof_gflops": statistics.median(roofs) / 1e9}
    return {"rounds": rounds, "threads": 1, "setting": str(setting), **machine, "results": results}


def paired(ours: dict[str, Any], peer: dict[str, Any], per_flop: bool = False) -> list[float]:
    """Median and quartiles of ours over the peer's over the rounds of one comparison; ``per_flop``: each divided by its operations."""
    work = peer["gflop"] / ours["gflop"] if per_flop else 1.0
    return quartiles([work * a / b for a, b in zip(ours["ms_of_rounds"], peer["ms_of_rounds"], strict=True)])


def quartiles(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def report(title: str, outcome: dict[str, Any], path: Path | None = None) -> None:
    """Print a table, and write the figures to ``path`` as JSON."""
    roof = f"roof {outcome['roof_gflops']:.0f} GFLOP/s"
    print(f"{title}: {outcome['rounds']} rounds, {outcome['setting']}, torch {outcome['torch']}, {roof}", flush=True)
    for row in outcome["results"]:
        middle, low, high = row["ratio"]
        size = f"{row['parameters'] / 1e6:8.3f} M {row['gflop']:8.2f} GFLOP {row['peak_mb']:7.0f} MB"
        speed = f"{row['images_per_s']:.1f} images/s  " if row["images_per_s"] else ""
        print(f"  {row['name']:<40}{size} {row['ms']:9.2f} ms  {speed}ratio {middle:.3f} [{low:.3f}..{high:.3f}]  "
              f"of roof {row['of_roof']:.3f}", flush=True)  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"title": title, **outcome}, indent=1))
