"""Figures of a data set's own judge, measured by `evaluate` beside the others."""

import pytest
import torch

from diffx import Cond
from diffx.data import Annotated, Digits, Shapes, ShapesOracle
from diffx.metrics import evaluate
from diffx.metrics.own import own_figures
from diffx.metrics.report import table


class Copier:
    """A module that answers each request with the real picture it was taken from, or with another one."""

    def __init__(self, data, shift=0):
        self.data, self.shift = data, shift

    def condition(self, batch):
        return Cond(vectors={"x": batch["x"].flatten(1)})

    def sample(self, n, cond=Cond(), **options):
        return cond.vectors["x"].view(n, 3, 16, 16).roll(self.shift, 0)


def measured(data, shift=0, **options):
    return evaluate(Copier(data, shift), data, n=60, **options)


@pytest.mark.parametrize("wrapped", [False, True])
def test_samples_are_judged_by_the_prompts_they_were_asked_for(wrapped):
    data = Shapes(8, items=100, val_items=40)
    data = Annotated(data, ShapesOracle(), 8) if wrapped else data
    claim = {"samples": 60, "colour_presence": ">= 0.75", "absent_colours": "<= 0.25", "prompt_gain": ">= 0.25", "full_scene": ">= 1"}
    right, wrong = measured(data, claim=claim), measured(data, 1, claim=claim)
    assert right["kept"] is True
    for name, value in {"colour_presence": 1, "absent_colours": 0, "pair_recall": 1, "binding": 1, "full_scene": 1}.items():
        assert right["figures"][name]["value"] == value
    assert right["figures"]["colour_presence"]["shuffled"] == pytest.approx(1 - right["figures"]["prompt_gain"]["value"])
    assert wrong["kept"] is False and wrong["figures"]["full_scene"]["value"] < 0.2
    line = next(line for line in table(right).splitlines() if "pair_recall" in line)
    assert "with shuffled prompts" in line


def test_positions_are_judged_where_they_are_told():
    assert measured(Shapes(8, items=100, val_items=60, positions=True))["figures"]["position"]["value"] == 1
    with pytest.raises(ValueError, match=r"claim\.position: no such figure"):
        measured(Shapes(8, items=100, val_items=60), claim={"position": ">= 1"})


def test_prompts_that_leave_something_out_cannot_be_judged():
    report = measured(Shapes(8, items=100, val_items=0, drop=1.0), claim={"pair_recall": ">= 0.5"})
    assert "must tell colour and shape" in report["skipped"]["pair_recall"] and report["kept"] is None


def test_other_data_have_none():
    assert own_figures(Digits(8), {}) == own_figures(torch.nn.Identity(), {}) == ()
    with pytest.raises(ValueError, match="no such figure"):
        evaluate(Copier(None), Digits(8), n=2, claim={"pair_recall": ">= 1"})
