"""Words for scenes: captions with the place of every word, noisy captions, and the way back from words to attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .scenes import COLOURS, SHAPES, Object, Pair, Scene, uniforms

__all__ = ["VOCABULARY", "CaptionNoise", "Described", "Span", "caption", "compose", "pair_of", "parse", "where"]

THING = "object"  # stands for a shape that is not told
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
VOCABULARY = (
    *("a", "and", "at", "the", "make", THING), *COLOURS, *SHAPES, *("top", "bottom", "left", "right", "centre"),
)  # fmt: skip
"""Every word that a caption or an instruction may hold."""


class Span(NamedTuple):
    """A phrase in a text.

    Args:
        phrase: its words.
        start: first character.
        stop: one after the last character: ``text[start:stop] == phrase``.
        object: number of the object it speaks of, in the scene's order.
        kind: "object" (the whole phrase, e.g. "red circle"), "colour", "shape" or "position".
    """

    phrase: str
    start: int
    stop: int
    object: int
    kind: str


class Described(NamedTuple):
    """What a caption tells of one object; None = not told.

    Args:
        colour: a name of `COLOURS`.
        shape: a name of `SHAPES`.
        position: e.g. "top left".
    """

    colour: str | None
    shape: str | None
    position: str | None = None


@dataclass(frozen=True)
class CaptionNoise:
    """Captions that tell less than the truth, or something else; each object is treated independently.

    Args:
        drop: probability that one attribute (colour or shape, equally often) of an object is left out: "a circle", "a red object".
        replace: probability that one attribute is replaced by a wrong one; never together with ``drop`` on one object.

    Raises:
        ValueError: the probabilities are negative or their sum exceeds 1.
    """

    drop: float = 0.0
    replace: float = 0.0

    def __post_init__(self) -> None:
        if min(self.drop, self.replace) < 0 or self.drop + self.replace > 1:
            raise ValueError(f"drop and replace must be probabilities whose sum is at most 1, got {self.drop} and {self.replace}")

    def __call__(self, told: Described, *key: int | str) -> Described:
        """Treat what is told of one object; which fate it meets is a pure function of the key."""
        if not self.drop + self.replace:
            return told
        draw = uniforms(*key)
        fate, attribute, other = next(draw), "colour" if next(draw) < 0.5 else "shape", next(draw)
        if fate < self.drop:
            return told._replace(**{attribute: None})
        if fate < self.drop + self.replace:
            wrong = [name for name in (COLOURS if attribute == "colour" else SHAPES) if name != getattr(told, attribute)]
            return told._replace(**{attribute: wrong[int(other * len(wrong))]})
        return told


def caption(scene: Scene, *, positions: bool = False) -> tuple[str, list[Span]]:
    """The true caption of a scene, e.g. "a red circle and a blue square", with its spans.

    Args:
        scene: what is shown.
        positions: tell also where each object is, e.g. "a red circle at the top left".
    """
    return compose([Described(*thing.pair, where(thing, scene.canvas) if positions else None) for thing in scene.objects])


def compose(told: Sequence[Described]) -> tuple[str, list[Span]]:
    """Write a caption, objects in the given order, and say where each phrase stands."""
    text, spans = "", []

    def write(phrase: str, number: int, kind: str) -> None:
        nonlocal text
        spans.append(Span(phrase, len(text), len(text) + len(phrase), number, kind))
        text += phrase

    for number, (colour, shape, position) in enumerate(told):
        text += " and a " if number else "a "
        start = len(text)
        if colour is not None:
            write(colour, number, "colour")
            text += " "
        if shape is not None:
            write(shape, number, "shape")
        else:
            text += THING
        spans.append(Span(text[start:], start, len(text), number, "object"))
        if position is not None:
            text += " at the "
            write(position, number, "position")
    return text, spans


def where(thing: Object, canvas: tuple[float, float]) -> str:
    """In which ninth of the canvas an object's centre lies: "top left", "top", ..., "centre", ..., "bottom right"."""
    row, column = (min(int(3 * (edge + thing.side / 2) / side), 2) for edge, side in zip((thing.top, thing.left), canvas, strict=True))
    return f"{ROWS[row]} {COLUMNS[column]}".strip() or "centre"


def parse(text: str) -> list[Described]:
    """What a caption tells, object by object: the inverse of `compose`.

    Raises:
        ValueError: the text is not such a caption.
    """
    told = []
    for phrase in text.split(" and "):
        noun, _, position = phrase.partition(" at the ")
        match noun.split():
            case ["a", colour, shape] if colour in COLOURS and shape in (*SHAPES, THING):
                told.append(Described(colour, None if shape == THING else shape, position or None))
            case ["a", shape] if shape in (*SHAPES, THING):
                told.append(Described(None, None if shape == THING else shape, position or None))
            case _:
                raise ValueError(f'cannot read {phrase!r} in {text!r}; expected "a red circle and a blue square" and the like')
    return told


def pair_of(text: str) -> Pair:
    """Read "red circle" as ("red", "circle").

    Raises:
        ValueError: it is not a colour and a shape.
    """
    match str(text).split():
        case [colour, shape] if colour in COLOURS and shape in SHAPES:
            return colour, shape
    raise ValueError(f'a pair must be one of the colours {COLOURS} and one of the shapes {SHAPES}, such as "red circle"; got {text!r}')
