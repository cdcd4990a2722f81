"""One error for everything that is wrong with a recipe or an experiment, and the nearest names for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["RecipeError", "hint"]


class RecipeError(ValueError):
    """A recipe, an experiment or a command line that cannot work.

    Args:
        problems: one readable line per mistake; all mistakes that could be found at once.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def hint(name: str, names: Iterable[str], count: int = 1) -> str:
    """``"; did you mean 'width'?"`` with the nearest of ``names``, or nothing when none is near."""
    close = difflib.get_close_matches(name, sorted({str(n) for n in names}), n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
