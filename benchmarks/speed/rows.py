"""What a comparison is: rows of subjects, with the ratios that they should reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Setting, Subject, compare, paired

__all__ = ["Goal", "Makers", "Row"]

Makers = Mapping[str, Callable[[], Subject]]
"""Name of a subject -> what makes it; making one may need a package that is not installed."""


@dataclass(frozen=True)
class Goal:
    """``ours`` should take at most ``at_most`` of the time of ``peer``; ``per_flop``: each divided by its own operations."""

    ours: str
    peer: str
    at_most: float
    per_flop: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        name: on the command line.
        title: in tables.
        make: the subjects under a setting, a reference first.
        goals: what should be reached.
        rounds: of the full benchmark, enough for quartiles; the short one runs three.
        networks: whether the row is about networks, so that it makes sense on an accelerator.
        short: whether it belongs to the short benchmark.
    """

    name: str
    title: str
    make: Callable[[Setting], Makers]
    goals: tuple[Goal, ...]
    rounds: int = 7
    networks: bool = False
    short: bool = False

    def run(self, setting: Setting, rounds: int) -> dict[str, Any]:
        """Measure whatever is installed.

        Returns:
            The outcome of `compare`, with ``"missing"`` (subject -> what it needs) and ``"goals"``, each with its ratio where both ran.
        """
        subjects, missing = [], {}
        for name, make in self.make(setting).items():
            try:
                subject = make()
            except ModuleNotFoundError as error:
                missing[name] = f"{error.name} is not installed"
                continue
            assert subject.name == name, (subject.name, name)
            subjects.append(subject)
        outcome = compare(subjects, rounds, setting=setting)
        found = {result["name"]: result for result in outcome["results"]}
        goals = []
        for goal in self.goals:
            entry: dict[str, Any] = {"ours": goal.ours, "peer": goal.peer, "at_most": goal.at_most, "per_flop": goal.per_flop}
            if goal.ours in found and goal.peer in found:
                entry["ratio"] = paired(found[goal.ours], found[goal.peer], goal.per_flop)
            goals.append(entry)
        return {**outcome, "missing": missing, "goals": goals}
