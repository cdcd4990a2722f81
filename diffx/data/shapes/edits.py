"""Edit pairs: the same scene twice, with one attribute of one object changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal, TypeAlias, get_args

from .scenes import Pair, Rules, Scene, uniforms

__all__ = ["Edit", "EditKind", "check_edits", "edit"]

EditKind: TypeAlias = Literal["colour", "shape", "any"]


@dataclass(frozen=True)
class Edit:
    """A change from a source scene to a target scene.

    Args:
        source: the scene before.
        target: the scene after; all but one attribute of one object is as before.
        object: number of the changed object.
        instruction: the change in words, such as "make the blue circle red" or "make the blue circle a square".
    """

    source: Scene
    target: Scene
    object: int
    instruction: str


def edit(target: Scene, kind: EditKind, rules: Rules, *key: int | str) -> Edit:
    """Find a source from which one change leads to ``target``; a pure function of its arguments.

    The source obeys the rules too: colours do not repeat, and it has no held-out pair unless the rules are those of unseen scenes.

    Args:
        target: the scene after the change.
        kind: what may change; "any" chooses among all possible changes.
        rules: the rules that the target was drawn by.
        *key: names the choice.

    Raises:
        ValueError: no edit leads there (`check_edits` asks this of all scenes at once).
    """
    options = _reachable([thing.pair for thing in target.objects], kind, rules)
    number, before = options[int(next(uniforms(*key)) * len(options))]
    after = target.objects[number]
    old = replace(after, colour=before[0], shape=before[1])
    source = replace(target, objects=(*target.objects[:number], old, *target.objects[number + 1 :]))
    words = after.colour if old.colour != after.colour else f"a {after.shape}"
    return Edit(source, target, number, f"make the {old.colour} {old.shape} {words}")


def check_edits(kind: EditKind, rules: Rules) -> None:
    """Make sure that every scene which the rules allow can be reached by an edit.

    Raises:
        ValueError: unknown kind, or a scene that no edit leads to (named).
    """
    if kind not in get_args(EditKind):
        raise ValueError(f"edits must be one of {get_args(EditKind)} or None, got {kind!r}")
    for count in range(rules.count[0], rules.count[1] + 1):
        for colours in combinations(rules.colours, count):
            for shapes in product(*map(rules.shapes, colours)):
                _reachable(list(zip(colours, shapes, strict=True)), kind, rules)


def _reachable(pairs: list[Pair], kind: EditKind, rules: Rules) -> list[tuple[int, Pair]]:
    """All edits that lead to these pairs: (number of the object, the pair it was before)."""
    used = {colour for colour, _ in pairs}
    found: list[tuple[int, Pair]] = []
    for number, (colour, shape) in enumerate(pairs):
        if kind != "shape":
            found += [(number, (other, shape)) for other in rules.colours if other not in used and shape in rules.shapes(other)]
        if kind != "colour":
            found += [(number, (colour, other)) for other in rules.shapes(colour) if other != shape]
    if not found:
        raise ValueError(f"no edit of kind {kind!r} leads to a scene of {pairs}; allow fewer objects, other edits or fewer held-out pairs")
    return found
