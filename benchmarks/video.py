"""Clips of moving digits: ``python -m benchmarks.video`` trains where nothing is trained and fills docs/techniques/video.md.

- ``motion``: figures of drawn clips at several numbers of steps;
- ``completion``: the last four of eight frames drawn from the first four, with and without reconstruction guidance;
- ``cascade``: three stages, 8x8 at 4 frames, 8x8 at 8 frames, 16x16 at 8 frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.cascade import Cascade
from diffx.data import MovingDigits
from diffx.metrics import evaluate, motion

RUN = Run("video/moving_digits")
STAGES = tuple(Run(f"video/cascade_{stage}") for stage in ("base", "frames", "size"))
FIGURES = ("mean_step", "fast_step", "unsteadiness", "mass_variation", "frechet_clip", "nearest", "nearest_floor")
WEIGHTS = (0.0, 2.0, 5.0, 10.0)
SEEDS = (0, 1000)
CLIPS, KNOWN = 64, 4
PAGE = "techniques/video.md"
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def figures(found: Mapping[str, Any]) -> list[str]:
    """One line of the table of motion."""
    return [f"{found[name]['value']:.3f}" for name in FIGURES]


def joined(whole: Tensor, truth: Tensor) -> dict[str, float]:
    """How completed clips (n, 1, T, H, W) go on from their known frames, beside the true ones."""
    seen, real = motion(whole), motion(truth)
    return {
        "seam": (whole[:, :, KNOWN] - whole[:, :, KNOWN - 1]).square().mean().item(),
        "truth": (whole - truth)[:, :, KNOWN:].square().mean().item(),
        "centre": (seen.centroid - real.centroid)[:, KNOWN].norm(dim=-1).mean().item(),
        "jump": seen.steps[:, KNOWN - 1].mean().item(),
    }


def completion(module: Any) -> tuple[dict[tuple[int, float], dict[str, float]], dict[float, Tensor]]:
    """Figures by (seed, weight), and the clips of the first seed by weight."""
    truth = MovingDigits().val.fetch(np.arange(CLIPS), 0)["x"]  # type: ignore[union-attr]
    known = torch.arange(truth.shape[2]) < KNOWN
    found, drawn = {}, {}
    for seed in SEEDS:
        for weight in WEIGHTS:
            whole = module.complete(truth, known, weight=weight, seed=seed)
            found[seed, weight] = joined(whole, truth)
            if seed == SEEDS[0]:
                drawn[weight] = whole
        found[seed, float("inf")] = joined(truth, truth)
    return found, drawn


def strip(x: Tensor) -> Tensor:
    """Clips as rows of frames."""
    return media.grid(x.transpose(1, 2).flatten(0, 1), columns=x.shape[2], zoom=3)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.video", __doc__).parse_args(argv).runs
    train(runs, [RUN, *STAGES])
    module = diffx.load(str(RUN.folder(runs)))
    data = MovingDigits()
    rows = []
    for steps in (10, 40, 80):
        sampler = replace(module.sampler, steps=steps)
        report = evaluate(module, data, n=256, sampler=sampler, folder=runs / "video", name=f"steps-{steps}")
        rows.append([str(steps), *figures(report["figures"])])
        train_figures = report["figures"]
    real = [f"{train_figures[name]['train']:.3f}" for name in FIGURES[:4]]
    held = [f"{train_figures[name]['held_out']:.3f}" for name in FIGURES[4:]]
    fill(PAGE, "motion", table(["Steps", *FIGURES], [["real", *real, *held], *rows]))

    found, drawn = completion(module)
    lines = []
    for (seed, weight), entry in found.items():
        name = "real" if weight == float("inf") else f"{weight:g}"
        lines.append([str(seed), name, *(f"{entry[key]:.3f}" for key in ("seam", "truth", "centre", "jump"))])
    fill(PAGE, "completion", table(["Seed", "Weight", "seam", "truth", "centre", "jump"], lines))
    ratios = [[found[seed, 5.0][key] / found[seed, 0.0][key] for key in ("seam", "centre", "truth")] for seed in SEEDS]
    text = "; ".join(f"seam {a:.2f}, centre {b:.2f}, truth {c:.2f}" for a, b, c in ratios)
    fill(PAGE, "ratios", f"Weight 5 over weight 0, by seed: {text} (claimed: at most .92, .85 and 1).")

    cascade = Cascade([diffx.load(str(run.folder(runs))) for run in STAGES])
    made = cascade.sample(256, seed=0)
    seen = motion(made[-1])
    whole = {"mean_step": seen.steps.mean(), "unsteadiness": seen.turns.median(), "mass_variation": seen.variation.mean()}
    fill(PAGE, "cascade", table(list(whole), [[f"{value.item():.3f}" for value in whole.values()]]))

    media.save(media.grid(module.sample(16, seed=0)), IMAGES / "moving-digits.gif")
    longer = module.extend(drawn[5.0][:8], 4, seed=7)
    media.save(media.grid(longer, columns=8), IMAGES / "moving-digits-longer.gif")
    media.save(strip(torch.cat([torch.stack([drawn[0.0][i], drawn[5.0][i]]) for i in range(4)])), IMAGES / "moving-digits-completed.png")
    media.save(media.grid(made[-1][:16]), IMAGES / "moving-digits-cascade.gif")
    print(*rows, *lines, text, whole, sep="\n")


if __name__ == "__main__":
    main()
