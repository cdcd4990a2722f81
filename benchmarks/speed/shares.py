"""Where the time of a training step goes, by kinds of operators: ``python -m benchmarks.speed.shares``.

Profiles the subjects of goals that the figures in ``docs/performance/`` say were missed (or those of the rows named), and writes
``docs/performance/shares.json`` and the table of ``docs/performance.md``. A profiler slows what it looks at, small operators most: shares
tell where time goes, the ratios of ``benchmarks.speed`` how much of it there is.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import PLAIN
from benchmarks.pages import DOCS, fill, table
from benchmarks.speed.__main__ import FIGURES, PAGE, ROWS

__all__ = ["KINDS", "kind", "shares", "shares_table"]

REST = "rest"
KINDS: Mapping[str, re.Pattern[str]] = {
    "products": re.compile(r"conv|mm$|linear|dot|attention|einsum"),
    "norms": re.compile(r"norm"),
    "optimizer": re.compile(r"adam|Optimizer|foreach|lerp"),
    "copies": re.compile(r"copy|clone|cat$|contiguous|fill_|zero|upsample|stack|index|embedding"),
    REST: re.compile(r""),
}
"""Kind -> names of operators, the first that matches. Convolutions, linear maps and attention are products."""


def kind(operator: str) -> str:
    """The kind of an operator, such as ``"products"`` for ``"aten::addmm"``."""
    return next(name for name, pattern in KINDS.items() if pattern.search(operator.rpartition("::")[2]))


def shares(call: Callable[[], object], calls: int = 3) -> dict[str, float]:
    """Share of each kind in the time that operators take by themselves; ``"operators"`` is how many ran in one call."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
    spent: Counter[str] = Counter()
    ran = 0
    for event in profiler.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total
        ran += event.count
    return {**{name: spent[name] / spent.total() for name in KINDS}, "operators": ran / calls}


def missed() -> dict[str, set[str]]:
    """Row -> subjects of its goals that were missed, among the rows about networks."""
    found = {}
    for name, row in ROWS.items():
        path = DOCS / FIGURES / f"{name}.json"
        goals = json.loads(path.read_text())["goals"] if row.networks and path.is_file() else ()
        if sides := {goal[side] for goal in goals if "ratio" in goal and goal["ratio"][0] > goal["at_most"] for side in ("ours", "peer")}:
            found[name] = sides
    return found


def measure(wanted: Mapping[str, set[str]]) -> list[dict[str, Any]]:
    """Profile subjects; one entry each."""
    torch.set_num_threads(1)
    entries = []
    for name, subjects in wanted.items():
        for subject, make in ROWS[name].make(PLAIN).items():
            if subject in subjects:
                entries.append({"title": ROWS[name].title, "name": subject, **shares(make().call)})
                print(shares_table(entries[-1:]).splitlines()[-1], flush=True)
    return entries


def shares_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line per subject."""
    rows = [[e["title"], e["name"], *(f"{e[name]:.3f}" for name in KINDS), f"{e['operators']:.0f}"] for e in entries]
    return table(["Job", "Subject", *KINDS, "operators"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Profile and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="instead of those that missed a goal")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    entries = measure({name: set(ROWS[name].make(PLAIN)) for name in args.rows} or missed())
    (DOCS / FIGURES / "shares.json").write_text(json.dumps(entries, indent=1) + "\n")
    fill(PAGE, "shares", shares_table(entries))


if __name__ == "__main__":
    main()
