"""Scenes of coloured shapes: what is in picture number ``index``, as a pure function of (seed, index).

A scene knows no pixels. Lengths are in units of the canvas's short side, so one scene can be drawn at any resolution. Colours never repeat
within a scene, which is why "the red one" always means one object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor

import numpy as np

from ... import rng

__all__ = ["COLOURS", "PALETTE", "SHAPES", "Object", "Pair", "Rules", "Scene", "scene", "uniforms"]

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.9, -0.8, -0.8),
    "green": (-0.8, 0.7, -0.8),
    "blue": (-0.8, -0.6, 0.9),
    "yellow": (0.9, 0.8, -0.8),
}
"""Colour name -> RGB in [-1, 1]. Any two lie at least 1.5 apart (Euclidean), and each at least 1.2 from every background."""
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")
GRAY = 0.25  # backgrounds are gray between -GRAY and GRAY
ATTEMPTS = 16  # places tried for one object before the whole layout starts afresh

Pair = tuple[str, str]
"""(colour, shape)."""


@dataclass(frozen=True)
class Object:
    """One object: a shape that fills a square box.

    Args:
        colour: a name of `PALETTE`.
        shape: a name of `SHAPES`.
        top: upper edge of the box.
        left: left edge of the box.
        side: side of the box.
    """

    colour: str
    shape: str
    top: float
    left: float
    side: float

    @property
    def pair(self) -> Pair:
        """(colour, shape)."""
        return self.colour, self.shape

    def box(self, scale: int) -> tuple[int, int, int, int]:
        """The box in pixels, (left, top, right, bottom), on a canvas whose short side is ``scale`` pixels.

        The side is rounded down and the middle to the nearest place, within half a pixel, that puts the edges on whole pixels. So boxes
        stay square, inside the canvas, and apart.
        """
        side = floor(self.side * scale + 1e-9)
        left, top = (floor(edge * scale + (self.side * scale - side) / 2 + 0.5 - 1e-9) for edge in (self.left, self.top))
        return left, top, left + side, top + side


@dataclass(frozen=True)
class Scene:
    """A picture's content.

    Args:
        canvas: (height, width) in units of the short side: the smaller one is 1.
        background: gray level in [-0.25, 0.25].
        objects: in the order in which a caption names them.
    """

    canvas: tuple[float, float]
    background: float
    objects: tuple[Object, ...]

    @property
    def pairs(self) -> frozenset[Pair]:
        """The (colour, shape) of every object."""
        return frozenset(thing.pair for thing in self.objects)


@dataclass(frozen=True)
class Rules:
    """What scenes look like.

    Args:
        canvas: (height, width) in units of the short side.
        count: smallest and largest number of objects, within [1, 4]; each number in between is equally frequent.
        extent: smallest and largest side of an object; uniform in between.
        gap: smallest distance between two boxes.
        held_out: pairs (colour, shape) that occur in no scene, or, with ``unseen``, at least one of them in every scene.
        unseen: draw validation scenes; they have a stream of their own. Their other objects may be of any pair.

    Raises:
        ValueError: a number outside its range, unknown pairs, too few colours left, or objects too large to fit.
    """

    canvas: tuple[float, float] = (1.0, 1.0)
    count: tuple[int, int] = (1, 3)
    extent: tuple[float, float] = (0.25, 0.4)
    gap: float = 1 / 16
    held_out: frozenset[Pair] = frozenset()
    unseen: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count[0] <= self.count[1] <= len(COLOURS):
            raise ValueError(f"count must be two numbers 1 <= min <= max <= {len(COLOURS)} (colours do not repeat), got {self.count}")
        if not 0 < self.extent[0] <= self.extent[1] <= 1:
            raise ValueError(f"extent must be two shares of the short side, 0 < min <= max <= 1, got {self.extent}")
        if min(self.canvas) != 1:
            raise ValueError(f"canvas must be (height, width) in units of the short side, so that the smaller is 1; got {self.canvas}")
        if unknown := [pair for pair in self.held_out if pair[0] not in PALETTE or pair[1] not in SHAPES]:
            raise ValueError(f"held-out pairs must be of {COLOURS} and {SHAPES}, got {unknown[0]}")
        if not self.unseen and len(self.colours) < self.count[1]:
            raise ValueError(
                f"{len(self.held_out)} held-out pairs leave the colours {self.colours} for {self.count[1]} objects; hold out fewer"
            )
        height, width = (floor((side + self.gap) / (self.extent[1] + self.gap) + 1e-9) for side in self.canvas)
        if height * width < self.count[1]:
            raise ValueError(
                f"{self.count[1]} objects of side {self.extent[1]} with gaps of {self.gap:.3g} do not fit on a canvas of {self.canvas}; "
                "lower extent or count"
            )

    @property
    def colours(self) -> tuple[str, ...]:
        """Colours that a scene may have."""
        return tuple(colour for colour in COLOURS if self.shapes(colour))

    def shapes(self, colour: str) -> tuple[str, ...]:
        """Shapes that an object of this colour may have."""
        return SHAPES if self.unseen else tuple(shape for shape in SHAPES if (colour, shape) not in self.held_out)


def scene(seed: int, index: int, rules: Rules = Rules()) -> Scene:
    """The scene number ``index`` of the world ``seed``.

    Args:
        seed: names the world.
        index: any whole number.
        rules: what scenes look like.
    """
    draw = uniforms("shapes", "unseen" if rules.unseen else "seen", seed, index)
    background = GRAY * (2 * next(draw) - 1)
    count = rules.count[0] + int(next(draw) * (rules.count[1] - rules.count[0] + 1))
    pairs = _pairs(rules, count, draw)
    sides = [rules.extent[0] + next(draw) * (rules.extent[1] - rules.extent[0]) for _ in pairs]
    corners = _corners(rules, sides, draw)
    objects = (Object(*pair, *corner, side) for pair, corner, side in zip(pairs, corners, sides, strict=True))
    return Scene(rules.canvas, background, tuple(objects))


def uniforms(*key: int | str) -> Iterator[float]:
    """Endless uniform numbers in [0, 1), a pure function of the key (numpy's Philox, whose raw bits never change between versions)."""
    bits = np.random.Philox(rng.key(*key))
    while True:
        yield from ((bits.random_raw(48) >> 11) * 2.0**-53).tolist()


def _pairs(rules: Rules, count: int, draw: Iterator[float]) -> list[Pair]:
    """Draw a colour and a shape for each object; with ``unseen``, one of them is a held-out pair."""
    colours = list(rules.colours)
    chosen = [colours.pop(int(next(draw) * len(colours))) for _ in range(count)]
    pairs = [(colour, rules.shapes(colour)[int(next(draw) * len(rules.shapes(colour)))]) for colour in chosen]
    if rules.unseen and rules.held_out:
        held = sorted(rules.held_out)
        shown, place = held[int(next(draw) * len(held))], int(next(draw) * count)
        # the pair's colour may stand elsewhere already: that object takes the colour which gives way
        pairs = [(pairs[place][0], shape) if colour == shown[0] else (colour, shape) for colour, shape in pairs]
        pairs[place] = shown
    return pairs


def _corners(rules: Rules, sides: list[float], draw: Iterator[float]) -> list[tuple[float, float]]:
    """Place boxes one after the other, apart from those before; a layout that leaves no room for the next one starts afresh."""
    height, width = rules.canvas
    while True:
        placed: list[tuple[float, float, float]] = []
        for side in sides:
            for _ in range(ATTEMPTS):
                top, left = next(draw) * (height - side), next(draw) * (width - side)
                if all(_apart(top, left, side, *other, rules.gap) for other in placed):
                    placed.append((top, left, side))
                    break
            else:
                break
        if len(placed) == len(sides):
            return [(top, left) for top, left, _ in placed]


def _apart(top: float, left: float, side: float, top2: float, left2: float, side2: float, gap: float) -> bool:
    far = gap - 1e-9
    return top2 - top - side >= far or top - top2 - side2 >= far or left2 - left - side >= far or left - left2 - side2 >= far
