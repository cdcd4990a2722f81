"""What models that are told something make of it: ``python -m benchmarks.conditioning``, or ``make conditioning``.

Trains under ``runs/`` what is not there yet (about two hours on one core in all), measures it as ``diffx.evaluate`` does, and writes the
tables of ``docs/conditioning.md`` and ``docs/techniques/knowledge.md``:

- ``shapes``: U-Net and DiT that read whole captions, without and with guidance;
- ``encoders``: a model of two text encoders, told by both, or by either one while the other is hidden;
- ``emoji``: real pictures told by names that were trained on and by names that were not;
- ``knowledge``: knowledge enhancement and the same training without it, on captions that leave attributes out, three seeds each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx.data import Emoji, Shapes
from diffx.metrics import evaluate

SHAPES = {"U-Net": Run("shapes/text_unet"), "DiT": Run("shapes/text_dit")}
ENCODERS = Run("shapes/two_encoders")
EMOJI = Run("emoji/text")
SEEDS = range(3)
HIDDEN = {"both": (), "colours": ("shape_text",), "shapes": ("colour_text",), "nothing": ("colour_text", "shape_text")}
SHORT = "trainer.max_steps=2500"  # enough to tell two trainings apart
PLAIN = ("module.boost=null", "module.distance=null", "data.append=0", "data.replace=0")
SCENES = ("colour_presence", "absent_colours", "pair_recall", "binding", "shape_recall", "full_scene")
NAMED = {  # columns of the table of emoji: figure and detail
    "retrieval": ("retrieval", "value"),
    "shuffled": ("retrieval", "shuffled"),
    "frechet": ("frechet", "value"),
    "of real pictures": ("frechet", "floor"),
    "nearest": ("nearest", "value"),
}

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Untold:
    """A module from which columns of the batch are hidden."""

    module: Any
    columns: tuple[str, ...]

    @property
    def sampler(self) -> Any:
        """The module's own."""
        return self.module.sampler

    def condition(self, batch: Mapping[str, Any]) -> Any:
        """What the module is told without those columns."""
        return self.module.condition({**batch, **{name: [None] * len(batch["x"]) for name in self.columns}})

    def sample(self, *args: Any, **options: Any) -> Any:
        """As the module does."""
        return self.module.sample(*args, **options)


def knowledge(enhanced: bool, seed: int) -> Run:
    """The training of ``shapes/knowledge``, or the same without what it adds."""
    told = (f"module.seed={seed}", SHORT, *(() if enhanced else PLAIN))
    return Run("shapes/knowledge", f"{'with' if enhanced else 'without'}{seed}", told)


def planned() -> list[Run]:
    """All trainings, in their order."""
    return [*SHAPES.values(), ENCODERS, EMOJI, *pairs()]


def pairs() -> list[Run]:
    """The trainings with knowledge enhancement and without."""
    return [knowledge(enhanced, seed) for seed in SEEDS for enhanced in (True, False)]


def measured(runs: Path) -> dict[str, dict[str, Report]]:
    """Reports by table and line."""

    def judged(run: Run, data: Any, name: str, hidden: Sequence[str] = (), n: int = 300, guidance: float = 1.0) -> Report:
        module: Any = Untold(diffx.load(str(run.folder(runs))), tuple(hidden))
        return evaluate(module, data, n=n, guidance=guidance, folder=runs / "conditioning", name=name)

    shapes, parts = Shapes(size=16, spans=False), Shapes(size=16, spans=False, parts=True)
    names = {"seen": Emoji(size=32, fit="ink", val=0), "unseen": Emoji(size=32, fit="ink")}
    return {
        "shapes": {f"{net} {w}": judged(run, shapes, f"{net}-{w}", guidance=w) for net, run in SHAPES.items() for w in (1, 3)},
        "encoders": {told: judged(ENCODERS, parts, f"encoders-{told}", columns) for told, columns in HIDDEN.items()},
        "emoji": {
            f"{told} {w}": judged(EMOJI, data, f"emoji-{told}-{w}", n=456, guidance=w) for told, data in names.items() for w in (1, 2)
        },
        "knowledge": {run.name: judged(run, shapes, f"knowledge-{run.name}") for run in pairs()},
    }


# The pages --------------------------------------------------------------------------------------------------------------------------------


def figures(report: Report, names: Iterable[str], detail: str = "value") -> list[str]:
    """Figures of a report as a page shows them; what is not there is a dash."""
    return [f"{found[detail]:.3f}" if detail in (found := report["figures"].get(name, {})) else "–" for name in names]


def pages(found: Mapping[str, Mapping[str, Report]]) -> dict[tuple[str, str], str]:
    """Tables by page and place."""
    scenes = []
    for line, report in found["shapes"].items():
        scenes.append([*line.split(), *figures(report, (*SCENES, "frechet"))])
        scenes.append(["", "shuffled", *figures(report, SCENES, "shuffled"), ""])
    encoders = [[told, *figures(report, SCENES)] for told, report in found["encoders"].items()]
    emoji = [
        [*line.split(), *(figures(report, (name,), detail)[0] for name, detail in NAMED.values())]
        for line, report in found["emoji"].items()
    ]
    seeds = [[run, *figures(report, (*SCENES, "frechet"))] for run, report in found["knowledge"].items()]
    for kind in ("with", "without"):
        reports = [found["knowledge"][f"{kind}{seed}"]["figures"] for seed in SEEDS]
        seeds.append([f"{kind}, mean", *(f"{mean(report[name]['value'] for report in reports):.3f}" for name in (*SCENES, "frechet"))])
    return {
        ("conditioning.md", "shapes"): table(["Network", "Guidance", *SCENES, "frechet"], scenes),
        ("conditioning.md", "encoders"): table(["Told", *SCENES], encoders),
        ("conditioning.md", "emoji"): table(["Names", "Guidance", *NAMED], emoji),
        ("techniques/knowledge.md", "seeds"): table(["Training", *SCENES, "frechet"], seeds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the pages."""
    runs: Path = parser("python -m benchmarks.conditioning", __doc__).parse_args(argv).runs
    train(runs, planned())
    found = measured(runs)
    (runs / "conditioning.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for (page, place), text in pages(found).items():
        fill(page, place, text)
        print(place, text, sep="\n")


if __name__ == "__main__":
    main()
