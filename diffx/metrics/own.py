"""Figures that belong to one data set, because it has a judge of its own; `evaluate` measures them beside those that suit all data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from ..data import Annotated, Emoji, Shapes
from .figures import Evidence, Figure, Results, Unsuited
from .motion import MOTION
from .retrieval import retrieval_figure
from .shapes_judge import NAMES, shapes_figure

__all__ = ["own_figures"]


@singledispatch
def own_figures(data: Any, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of a DataModule's own judge, where its class is registered here; of any other, those of motion if it gives clips.

    Args:
        data: the DataModule.
        asked: the real items, in the order of the samples, whose conditions the samples were asked to show: names -> columns as in its
            batches. Empty where only the names of the figures are wanted.
    """
    return MOTION if len(getattr(data, "shape", ())) == 4 else ()


@own_figures.register
def _(data: Shapes, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    told = ("position",) if data.options["positions"] else ()

    def compute(evidence: Evidence) -> Results:
        try:
            return shapes_figure(asked["text"]).compute(evidence)
        except ValueError as error:
            raise Unsuited(str(error)) from error

    return (Figure((*NAMES, *told, "prompt_gain"), compute),)


@own_figures.register
def _(data: Annotated, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    return own_figures(data.data, asked)


@own_figures.register
def _(data: Emoji, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    return (Figure(("retrieval",), lambda evidence: retrieval_figure(asked["x"]).compute(evidence)),)
