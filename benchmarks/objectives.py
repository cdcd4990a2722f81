"""U-Net and DiT on the digits under five objectives: ``python -m benchmarks.objectives``, or ``make objectives``.

Trains under ``runs/`` what is not there yet (ten runs of 2,000 steps, about fifty minutes on one core in all), measures 1,000 samples of
each, balanced by class, as ``diffx.evaluate`` does, and writes the table of ``docs/techniques/objectives.md``. The two networks, their
optimizer and their samplers are those of ``digits/edm`` and ``digits/dit``; nothing changes but what the network predicts and the law of
the levels it sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import Digits
from diffx.metrics import evaluate
from diffx.recipes.compose import compose

COSINE = "{_target_: diffx.schedules.Cosine, lambda_min: -10, lambda_max: 10}"
LOGNORMAL = "{_target_: diffx.schedules.LogNormal, mean: -0.8, std: 1.2}"
OBJECTIVES = {
    "eps": ("diffx.EpsPrecond", COSINE),
    "v": ("diffx.VPrecond", COSINE),
    "x0": ("diffx.X0Precond", COSINE),
    "edm": ("diffx.EDMPrecond, sigma_data: 0.752", LOGNORMAL),
    "flow": ("diffx.FlowPrecond", LOGNORMAL),
}
COORDINATES = {"digits/edm": "{_target_: diffx.denoiser.LogSigma}", "digits/dit": "{_target_: diffx.denoiser.FlowTime}"}
NAMES = {"digits/edm": "U-Net", "digits/dit": "DiT"}
COLUMNS = ("accuracy", "frechet", "nearest", "precision", "recall")
LEAST = 0.85


def run(experiment: str, objective: str) -> Run:
    """The training of an experiment's network under an objective; the network is told the level in the coordinate that it was made for."""
    precond, schedule = OBJECTIVES[objective]
    denoiser = compose(experiment).tree["module"]["denoiser"]
    net = json.dumps(denoiser.get("net", denoiser))  # digits/dit has a bare network, which the technique wraps
    parts = f"net: {net}, precond: {{_target_: {precond}, noise: {COORDINATES[experiment]}}}"
    return Run(experiment, objective, (f"module.denoiser={{_target_: diffx.Denoiser, {parts}}}", f"module.schedule={schedule}"))


def measured(runs: Path) -> dict[str, dict[str, Any]]:
    """Reports of all ten by experiment and objective."""
    data = Digits()
    return {
        experiment: {
            name: evaluate(diffx.load(str(run(experiment, name).folder(runs))), data, n=1000, folder=runs / "objectives",
                           name=f"{experiment.replace('/', '-')}-{name}") for name in OBJECTIVES
        } for experiment in NAMES
    }  # fmt: skip


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: a line for each network and objective."""
    rows = [
        [NAMES[experiment], name, *(f"{report['figures'][column]['value']:.3f}" for column in COLUMNS)]
        for experiment, reports in found.items()
        for name, report in reports.items()
    ]
    return table(["Network", "Predicts", *COLUMNS], rows)


def missed(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The pairs of network and objective whose accuracy is below `LEAST`."""
    return [f"{experiment} {name}" for experiment, reports in found.items() for name, report in reports.items()
            if report["figures"]["accuracy"]["value"] < LEAST]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.objectives", __doc__).parse_args(argv).runs
    train(runs, (run(experiment, objective) for experiment in NAMES for objective in OBJECTIVES))
    found = measured(runs)
    fill("techniques/objectives.md", "figures", page(found))
    print(page(found))
    print(f"accuracy below {LEAST}: {', '.join(missed(found)) or 'none'}")


if __name__ == "__main__":
    main()
