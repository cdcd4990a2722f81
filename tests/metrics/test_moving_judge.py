"""The judge of moving shapes: real clips go the way they are told, clips that are turned round or stand still do not."""

from __future__ import annotations

import pytest
import torch

from diffx.data import MovingShapes
from diffx.metrics import Evidence, measure
from diffx.metrics.moving_judge import NAMES, moving_figure, told_ways
from diffx.metrics.own import own_figures
from diffx.metrics.real import real_items


@pytest.fixture(scope="module")
def clips():
    return real_items(MovingShapes(items=300, val_items=0))[0]


def seen(clips, x):
    return measure(Evidence(x, x), [moving_figure(clips["text"], clips["x"])])[0]


def test_captions_are_read():
    told = told_ways(["a red circle moving up and left and a blue square resting", "a yellow triangle moving right"])
    assert told.tolist() == [[[1, -1, -1], [0, 0, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]]]
    with pytest.raises(ValueError, match="tells the colour of each"):
        told_ways(["a circle moving up"])


def test_real_clips_go_as_told(clips):
    figures = seen(clips, clips["x"])
    assert figures["colour_presence"]["value"] > 0.97
    assert figures["way"]["value"] > 0.8
    assert figures["way"]["held_out"] == figures["way"]["value"]
    assert figures["way_gain"]["value"] > 0.5
    assert figures["colour_presence"]["shuffled"] < 0.6


def test_still_and_mirrored_clips_do_not(clips):
    still = clips["x"][:, :, :1].expand(-1, -1, 8, -1, -1)
    assert seen(clips, still)["way"]["value"] == 0
    assert seen(clips, still)["colour_presence"]["value"] > 0.97
    assert seen(clips, clips["x"].flip(3, 4))["way"]["value"] < 0.15
    assert seen(clips, torch.zeros_like(clips["x"]))["colour_presence"]["value"] == 0


def test_it_belongs_to_the_data(clips):
    names = {name for figure in own_figures(MovingShapes(), clips) for name in figure.names}
    assert {*NAMES, "unsteadiness"} <= names


def test_clips_of_two_frames_are_too_short(clips):
    figures, skipped = measure(Evidence(clips["x"][:, :, :2], clips["x"][:, :, :2]), [moving_figure(clips["text"])])
    assert not figures and "over 3 frames, got clips of 2" in skipped["way"]
