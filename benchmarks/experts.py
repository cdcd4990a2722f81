"""Experts and super-resolution on the digits: ``python -m benchmarks.experts`` prints figures of the runs that docs name.

Experts: the held-out loss of every denoiser within every band, the same noise for all. Super-resolution: decibels (PSNR) to held-out digits
that were shrunk, and then spoilt with noise of standard deviation 0.15, for networks trained with and without augmentation.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import diffx
from diffx import Cond, Digits
from diffx.metrics.real import real_items
from diffx.resizing import enlarge, shrink
from diffx.rng import forked, noised
from diffx.schedules import Band, LogNormal

EDGES = {"low": (0.0, 0.125), "rest": (0.125, 0.875), "high": (0.875, 1.0)}
BASE = LogNormal(-0.8, 1.2)


@torch.no_grad()
def losses(module: diffx.EDM, x: Tensor, label: Tensor, rounds: int) -> list[float]:
    """Mean weighted error in each band."""
    means = []
    for name, edges in EDGES.items():
        total = 0.0
        for turn in range(rounds):
            with forked("experts", name, turn):
                sigma = Band(BASE, *edges).draw(len(x))
                state = noised(x, sigma)
            error = (module.denoiser(state, sigma, Cond(label=label)) - x).square().flatten(1).mean(1)
            total += float((module.denoiser.weight(sigma) * error).mean())
        means.append(total / rounds)
    return means


def decibels(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [-1, 1], over all pixels."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="noise draws per held-out digit and band")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    _, held = real_items(Digits())
    assert held is not None
    x, label = held["x"], held["label"]
    print("held-out loss in band", *EDGES, sep="\t")
    for name in ("more", *EDGES):
        print(name, *(f"{value:.4f}" for value in losses(diffx.load(f"runs/digits/expert/{name}"), x, label, rounds)), sep="\t")
    small = shrink(x, 2)
    spoilt = (small + 0.15 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    print("PSNR, dB", "clean input", "spoilt input", sep="\t")
    print("bicubic", *(f"{decibels(enlarge(low, (8, 8)), x):.2f}" for low in (small, spoilt)), sep="\t")
    for run, level in (("clean", 0.0), ("main", 0.0), ("main", 0.15), ("main", 0.3)):
        module = diffx.load(f"runs/digits/super_resolution/{run}")
        made = [module.sample(len(x), Cond(label=label, maps={"low_res": low}), seed=0, level=level) for low in (small, spoilt)]
        print(f"{run}, level {level}", *(f"{decibels(pictures, x):.2f}" for pictures in made), sep="\t")


if __name__ == "__main__":
    main()
