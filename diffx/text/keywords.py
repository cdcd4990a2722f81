"""Key words: which words of a caption name things and their qualities, found by rules or given as spans; a mark before them.

In ERNIE-ViLG 2.0 (arXiv:2210.15257) nouns and adjectives are what a picture must not miss: a special token may stand before them, and
the attention to them is raised (`diffx.guidance.KeyWordBoost`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .. import rng
from ..recipes import recorded
from .spans import find_spans

__all__ = ["KeyWords", "Tagged", "Tagger", "tag"]

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
CLOSED = {
    "determiner": "a an the this that these those each every some any no all both another other its his her their our my your whose",
    "pronoun": "i you he she it we they me him us them itself himself herself themselves who which what there here something someone",
    "preposition": "in on at of with without by to from for into onto over under above below between among behind beside near next through "
    "across along around against inside outside toward towards off up down out about as than like within during upon",
    "conjunction": "and or but while when where because if so nor",
    "verb": "is are was were be been being am has have had do does did can could will would may might must shall should sits stands shows "
    "holds looks runs walks rides wears eats plays lies flies hangs goes make made making",
    "adverb": "not very too also just only quite rather really still together away back again",
    "number": "one two three four five six seven eight nine ten several many few",
    "adjective": "red green blue yellow orange purple pink brown black white gray grey cyan magenta golden silver dark bright light big "
    "small large little tiny huge tall short long old new young round square wooden empty full open high low wet dry hot cold",
}
KIND = {word: kind for kind, words in CLOSED.items() for word in words.split()}
ADJECTIVES = re.compile(r".{2,}(?:ous|ful|less|able|ible|ish|ive|ic)$")
NO_ADVERBS = {"family", "fly", "butterfly", "dragonfly", "lily", "belly", "jelly", "assembly", "monopoly", "holly", "early", "friendly"}
KEYS = ("noun", "adjective")


class Tagged(NamedTuple):
    """A word with its part of speech.

    Args:
        word: as it is written.
        start: first character.
        stop: one after the last.
        kind: "noun", "adjective", "verb", "adverb", "number", "determiner", "pronoun", "preposition" or "conjunction".
    """

    word: str
    start: int
    stop: int
    kind: str


Tagger = Callable[[str], Sequence[Tagged]]
"""A text -> its words in order with their parts of speech."""


def tag(text: str) -> list[Tagged]:
    """Tag English captions by closed lists and endings; what no rule knows is a noun.

    Words in -ing and -ed are verbs ("a man riding"), but after a determiner, number or adjective they belong to the noun that follows ("a
    painted wall") or are one ("the building").
    """
    found = [(match.group(), *match.span()) for match in WORD.finditer(text)]
    kinds = [_kind(word.lower()) for word, _, _ in found]
    for place, kind in enumerate(kinds):
        if kind == "participle":
            led = place > 0 and kinds[place - 1] in ("determiner", "number", "adjective")
            follows = place + 1 < len(kinds) and kinds[place + 1] in ("noun", "adjective", "participle")
            kinds[place] = "verb" if not led else "adjective" if follows else "noun"
    return [Tagged(*about, kind) for about, kind in zip(found, kinds, strict=True)]


def _kind(word: str) -> str:
    if word in KIND:
        return KIND[word]
    if word.isnumeric():
        return "number"
    if word.endswith("ly") and word not in NO_ADVERBS:
        return "adverb"
    if len(word) > 5 and word.endswith(("ing", "ed")):
        return "participle"
    return "adjective" if ADJECTIVES.match(word) else "noun"


@recorded
@dataclass(frozen=True)
class KeyWords:
    """Finds the key words of captions and may mark them.

    Args:
        tagger: gives the parts of speech; None takes `tag`. Nouns and adjectives are key words, unless a caption comes with spans of its
            own.
        marker: a token that is put before key words, None = none. The encoder must know it: ``Words`` from its vocabulary.
        rate: probability that a caption's key word is marked; each by its own coin.
        mark_in_sampling: mark all key words of a prompt; False = marks are for training only.

    Raises:
        ValueError: a rate that is no probability, an empty marker.
    """

    tagger: Tagger | None = None
    marker: str | None = None
    rate: float = 0.5
    mark_in_sampling: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is the probability that a key word is marked, got {self.rate}")
        if self.marker is not None and not self.marker.strip():
            raise ValueError(f"a marker must be visible, such as '*', or None; got {self.marker!r}")

    def find(self, text: str, spans: Sequence[Any] | None = None) -> list[tuple[str, int, int]]:
        """The key words of a text as (word, first character, one after the last), in order.

        Args:
            text: the caption.
            spans: phrases, or triples that begin with (phrase, first character, one after the last): the words they touch are the key
                words. None asks the tagger.

        Raises:
            ValueError: a phrase that is not in the text.
        """
        if spans is None:
            return [(word.word, word.start, word.stop) for word in (self.tagger or tag)(text) if word.kind in KEYS]
        touched = [(start, stop) for _, start, stop in find_spans(text, spans)]
        words = [(match.group(), *match.span()) for match in WORD.finditer(text)]
        return [(word, a, b) for word, a, b in words if any(a < stop and b > start for start, stop in touched)]

    def mark(self, text: str, words: Sequence[tuple[str, int, int]], *, training: bool) -> tuple[str, list[tuple[str, int, int]]]:
        """Put markers before key words, and say where these stand then. Coins come from the default CPU generator.

        Args:
            text: the caption.
            words: its key words, as `find` gives them.
            training: whether this is training.
        """
        if self.marker is None or not words or not (training or self.mark_in_sampling):
            return text, list(words)
        coins = (rng.rand((len(words),)) < self.rate) if training else torch.ones(len(words), dtype=torch.bool)
        cuts = [0, *(start for _, start, _ in words), len(text)]
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        out, moved = pieces[0], []
        for (word, start, stop), coin, piece in zip(words, coins.tolist(), pieces[1:], strict=True):
            out += f"{self.marker} " if coin else ""
            moved.append((word, len(out), len(out) + stop - start))
            out += piece
        return out, moved
