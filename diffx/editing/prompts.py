"""How the tokens of two prompts belong together: words by words, for prompt-to-prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Unit", "align", "refinement", "replacement", "units_of"]


class Unit(NamedTuple):
    """A word of a prompt, or a special token between words.

    Args:
        word: in lower case; a name in angle brackets for special tokens.
        start: first token.
        stop: one after the last token.
    """

    word: str
    start: int
    stop: int

    @property
    def special(self) -> bool:
        """Whether it is no word."""
        return self.word.startswith("<")


def units_of(spans: Sequence[Any], source: str, length: int) -> list[Unit]:
    """All ``length`` real tokens of a prompt as units, in order.

    Tokens outside the spans are units of their own: ``<start i>`` before the first word, ``<end i>`` behind the last, ``<>`` between.

    Args:
        spans: the `diffx.text.TokenSpan` of the prompt's words.
        source: of which only the spans of this source count.
        length: number of real tokens.

    Raises:
        ValueError: spans that overlap: they are phrases, not words.
    """
    words = sorted((span.start, min(span.stop, length), span.phrase.lower()) for span in spans if span.source == source)
    units: list[Unit] = []
    place = 0
    for start, stop, word in words:
        if start < place:
            raise ValueError(f"prompt-to-prompt needs the spans of single words, one after the other, but {word!r} overlaps another one")
        units += [Unit("<>" if units and place else f"<start {j}>", j, j + 1) for j in range(place, start)]
        units.append(Unit(word, start, stop))
        place = stop
    return units + [Unit(f"<end {j - place}>", j, j + 1) for j in range(place, length)]


def replacement(source: Sequence[Unit], target: Sequence[Unit], keys: tuple[int, int]) -> Tensor:
    """The matrix M (source keys, target keys) of a replacement: ``P_target = P_source M`` moves each word's attention to its successor.

    Word k belongs to word k; a word of several tokens spreads over all tokens of its successor. Special tokens belong to those of the same
    name. Rows of tokens that belong somewhere sum to 1.

    Args:
        source: units of the prompt before.
        target: units of the prompt after.
        keys: number of tokens of both, padding included.

    Raises:
        ValueError: prompts of different numbers of words.
    """
    before, after = ([unit for unit in units if not unit.special] for units in (source, target))
    if len(before) != len(after):
        raise ValueError(f"replacing needs prompts of as many words, got {len(before)} ({' '.join(u.word for u in before)}) and "
                         f"{len(after)} ({' '.join(u.word for u in after)}); use mode='refine'")  # fmt: skip
    named = {unit.word: unit for unit in target if unit.special}
    pairs = [*zip(before, after, strict=True), *((unit, named[unit.word]) for unit in source if unit.special and unit.word in named)]
    matrix = torch.zeros(keys)
    for old, new in pairs:
        matrix[old.start : old.stop, new.start : new.stop] = 1 / (new.stop - new.start)
    return matrix


def align(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each word of ``target`` the place of its partner in ``source``, or None: the best global alignment (Needleman & Wunsch 1970).

    Equal words score 1, different ones -1, gaps 0; so only equal words become partners.
    """
    rows, columns = len(source), len(target)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            same = best[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best[i][j] = max(same, best[i - 1][j], best[i][j - 1])
    partners: list[int | None] = [None] * columns
    i, j = rows, columns
    while i and j:
        if source[i - 1] == target[j - 1] and best[i][j] == best[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
            partners[j] = i
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return partners


def refinement(source: Sequence[Unit], target: Sequence[Unit], keys: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The matrix M (source keys, target keys) of a refinement and the target tokens (target keys,) bool that have a partner.

    ``P_target = P_source M`` where there is a partner; other target tokens keep their own attention. The tokens of a word and of its
    partner belong together in order.

    Args:
        source: units of the prompt before.
        target: units of the prompt after.
        keys: number of tokens of both, padding included.
    """
    matrix, partnered = torch.zeros(keys), torch.zeros(keys[1], dtype=torch.bool)
    for new, place in zip(target, align([u.word for u in source], [u.word for u in target]), strict=True):
        if place is not None:
            old = source[place]
            for k, token in enumerate(range(new.start, new.stop)):
                matrix[min(old.start + k, old.stop - 1), token] = 1
                partnered[token] = True
    return matrix, partnered
