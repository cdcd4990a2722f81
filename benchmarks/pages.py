"""Tables that a program writes into a page of the documentation, between two comments of their name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["fill", "table"]

DOCS = Path(__file__).resolve().parents[1] / "docs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(page: str, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in ``docs/page``.

    Raises:
        ValueError: the page has no such place.
    """
    path, begin, end = DOCS / page, f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} has no place between {begin.strip()} and {end}")
    path.write_text(f"{head}{begin}{text}\n{end}{tail}", encoding="utf-8")
