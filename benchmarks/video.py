"""Clips of moving digits: ``python -m benchmarks.video`` trains where nothing is trained and fills docs/techniques/video.md.

- ``yardsticks``: figures of motion of held-out clips, of their frames in disorder, and of frames from other clips;
- ``motion``: figures of drawn clips at several numbers of steps;
- ``completion``: the last four of eight frames drawn from the first four, with and without reconstruction guidance;
- ``cascade``: three stages, 8x8 at 4 frames, 8x8 at 8 frames, 16x16 at 8 frames;
- ``clips``: real animation, with ``--clips FILE.npz`` (an array ``videos`` of 16 frames of 48x48, uint8); without it, nothing of it.
  ``--only clips`` stops there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.cascade import Cascade
from diffx.data import Arrays, MovingDigits
from diffx.metrics import FIGURES as METRICS
from diffx.metrics import MOTION, Evidence, measure, motion
from diffx.metrics.real import real_items

RUN = Run("video/moving_digits")
STAGES = tuple(Run(f"video/cascade_{stage}") for stage in ("base", "frames", "size"))
FIGURES = ("mean_step", "fast_step", "unsteadiness", "mass_variation", "frechet_clip", "nearest")
NEAREST = next(figure for figure in METRICS if "nearest" in figure.names)
SEEN = ("mean_step", "unsteadiness", "mass_variation")
WEIGHTS = (0.0, 2.0, 5.0, 10.0)
SEEDS = (0, 1000)
CLIPS, KNOWN = 64, 4
SHORT = (  # of video/clips, for one CPU: every second frame, at half the size
    "module.stills=1", "module.shape=[3,8,24,24]", "module.denoiser.net.factor=2",
    "module.denoiser.net.net.image.channels=12", "module.denoiser.net.net.image.width=48", "module.denoiser.net.net.image.head_dim=32",
    "module.denoiser.net.net.head_dim=32",
    "trainer.max_steps=4000",
)  # fmt: skip
PAGE = "techniques/video.md"
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def motion_figures(x: Tensor) -> list[str]:
    """The figures `SEEN` of clips, without anything to compare them with."""
    seen = motion(x)
    return [f"{value.item():.3f}" for value in (seen.steps.mean(), seen.turns.median(), seen.variation.mean())]


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


def yardsticks(x: Tensor) -> dict[str, Tensor]:
    """Clips (n, C, T, H, W), the same with the frames of each in a random order, and with every frame from another clip."""
    n, frames = len(x), x.shape[2]
    order = torch.rand(n, frames, generator=torch.Generator().manual_seed(0)).argsort(1)
    return {
        "clips": x,
        "their frames in random order": torch.stack([clip[:, row] for clip, row in zip(x, order, strict=True)]),
        "frames from other clips": torch.stack([x[(torch.arange(n) + 37 * t) % n, :, t] for t in range(frames)], 2),
    }


def halved(path: str, runs: Path) -> Path:
    """The clips (n, 16, 48, 48, 3) with every second frame at half the size, in a file of the folder of runs."""
    frames = torch.from_numpy(np.load(path)["videos"][:, ::2])
    half = rearrange(frames, "n t (h a) (w b) c -> n t h w c (a b)", a=2, b=2).float().mean(-1)
    to = runs / "video" / "clips.npz"
    to.parent.mkdir(parents=True, exist_ok=True)
    np.savez(to, videos=half.round().to(torch.uint8).numpy())
    return to


def clips_run(small: Path) -> Run:
    """The training on the clips of the file that `halved` wrote."""
    data = f"data={{_target_: diffx.data.Arrays, arrays: {small}, images: videos, batch_size: 8, val: 0.05}}"
    return Run("video/clips", "halved", (data, *SHORT))


def clips(runs: Path, path: str) -> list[list[str]]:
    """Rows of ``clips``; real clips beside drawn ones are written into the folder of runs, drawn ones into the docs."""
    small = halved(path, runs)
    run = clips_run(small)
    train(runs, [run])
    module = diffx.load(str(run.folder(runs)))
    real, held_out = (items["x"] for items in real_items(Arrays(small, 8, images="videos", val=0.05)) if items is not None)
    drawn = module.sample(64, seed=0, chunk=16)
    found = measure(Evidence(drawn, real, held_out=held_out), (*MOTION, NEAREST))[0]
    nearest = real[torch.cdist(drawn[:16].flatten(1), real.flatten(1)).argmin(1)]
    media.save(media.grid(torch.cat([drawn[:8], nearest[:8], drawn[8:16], nearest[8:]]), columns=8), runs / "video" / "clips.gif")
    media.save(media.grid(drawn[:16], zoom=3), IMAGES / "animated-emoji.gif")
    keys = dict.fromkeys(SEEN, "train") | {"frechet_clip": "held_out", "nearest": "held_out"}
    return [
        ["drawn", *(f"{found[name]['value']:.3f}" for name in keys)],
        ["real", *(f"{found[name][key]:.3f}" for name, key in keys.items())],
    ]


def strip(x: Tensor) -> Tensor:
    """Clips as rows of frames."""
    return media.grid(x.transpose(1, 2).flatten(0, 1), columns=x.shape[2], zoom=3)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    line = parser("python -m benchmarks.video", __doc__)
    line.add_argument("--clips", help="an .npz file of real animation; without it it is left out")
    line.add_argument("--only", choices=["clips"], help="nothing but them")
    given = line.parse_args(argv)
    runs: Path = given.runs
    if given.clips:
        fill(PAGE, "clips", table(["", *SEEN, "frechet_clip", "nearest"], clips(runs, given.clips)))
    if given.only:
        return
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    data = MovingDigits()
    train_items, held_out = (items["x"] for items in real_items(data, 4000) if items is not None)
    lines = [[name, *motion_figures(x)] for name, x in yardsticks(held_out).items()]
    fill(PAGE, "yardsticks", table(["", *SEEN], lines))
    rows = []
    for steps in (10, 40, 80):
        samples = module.sample(256, seed=0, sampler=replace(module.sampler, steps=steps))
        found = measure(Evidence(samples, train_items, held_out=held_out), (*MOTION, NEAREST))[0]
        rows.append([str(steps), *(f"{found[name]['value']:.3f}" for name in FIGURES)])
    real = [*(f"{found[name]['train']:.3f}" for name in FIGURES[:4]), *(f"{found[name]['held_out']:.3f}" for name in FIGURES[4:])]
    fill(PAGE, "motion", table(["Steps", *FIGURES], [["real", *real], *rows]))

    completed, drawn = completion(module)
    lines = []
    for (seed, weight), entry in completed.items():
        name = "real" if weight == float("inf") else f"{weight:g}"
        lines.append([str(seed), name, *(f"{entry[key]:.3f}" for key in ("seam", "truth", "centre", "jump"))])
    fill(PAGE, "completion", table(["Seed", "Weight", "seam", "truth", "centre", "jump"], lines))
    ratios = [[completed[seed, 5.0][key] / completed[seed, 0.0][key] for key in ("seam", "centre", "truth")] for seed in SEEDS]
    text = "; ".join(f"seam {a:.2f}, centre {b:.2f}, truth {c:.2f}" for a, b, c in ratios)
    fill(PAGE, "ratios", f"Weight 5 over weight 0, by seed: {text} (claimed: at most .92, .85 and 1).")

    train(runs, STAGES)
    cascade = Cascade([diffx.load(str(run.folder(runs))) for run in STAGES])
    made = cascade.sample(256, seed=0)
    whole = motion_figures(made[-1])
    fill(PAGE, "cascade", table(SEEN, [whole]))

    media.save(media.grid(module.sample(16, seed=0)), IMAGES / "moving-digits.gif")
    longer = module.extend(drawn[5.0][:8], 4, seed=7)
    media.save(media.grid(longer, columns=8), IMAGES / "moving-digits-longer.gif")
    media.save(strip(torch.cat([torch.stack([drawn[0.0][i], drawn[5.0][i]]) for i in range(4)])), IMAGES / "moving-digits-completed.png")
    media.save(media.grid(made[-1][:16]), IMAGES / "moving-digits-cascade.gif")
    print(*rows, *lines, text, whole, sep="\n")


if __name__ == "__main__":
    main()
