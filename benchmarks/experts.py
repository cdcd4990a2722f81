"""Experts on the digits: ``python -m benchmarks.experts`` prints the held-out loss of the runs that docs name, in every band.

The noise is the same for all.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import diffx
from diffx import Cond, Digits
from diffx.metrics.real import real_items
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


def main() -> None:
    """Print the table."""
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


if __name__ == "__main__":
    main()
