"""Claims: what a finished run must reach, written as bounds on figures, and the verdict on them."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Bound", "Claim"]

COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
PATTERN = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Bound:
    """One side of a claim on a figure.

    Args:
        compare: one of ``<= >= < >``.
        limit: the number on the right.
    """

    compare: str
    limit: float

    def met(self, value: float) -> bool:
        """Whether ``value`` keeps the bound; NaN never does."""
        return not math.isnan(value) and COMPARE[self.compare](value, self.limit)

    def __str__(self) -> str:
        """As it is written in an experiment."""
        return f"{self.compare} {self.limit:.4g}"

    @classmethod
    def parse(cls, text: Any) -> tuple[Bound, ...]:
        """Read ``"<= 0.25"``, or several bounds with commas, ``">= 0.8, <= 2.3"``.

        Raises:
            ValueError: it is not of that form.
        """
        found = [PATTERN.fullmatch(part) for part in text.split(",")] if isinstance(text, str) else [None]
        if not all(found):
            raise ValueError(f'must be a bound such as "<= 0.25" or ">= 0.8, <= 2.3", got {text!r}')
        return tuple(cls(match[1], float(match[2])) for match in found if match)


@dataclass(frozen=True)
class Claim:
    """Bounds on named figures, for one number of samples.

    Args:
        bounds: figure name -> bounds, all of which must be met.
        samples: the number of samples that the bounds were set for. Most figures depend on it, so a verdict is given at this number only.
    """

    bounds: Mapping[str, tuple[Bound, ...]]
    samples: int | None = None

    @classmethod
    def parse(cls, claim: Mapping[str, Any], known: Collection[str] | None = None) -> Claim:
        """Read the ``claim`` section of an experiment: ``{samples: 1000, accuracy: ">= 0.95", frechet: "<= 0.25"}``.

        Args:
            claim: the section.
            known: names of figures that exist; None accepts every name.

        Raises:
            ValueError: it is no mapping, or unknown figures, unreadable bounds or sample count: all of them in one message.
        """
        if not isinstance(claim, Mapping):
            raise ValueError(f'claim must map figures to bounds, such as {{accuracy: ">= 0.95"}}, got {claim!r}')
        errors, bounds = [], {}
        for name, value in claim.items():
            if name == "samples":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    errors.append(f"claim.samples: must be a whole number of samples, at least 1, got {value!r}")
            elif known is not None and name not in known:
                close = difflib.get_close_matches(str(name), list(known), 1)
                errors.append(
                    f"claim.{name}: no such figure; " + (f"did you mean {close[0]!r}?" if close else f"there are {sorted(known)}")
                )
            else:
                try:
                    bounds[name] = Bound.parse(value)
                except ValueError as error:
                    errors.append(f"claim.{name}: {error}")
        if errors:
            raise ValueError("\n".join(errors))
        return cls(bounds, claim.get("samples"))

    def verdict(
        self, figures: Mapping[str, Mapping[str, Any]], samples: int, skipped: Mapping[str, str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Compare measured figures with the bounds.

        A figure that brings a bound of its own (key ``"bound"``) is held to it at any number of samples, unless the claim names that
        figure.

        Args:
            figures: name -> {"value": number, ...}, as `measure` returns them.
            samples: the number of samples they were measured on.
            skipped: name -> why it was not measured.

        Returns:
            name -> {"value", "bound", "met"}, with met None, and a "reason", where nothing can be said.
        """
        verdict: dict[str, dict[str, Any]] = {}
        for name, bounds in self.bounds.items():
            value = figures[name]["value"] if name in figures else None
            entry = verdict[name] = {"value": value, "bound": ", ".join(map(str, bounds)), "met": None}
            if value is None:
                entry["reason"] = "not measured: " + (skipped or {}).get(name, "these features were not asked for")
            elif self.samples is not None and samples != self.samples:
                entry["reason"] = f"claimed for {self.samples} samples, measured on {samples}"
            else:
                entry["met"] = all(bound.met(value) for bound in bounds)
        for name, figure in figures.items():
            if "bound" in figure and name not in self.bounds:
                met = all(bound.met(figure["value"]) for bound in Bound.parse(figure["bound"]))
                verdict[name] = {"value": figure["value"], "bound": figure["bound"], "met": met}
        return verdict

    def kept(self, verdict: Mapping[str, Mapping[str, Any]]) -> bool | None:
        """Whether all of `verdict` is met; None where nothing is claimed, or nothing is missed but something could not be judged."""
        answers = {entry["met"] for entry in verdict.values()}
        if not self.bounds:
            return None
        return False if False in answers else None if None in answers else True
