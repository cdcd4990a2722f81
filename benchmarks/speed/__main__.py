"""Measure diffx beside its peers and write the tables of docs/performance.md.

python -m benchmarks.speed                  the short form: the rows marked so, three rounds, nothing written
python -m benchmarks.speed --full           all rows, as many rounds as each needs; figures to docs/performance/, tables to the page
python -m benchmarks.speed --full --only dit_s ema
python -m benchmarks.speed --device cuda --precision bf16 --compile       the rows about networks, on an accelerator
python -m benchmarks.speed --fill           the tables again from the figures that lie there
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness import Setting, report
from benchmarks.pages import DOCS, fill, table
from benchmarks.speed.images import IMAGES
from benchmarks.speed.loops import LOOPS
from benchmarks.speed.media import MEDIA
from benchmarks.speed.reading import READING
from benchmarks.speed.rows import Row
from benchmarks.speed.sampling import SAMPLING

__all__ = ["FIGURES", "PAGE", "ROWS", "at_roof", "goals_table", "main", "subjects_table"]

ROWS: Mapping[str, Row] = {row.name: row for row in (*IMAGES, *MEDIA, *SAMPLING, *READING, *LOOPS)}
PAGE, FIGURES = "performance.md", "performance"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    args = _arguments(argv)
    if args.fill:
        _fill()
        return
    setting = Setting(args.device, args.precision, args.compile)
    wanted = args.only or [row.name for row in ROWS.values() if (args.full or row.short) and (args.device == "cpu" or row.networks)]
    for name in wanted:
        row = ROWS[name]
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        outcome = row.run(setting, args.rounds or (row.rounds if args.full else 3))
        report(f"{name}, {row.title}", outcome)
        for text in (*(f"{subject}: {why}" for subject, why in outcome["missing"].items()), *map(_verdict, outcome["goals"])):
            print(f"  {text}", flush=True)
        if args.full and args.device == "cpu":
            folder = DOCS / FIGURES
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps({"title": row.title, **_rounded(outcome)}, indent=1) + "\n")
            _fill()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all rows; write figures and tables")
    parser.add_argument("--fill", action="store_true", help="measure nothing, write the tables again")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, help="measurements of each subject, at least 2")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    return parser.parse_args(argv)


def _rounded(value: Any) -> Any:
    """Numbers with the digits that mean something."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _verdict(goal: Mapping[str, Any]) -> str:
    per = " per operation" if goal["per_flop"] else ""
    if "ratio" not in goal:
        return f"{goal['ours']} / {goal['peer']}{per}: not measured"
    middle, low, high = goal["ratio"]
    met = "met" if middle <= goal["at_most"] else "missed"
    return f"{goal['ours']} / {goal['peer']}{per}: {middle:.3f} [{low:.3f}..{high:.3f}], goal <= {goal['at_most']}: {met}"


def _fill() -> None:
    found = {name: json.loads(path.read_text()) for name in ROWS if (path := DOCS / FIGURES / f"{name}.json").is_file()}
    fill(PAGE, "goals", goals_table(found))
    fill(PAGE, "subjects", subjects_table(found))


def at_roof(outcome: Mapping[str, Any], goal: Mapping[str, Any]) -> float | None:
    """The ratio of a goal if ours took no longer than a matrix product of as many operations; None where operations are not counted."""
    ours, peer = (next((r for r in outcome["results"] if r["name"] == goal[side]), None) for side in ("ours", "peer"))
    if not ours or not peer or not ours["gflop"] or not peer["gflop"]:
        return None
    return float(peer["of_roof"] * (1.0 if goal["per_flop"] else ours["gflop"] / peer["gflop"]))


def goals_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per goal: the ratio that was measured, the one to reach, and the one at the speed of matrix products."""
    rows = []
    for outcome in found.values():
        for goal in outcome["goals"]:
            bound = at_roof(outcome, goal)
            middle, low, high = goal.get("ratio", (None, None, None))
            ratio = "not installed" if middle is None else f"{middle:.3f} [{low:.3f}..{high:.3f}]"
            met = "" if middle is None else "yes" if middle <= goal["at_most"] else "**no**"
            rows.append(
                [
                    outcome["title"],
                    goal["ours"],
                    goal["peer"],
                    ratio,
                    f"<= {goal['at_most']:.2f}",
                    met,
                    "" if bound is None else f"{bound:.2f}",
                ]
            )
    return table(["Job", "diffx", "Peer", "Measured, diffx / peer", "Goal", "Met", "At the roof"], rows)


def subjects_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per subject: size, work, memory, time."""
    rows = []
    for outcome in found.values():
        for result in outcome["results"]:
            work = [f"{result[key]:{form}}" if result[key] else "" for key, form in (("gflop", ".1f"), ("peak_mb", ".0f"))]
            roof = f"{result['of_roof']:.2f}" if result["gflop"] else ""
            size = f"{result['parameters'] / 1e6:.1f}" if result["parameters"] else ""
            rows.append([outcome["title"], result["name"], size, *work, f"{result['ms']:.4g}", roof])
        rows += [[outcome["title"], name, "", "", "", why, ""] for name, why in outcome["missing"].items()]
    return table(["Job", "Subject", "M parameters", "GFLOP", "Peak MB", "ms", "Of roof"], rows)


if __name__ == "__main__":
    main()
