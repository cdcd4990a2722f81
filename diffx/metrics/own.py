"""What belongs to one data set: figures of a judge of its own, measured beside those that suit all data, and features to compare it by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from ..data import Annotated, Emoji, MovingShapes, Shapes, SoundArrays, SoundFolder, Strings
from .features import Features
from .figures import Evidence, Figure, Results, Unsuited
from .motion import MOTION
from .moving_judge import NAMES as MOVING
from .moving_judge import moving_figure
from .pitch_judge import NAMES as PITCH
from .pitch_judge import PitchJudge, pitch_figure
from .retrieval import retrieval_figure
from .shapes_edits import EDITS, edit_figures
from .shapes_judge import NAMES, shapes_figure
from .sound import LogMel

__all__ = ["own_features", "own_figures"]


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

    shown = Figure((*NAMES, *told, "prompt_gain"), compute)
    return (shown, Figure(EDITS, lambda evidence: _edited(evidence, asked))) if data.options["edits"] else (shown,)


def _edited(evidence: Evidence, asked: Mapping[str, Any]) -> Results:
    return {name: {"value": value} for name, value in edit_figures(evidence.samples, asked).items()}


@own_figures.register
def _(data: Annotated, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    return own_figures(data.data, asked)


@own_figures.register
def _(data: MovingShapes, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    return (*MOTION, Figure(MOVING, lambda evidence: moving_figure(asked["text"], asked["x"]).compute(evidence)))


@own_figures.register
def _(data: Emoji, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    return (Figure(("retrieval",), lambda evidence: retrieval_figure(asked["x"]).compute(evidence)),)


@own_figures.register(Strings)
@own_figures.register(SoundArrays)
@own_figures.register(SoundFolder)
def _(data: Any, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    def compute(evidence: Evidence) -> Results:
        if "note" not in asked:
            raise Unsuited("the data does not say which note a sound has")
        try:
            return pitch_figure(asked["note"], asked["x"], PitchJudge(data.sample_rate, **data.pitch_range)).compute(evidence)
        except ValueError as error:
            raise Unsuited(str(error)) from error

    return (Figure(PITCH, compute),)


@singledispatch
def own_features(data: Any) -> Features | None:
    """What samples of a DataModule are compared by where bare values mean nothing; None = bare values, pixels.

    Sounds are told by their spectra: the same tone that begins a moment later has other values everywhere.
    """
    return None


@own_features.register(Strings)
@own_features.register(SoundArrays)
@own_features.register(SoundFolder)
def _(data: Any) -> Features:
    return LogMel(data.sample_rate)
