"""Paella on the digits: ``python -m benchmarks.paella`` trains where nothing is trained and fills docs/techniques/paella.md.

Rounds and temperature are told apart: many rounds are compared with the best temperature of a single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, media
from diffx.data import Digits
from diffx.metrics import evaluate
from diffx.renoising import Renoising

RUN = Run("digits/paella")
WALKS = {
    "12 rounds, 1 to .2": Renoising(),
    "12 rounds, 1 to .6": Renoising(12, (1.0, 0.6)),
    "12 rounds, constant 1": Renoising(12, (1.0, 1.0)),
    "8 rounds, 1 to .2": Renoising(8),
    "4 rounds, 1 to .2": Renoising(4),
    "12 rounds, 1 to .2, typical .9": Renoising(12, mass=0.9),
    "1 round, 1": Renoising(1),
    "1 round, .6": Renoising(1, (0.6, 0.6)),
    "1 round, .3": Renoising(1, (0.3, 0.3)),
}
NAMES = ("accuracy", "frechet", "precision", "recall", "nearest")


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [name, *(f"{figures[figure]['value']:.3f}" if figure in figures else "–" for figure in NAMES)]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.paella", __doc__).parse_args(argv).runs
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    data, found = Digits(), {}
    for name, walk in WALKS.items():
        found[name] = evaluate(module, data, n=1000, sampler=walk, folder=runs / "paella", name=name.replace(" ", "-"))["figures"]
    rows = [row(name, figures) for name, figures in found.items()]
    rows.append(row("12 rounds, 1 to .2, guidance 2", evaluate(module, data, n=1000, guidance=2.0)["figures"]))
    fill("techniques/paella.md", "rounds", table(["Temperature", *NAMES], rows))
    best = min(found[f"1 round, {heat}"]["frechet"]["value"] for heat in ("1", ".6", ".3"))
    near = found["12 rounds, 1 to .2"]["frechet"]["value"]
    verdict = f"Twelve rounds have {near / best:.2f} of the Fréchet distance of the best temperature of one round (at most .8 was claimed)."
    fill("techniques/paella.md", "gain", verdict)
    shown = Cond(label=torch.arange(10))
    media.save(media.grid(torch.cat([*list(module.progress(10, shown))[::2], module.sample(10, shown, seed=0)]), columns=10),
               "docs/images/digits-paella-progress.png")  # fmt: skip
    print(*rows, verdict, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
