"""Experts for bands of noise beside one network: ``python -m benchmarks.experts`` trains where nothing is trained and fills a page.

- ``bands``: held-out loss on the digits, in every band, of the trunk, of the trunk trained on for all bands, and of three experts,
  three training seeds of what follows the trunk;
- ``curve``: the same loss in eighths of the noise, means over the seeds;
- ``ensembles``: samples of the merged experts and of the trunk trained on for as many steps in all, which begins its learning rate
  anew as the experts do;
- ``shapes``: samples of captioned shapes by experts that were trained in one run, and by the trunk trained on for as many steps.

The page is docs/techniques/experts.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, media
from diffx.data import Digits, Shapes
from diffx.metrics import evaluate
from diffx.metrics.real import real_items
from diffx.rng import forked, noised
from diffx.schedules import Band, LogNormal
from diffx.techniques.experts import joined

PAGE = "techniques/experts.md"
BANDS = {"lowest eighth": (0.0, 0.125), "middle": (0.125, 0.875), "highest eighth": (0.875, 1.0)}
BASE = LogNormal(-0.8, 1.2)
SEEDS, STEPS, ROUNDS, SHOWN = 3, 400, 8, 10
SCENES = ("colour_presence", "pair_recall", "binding", "full_scene", "frechet")
CURVES = ("trunk", "one network", *BANDS)
HEADS = {
    "curve": ("Noise", *CURVES),
    "bands": ("Trained on for", "Seed", *BANDS),
    "ensembles": ("Samples of", "Seed", "Fréchet distance", "accuracy", "nearest"),
    "shapes": ("Samples of", "Guidance", *SCENES),
}


def further(trunk: Path, band: Sequence[float], steps: int) -> tuple[str, ...]:
    """What makes ``digits/expert`` go on from a trunk on one band."""
    low, high = band
    return (f"module.denoiser.path={trunk}", f"module.schedule.low={low}", f"module.schedule.high={high}", f"trainer.max_steps={steps}")


def digits(runs: Path, seed: int) -> dict[str, Run]:
    """The trunk, and the trainings that go on from it with a seed."""
    told, end = ((f"seed={seed}",), f"_w{seed}") if seed else ((), "")
    trunk = Run("digits/edm")
    path = trunk.folder(runs)
    experts = {
        band: Run("digits/expert", f"{band.split()[0]}{end}", (*further(path, edges, STEPS), *told)) for band, edges in BANDS.items()
    }
    more = {n: Run("digits/expert", f"all_{n}{end}", (*further(path, (0.0, 1.0), n), *told)) for n in (STEPS, len(BANDS) * STEPS)}
    return {"trunk": trunk, "all noise": more[STEPS], **experts, "one network": more[len(BANDS) * STEPS]}


@torch.no_grad()
def losses(module: Any, x: Tensor, label: Tensor, parts: Mapping[str, Sequence[float]] = BANDS) -> list[float]:
    """Mean weighted error in each part of the noise; the noise is the same for all modules."""
    means = []
    for name, edges in parts.items():
        total = 0.0
        for turn in range(ROUNDS):
            with forked("experts", name, turn):
                sigma = Band(BASE, *edges).draw(len(x))
                state = noised(x, sigma)
            error = (module.denoiser(state, sigma, Cond(label=label)) - x).square().flatten(1).mean(1)
            total += float((module.denoiser.weight(sigma) * error).mean())
        means.append(total / ROUNDS)
    return means


def load(run: Run, runs: Path) -> Any:
    """The averaged weights of a run."""
    return diffx.load(str(run.folder(runs)))


def bands(runs: Path) -> Iterator[list[str]]:
    """Held-out losses."""
    _, held = real_items(Digits())
    assert held is not None
    for seed in range(SEEDS):
        trained = digits(runs, seed)
        train(runs, trained.values())
        for name in (*(("trunk",) if seed == 0 else ()), "all noise", *BANDS):
            found = losses(load(trained[name], runs), held["x"], held["label"])
            yield [name, str(seed), *(f"{value:.4f}" for value in found)]


def curve(runs: Path) -> Iterator[list[str]]:
    """Held-out losses over the noise, one line an eighth of it."""
    _, held = real_items(Digits())
    assert held is not None
    eighths = {f"{k} to {k + 1} eighths": (k / 8, (k + 1) / 8) for k in range(8)}
    means = []
    for name in CURVES:
        trained = [digits(runs, seed)[name] for seed in range(1 if name == "trunk" else SEEDS)]
        train(runs, trained)
        found = [losses(load(run, runs), held["x"], held["label"], eighths) for run in trained]
        means.append([sum(values) / len(values) for values in zip(*found, strict=True)])
    for part, values in zip(eighths, zip(*means, strict=True), strict=True):
        yield [part, *(f"{value:.4f}" for value in values)]


def ensembles(runs: Path) -> Iterator[list[str]]:
    """What samples of digits are like."""
    for seed in range(SEEDS):
        trained = digits(runs, seed)
        train(runs, trained.values())
        modules = {
            **({"trunk": load(trained["trunk"], runs)} if seed == 0 else {}),
            "one network": load(trained["one network"], runs),
            "three experts": joined([load(trained[band], runs) for band in BANDS]),
        }
        for name, module in modules.items():
            figures = evaluate(module, Digits(), n=1000, folder=runs / "experts", name=f"{name} {seed}")["figures"]
            yield [name, str(seed), *(f"{figures[key]['value']:.3f}" for key in ("frechet", "accuracy", "nearest"))]


def scenes(runs: Path) -> dict[str, Run]:
    """The trainings on captioned shapes, the trunk first."""
    trunk = Run("shapes/text_pooled")
    path = trunk.folder(runs)
    taken = [f"module.{name}={{_target_: diffx.load, path: {path}, part: {name}}}" for name in ("denoiser", "text")]
    return {
        "trunk": trunk,
        "one network": Run("shapes/text_pooled", "longer", (*taken, "module.optimizer.lr=0.0005", "trainer.max_steps=2400")),
        "three experts": Run("shapes/experts", "main", (f"module.denoiser.net.path={path}", f"module.text.path={path}")),
    }


def planned(runs: Path) -> list[Run]:
    """All trainings, in their order."""
    return list(dict.fromkeys([*(run for seed in range(SEEDS) for run in digits(runs, seed).values()), *scenes(runs).values()]))


def shapes(runs: Path) -> Iterator[list[str]]:
    """What samples of captioned shapes are like."""
    trained = scenes(runs)
    train(runs, trained.values())
    for name, run in trained.items():
        for scale in (1, 3):
            data, label = Shapes(size=16, spans=False), f"shapes {name} {scale}"
            figures = evaluate(load(run, runs), data, n=300, guidance=scale, folder=runs / "experts", name=label)["figures"]
            yield [name, str(scale), *(f"{figures[key]['value']:.3f}" for key in SCENES)]
    _, held = real_items(Shapes(size=16, spans=False, val_items=SHOWN))
    assert held is not None
    drawn = []
    for run in trained.values():
        module = load(run, runs)
        drawn.append(module.sample(SHOWN, module.condition(held), guidance=3.0, seed=0).cpu())
    media.save(media.grid(torch.cat([held["x"], *drawn]), columns=SHOWN), DOCS / "images" / "shapes-experts.png")


PARTS = {"bands": bands, "curve": curve, "ensembles": ensembles, "shapes": shapes}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    made = parser("python -m benchmarks.experts", __doc__)
    made.add_argument("--only", nargs="*", choices=PARTS, default=tuple(PARTS), help="some of the parts; default: all")
    options = made.parse_args(argv)
    for name in options.only:
        rows = []
        for row in PARTS[name](options.runs):
            rows.append(row)
            print(*row, sep="\t", flush=True)
        folder = options.runs / "experts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        fill(PAGE, name, table(HEADS[name], rows))


if __name__ == "__main__":
    main()
