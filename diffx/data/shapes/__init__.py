"""Captioned coloured shapes: the test bed of everything that is conditioned on text. See `Shapes`."""

from .captions import VOCABULARY, CaptionNoise, Described, Span, caption, compose, pair_of, parse, where
from .edits import Edit, edit
from .module import SceneSource, Shapes
from .oracle import ShapesOracle
from .render import render, template
from .scenes import COLOURS, PALETTE, SHAPES, Object, Rules, Scene, scene

__all__ = [
    "COLOURS", "PALETTE", "SHAPES", "VOCABULARY", "CaptionNoise", "Described", "Edit", "Object", "Rules", "Scene", "SceneSource", "Shapes",
    "ShapesOracle", "Span", "caption", "compose", "edit", "pair_of", "parse", "render", "scene", "template", "where",
]  # fmt: skip
