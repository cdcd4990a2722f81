"""What models that are told something make of it: ``python -m benchmarks.conditioning``, or ``make conditioning``.

Trains under ``runs/`` what is not there yet (about three hours on one core in all), measures it as ``diffx.evaluate`` does, and writes the
tables of ``docs/conditioning.md`` and ``docs/techniques/knowledge.md``:

- ``shapes``: U-Net and DiT that read whole captions, without and with guidance;
- ``pooled``: the U-Net that is told the pooled text, too, three training seeds;
- ``encoders``: a model of two text encoders, told by both, or by either one while the other is hidden, three training seeds;
- ``emoji``: real pictures told by names that were trained on and by names that were not;
- ``knowledge``: knowledge enhancement and the same training without it, on captions that leave attributes out, three seeds each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx.data import Emoji, Shapes
from diffx.metrics import evaluate

SHAPES = {"U-Net": Run("shapes/text_unet"), "DiT": Run("shapes/text_dit")}
EMOJI = Run("emoji/text")
SEEDS = range(3)
POOLED, ENCODERS = (
    {seed: Run(f"shapes/{name}", f"w{seed}" if seed else "main", (f"seed={seed}",) if seed else ()) for seed in SEEDS}
    for name in ("text_pooled", "two_encoders")
)
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

# The tables, in the order in which they are measured.
NAMES = ("shapes", "pooled", "encoders", "emoji", "knowledge")

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


def planned(only: Iterable[str] = NAMES) -> list[Run]:
    """The trainings that some of the tables need, in their order."""
    needed = {
        "shapes": list(SHAPES.values()),
        "pooled": list(POOLED.values()),
        "encoders": list(ENCODERS.values()),
        "emoji": [EMOJI],
        "knowledge": pairs(),
    }
    return [run for name in only for run in needed[name]]


def pairs() -> list[Run]:
    """The trainings with knowledge enhancement and without."""
    return [knowledge(enhanced, seed) for seed in SEEDS for enhanced in (True, False)]


def measured(runs: Path, only: Iterable[str] = NAMES) -> dict[str, dict[str, Report]]:
    """Reports by table and line."""

    def judged(run: Run, data: Any, name: str, hidden: Sequence[str] = (), n: int = 300, guidance: float = 1.0) -> Report:
        module: Any = Untold(diffx.load(str(run.folder(runs))), tuple(hidden))
        return evaluate(module, data, n=n, guidance=guidance, folder=runs / "conditioning", name=name)

    shapes, parts = Shapes(size=16, spans=False), Shapes(size=16, spans=False, parts=True)
    names = {"seen": {"val": 0}, "unseen": {}}
    makers: dict[str, Callable[[], dict[str, Report]]] = {
        "shapes": lambda: {f"{net} {w}": judged(run, shapes, f"{net}-{w}", guidance=w) for net, run in SHAPES.items() for w in (1, 3)},
        "pooled": lambda: {
            f"{seed} {w}": judged(run, shapes, f"pooled-{seed}-{w}", guidance=w) for seed, run in POOLED.items() for w in (1, 3)
        },
        "encoders": lambda: {
            f"{seed} {told} {w}": judged(run, parts, f"encoders-{seed}-{told}-{w}", columns, guidance=w)
            for seed, run in ENCODERS.items()
            for told, columns in HIDDEN.items()
            for w in (1, 3)
            if told != "nothing" or w == 1  # which is what guidance leads away from
        },
        "emoji": lambda: {
            f"{told} {w}": judged(EMOJI, Emoji(size=32, fit="ink", **split), f"emoji-{told}-{w}", n=456, guidance=w)
            for told, split in names.items()
            for w in (1, 2)
        },
        "knowledge": lambda: {run.name: judged(run, shapes, f"knowledge-{run.name}") for run in pairs()},
    }
    return {name: makers[name]() for name in only}


# The pages --------------------------------------------------------------------------------------------------------------------------------


def figures(report: Report, names: Iterable[str], detail: str = "value") -> list[str]:
    """Figures of a report as a page shows them; what is not there is a dash."""
    return [f"{found[detail]:.3f}" if detail in (found := report["figures"].get(name, {})) else "–" for name in names]


def scenes_table(head: str, found: Mapping[str, Report]) -> str:
    """Each line and scale, and below it what another one's caption finds."""
    lines = []
    for line, report in found.items():
        lines.append([*line.split(), *figures(report, (*SCENES, "frechet"))])
        lines.append(["", "shuffled", *figures(report, SCENES, "shuffled"), ""])
    return table([head, "Guidance", *SCENES, "frechet"], lines)


def encoders_table(found: Mapping[str, Report]) -> str:
    """Seed, what is told and scale, by line."""
    return table(["Seed", "Told", "Guidance", *SCENES], [[*line.split(), *figures(report, SCENES)] for line, report in found.items()])


def emoji_table(found: Mapping[str, Report]) -> str:
    """Names and scale, by line."""
    lines = [[*line.split(), *(figures(report, (name,), detail)[0] for name, detail in NAMED.values())] for line, report in found.items()]
    return table(["Names", "Guidance", *NAMED], lines)


def knowledge_table(found: Mapping[str, Report]) -> str:
    """Each training, then the means."""
    lines = [[run, *figures(report, (*SCENES, "frechet"))] for run, report in found.items()]
    for kind in ("with", "without"):
        reports = [found[f"{kind}{seed}"]["figures"] for seed in SEEDS]
        lines.append([f"{kind}, mean", *(f"{mean(report[name]['value'] for report in reports):.3f}" for name in (*SCENES, "frechet"))])
    return table(["Training", *SCENES, "frechet"], lines)


TABLES: dict[str, tuple[str, str, Callable[[Mapping[str, Report]], str]]] = {
    "shapes": ("conditioning.md", "shapes", partial(scenes_table, "Network")),
    "pooled": ("conditioning.md", "pooled", partial(scenes_table, "Seed")),
    "encoders": ("conditioning.md", "encoders", encoders_table),
    "emoji": ("conditioning.md", "emoji", emoji_table),
    "knowledge": ("techniques/knowledge.md", "seeds", knowledge_table),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the pages."""
    made = parser("python -m benchmarks.conditioning", __doc__)
    made.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="tables to write; default: all")
    options = made.parse_args(argv)
    runs: Path = options.runs
    train(runs, planned(options.only))
    for name, reports in measured(runs, options.only).items():
        (runs / f"conditioning-{name}.json").write_text(json.dumps(reports, indent=1), encoding="utf-8")
        page, place, write = TABLES[name]
        text = write(reports)
        fill(page, place, text)
        print(place, text, sep="\n")


if __name__ == "__main__":
    main()
