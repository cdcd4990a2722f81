"""How cost grows with the work: time and memory of a step against one size at a time, and the exponent of a power law through them.

    python -m benchmarks.speed.curves            measure, write docs/performance/curves.json and the table of docs/performance.md

Networks are small, so that a curve takes seconds; at such sizes the constant part of a step flattens the lower end, and the exponent of the
last two points is the one to compare with theory. What other processes do, ranks and workers, is measured by the wall clock, which means
something on a machine with as many idle cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Subject, compare, training_step
from benchmarks.pages import DOCS, fill, table
from benchmarks.speed.ranks import Ranks
from benchmarks.speed.reading import pictures
from diffx.conditions import Cond
from diffx.data import ImageFolder
from diffx.denoiser import Denoiser, EDMPrecond
from diffx.experts import Experts
from diffx.networks import DiT, UNet, VideoUNet
from diffx.samplers import Euler
from diffx.schedules import Bands, LogNormal

__all__ = ["CURVES", "Curve", "exponent"]


@dataclass(frozen=True)
class Curve:
    """``make(value)`` gives the call that is measured at one value of a size.

    Args:
        title: what grows.
        values: of the size, rising.
        make: value -> subject.
        reason: what the exponent should be, and why.
    """

    title: str
    values: tuple[int, ...]
    make: Callable[[int], Subject]
    reason: str

    def run(self, rounds: int) -> dict[str, Any]:
        """Measure all values in turn, round by round."""
        results = compare([self.make(value) for value in self.values], rounds)["results"]
        ms, peaks = ([result[key] for result in results] for key in ("ms", "peak_mb"))
        memory = exponent(self.values, peaks) if all(peaks) else None
        time = exponent(self.values, ms) if all(self.values) else None
        return {"title": self.title, "values": list(self.values), "ms": ms, "peak_mb": peaks, "time": time,
                "time_last": exponent(self.values[-2:], ms[-2:]), "memory": memory, "reason": self.reason}  # fmt: skip


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the straight line nearest to log cost over log value."""
    x, y = ([math.log(v) for v in line] for line in (values, costs))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def _step(name: object, net: nn.Module, *shape: int) -> Subject:
    x, noise = torch.randn(shape), torch.rand(shape[0])
    return training_step(str(name), net, lambda net: net(x, noise).square().mean())


def _unet(width: int = 32) -> UNet:
    return UNet(width=width, mults=(1, 2), blocks=1, attention_levels=(), resample="conv")


def _dit(size: int) -> DiT:
    return DiT(4, size=size, patch=2, width=128, depth=4, heads=4)


def _experts(count: int) -> Subject:
    net = Experts(UNet(1, width=32, mults=(1, 2), blocks=1), Bands(LogNormal(), tuple(i / count for i in range(count + 1))))
    x, sigma = torch.randn(16, 1, 16, 16), LogNormal().sigma((torch.arange(16) + 0.5) / 16)
    return training_step(str(count), net, lambda net: net(x, sigma, Cond()).square().mean())


def _walk(steps: int) -> Subject:
    denoiser, noise = Denoiser(_unet(), EDMPrecond()).eval(), torch.randn(4, 3, 16, 16)

    def call() -> Tensor:
        with torch.no_grad():
            return Euler(steps)(denoiser, noise)

    return Subject(str(steps), call, counted=False)


def _of_a_rank() -> tuple[nn.Module, tuple[int, ...]]:
    return _unet(64), (8, 3, 16, 16)


def _world(ranks: int) -> Subject:
    return Subject(str(ranks), Ranks(ranks, _of_a_rank).step, counted=False, wall=True)


@functools.cache
def _photographs() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    pictures(Path(folder.name), FILES)
    return folder


def _workers(count: int) -> Subject:
    loader = ImageFolder(_photographs().name, 32, size=64, val=0.0, num_workers=count).train_dataloader()

    def call() -> None:
        for _ in islice(loader, PASSES * FILES // 32):
            pass
        loader.close()

    return Subject(str(count), call, counted=False, wall=True)


FILES, PASSES = 512, 4
CURVES = (
    Curve(
        "U-Net, batch", (1, 2, 4, 8, 16), lambda n: _step(n, _unet(), n, 3, 16, 16),
        "1: every sample costs the same; the optimizer and the calls are constant, which shows at batch 1",
    ),
    Curve(
        "U-Net, side of the picture", (8, 16, 32, 64), lambda n: _step(n, _unet(), 4, 3, n, n),
        "2: convolutions, norms and activations all go with the pixels",
    ),
    Curve(
        "U-Net, width", (16, 32, 64, 128), lambda n: _step(n, _unet(n), 4, 3, 16, 16),
        "2 for convolutions and the optimizer, 1 for norms and activations and for the memory of activations",
    ),
    Curve(
        "DiT, tokens", (16, 64, 256, 1024), lambda n: _step(n, _dit(2 * math.isqrt(n)), 4, 4, 2 * math.isqrt(n), 2 * math.isqrt(n)),
        "1 for all linear maps, 2 for attention, which 1,024 tokens of width 128 begin to show; memory 1, since attention is fused",
    ),
    Curve(
        "video U-Net, frames", (2, 4, 8, 16), lambda n: _step(n, VideoUNet(_unet(), heads=2), 2, 3, n, 16, 16),
        "1: frames are rows of a batch; attention over so few is little",
    ),
    Curve(
        "experts, one batch over all bands", (1, 2, 4, 8), _experts,
        "0 for the networks, since every sample meets one expert; above it: smaller groups, and an optimizer over more weights",
    ),
    Curve("Euler walk, steps", (4, 8, 16, 32), _walk, "1: one evaluation a step, and nothing else that grows"),
    Curve(
        "ranks (gloo), each with a batch of its own", (1, 2), _world,
        "0 where every rank has a core, and above it the exchange of gradients and the memory that cores share",
    ),
    Curve(
        f"workers that read {FILES} JPEG files {PASSES} times", (0, 1, 2, 4), _workers,
        "-1 up to the number of cores, 0 beyond it, plus their start; 0 workers read in the training process, which waits",
    ),
)  # fmt: skip


def curves_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per curve."""
    rows = []
    for curve in found:
        cost = ", ".join(f"{value}: {ms:.3g}" for value, ms in zip(curve["values"], curve["ms"], strict=True))
        exponents = ("" if curve[key] is None else f"{curve[key]:.2f}" for key in ("time", "time_last", "memory"))
        rows.append([curve["title"], cost, *exponents, curve["reason"]])
    return table(["What grows", "ms", "Exponent of time", "of the last two", "of memory", "Expected, and why"], rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    found = []
    for curve in CURVES:
        found.append(curve.run(args.rounds))
        print(curves_table(found[-1:]).splitlines()[-1], flush=True)
    (DOCS / "performance").mkdir(exist_ok=True)
    (DOCS / "performance" / "curves.json").write_text(json.dumps(found, indent=1) + "\n")
    fill("performance.md", "curves", curves_table(found))


if __name__ == "__main__":
    main()
