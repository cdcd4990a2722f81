"""Where phrases stand: from characters to tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["TokenSpan", "find_spans", "locate"]


class TokenSpan(NamedTuple):
    """A phrase in a token sequence: the entries of `Cond.spans`.

    Args:
        phrase: its words.
        source: name of the token source.
        start: first token.
        stop: one after the last token.
    """

    phrase: str
    source: str
    start: int
    stop: int


def find_spans(text: str, phrases: Sequence[Any]) -> Iterator[tuple[str, int, int]]:
    """Yield (phrase, first character, one after the last); see `TextEncoder.spans`.

    Raises:
        ValueError: a phrase that is not in the text as whole words.
    """
    for phrase in phrases:
        if not isinstance(phrase, str):
            yield phrase[0], phrase[1], phrase[2]
            continue
        places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)] if phrase else []
        if not places:
            raise ValueError(f"there is no {phrase!r} in {text!r}")
        yield from ((phrase, start, stop) for start, stop in places)


def locate(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens (first, one after the last) that cover any of the characters [start, stop); (0, 0) if none does."""
    hit = [place for place, (first, last) in enumerate(offsets) if first < stop and last > start]
    return (hit[0], hit[-1] + 1) if hit else (0, 0)
