from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffx import rng
from diffx.data import Shapes, normalise
from diffx.data.shapes import COLOURS, PALETTE, SHAPES
from diffx.metrics import Claim, Evidence, measure
from diffx.metrics.shapes_judge import ShapesJudge, prompt_figures, shapes_figure


def clean(count: int, **settings):
    """Pictures in [-1, 1] with their annotations."""
    batch = Shapes(**settings).train.fetch(np.arange(count), 0)
    return normalise(batch["x"]), batch


def noisy(x, std):
    return x + std * torch.randn(x.shape, generator=rng.generator("judge noise"))


def paint(*rectangles):
    """A gray 16-pixel picture with filled rectangles (colour, left, top, right, bottom)."""
    x = torch.zeros(1, 3, 16, 16)
    for colour, left, top, right, bottom in rectangles:
        x[0, :, top:bottom, left:right] = torch.tensor(PALETTE[colour])[:, None, None]
    return x


@pytest.mark.parametrize(
    ("size", "count", "objects"),
    [
        (32, 200, (1, 3)),
        (16, 60, (1, 3)),
        (16, 1000, (1, 3)),
        ((24, 40), 200, (1, 3)),
        (20, 200, (1, 3)),
        (64, 200, (1, 3)),
        (17, 200, (3, 3)),
    ],
)
def test_no_mistake_on_clean_pictures(size, count, objects):
    x, batch = clean(count, size=size, objects=objects)
    findings = ShapesJudge()(x)
    figures = prompt_figures(findings, batch["text"])
    assert figures.pop("absent_colours") == 0
    assert set(figures.values()) == {1}
    there = batch["colours"] >= 0
    assert (findings.box_iou(batch["colours"], batch["boxes"])[there] == 1).all()
    assert (findings.mask_iou(batch["colours"], batch["masks"])[there] == 1).all()
    assert findings.box_iou(batch["colours"], batch["boxes"])[~there].isnan().all()
    wanted = [
        {(COLOURS[c], SHAPES[s]) for c, s in zip(*row, strict=True) if c >= 0}
        for row in zip(batch["colours"], batch["shapes"], strict=True)
    ]
    assert findings.pairs == wanted


@pytest.mark.parametrize("size", [16, 32])
def test_pixel_noise_is_forgiven(size):
    x, batch = clean(400, size=size)
    figures = prompt_figures(ShapesJudge()(noisy(x, 0.15)), batch["text"])
    assert figures["full_scene"] >= 0.97 and figures["colour_presence"] >= 0.99 and figures["absent_colours"] <= 0.01


def test_bare_noise_and_gray_show_nothing():
    judge = ShapesJudge()
    for x in (torch.zeros(20, 3, 16, 16), 0.2 * torch.randn(20, 3, 16, 16, generator=rng.generator("gray"))):
        findings = judge(x)
        assert not findings.present.any() and (findings.shape == -1).all() and findings.pairs == [frozenset()] * 20
    x = torch.randn(200, 3, 16, 16, generator=rng.generator("white")).clamp(-1, 1)
    assert (judge(x).shape >= 0).float().mean() < 0.02


def test_a_bar_is_no_square_and_two_of_one_colour_are_no_object():
    judge = ShapesJudge()
    findings = judge(
        torch.cat([paint(("red", 2, 2, 8, 8)), paint(("red", 2, 2, 12, 4)), paint(("red", 1, 1, 5, 5), ("red", 10, 10, 14, 14))])
    )
    assert findings.present[:, 0].all() and not findings.present[:, 1:].any()
    assert [SHAPES[k] if k >= 0 else None for k in findings.shape[:, 0].tolist()] == ["square", None, None]
    assert findings.boxes[:, 0].tolist() == [[2, 2, 8, 8], [2, 2, 12, 4], [1, 1, 14, 14]]
    assert findings.iou[0, 0] == 1
    assert findings.iou[1, 0] < 0.35  # the bar suggests a side of 6; a square shares 12 of 44 pixels with it


def test_specks_are_no_objects():
    """Fewer than 4 pixels, or than 1 % of a larger canvas."""
    x = torch.zeros(1, 3, 64, 64)
    for pixels, there in ((3, False), (30, False), (50, True)):
        x.zero_()
        x[0, :, 10, :pixels] = torch.tensor(PALETTE["blue"])[:, None]
        assert ShapesJudge()(x).present[0].tolist() == [False, False, there, False]
    assert not ShapesJudge()(paint(("green", 3, 3, 6, 4))).present.any()
    assert ShapesJudge()(paint(("green", 3, 3, 5, 5))).present[0, 1]


def test_figures_by_hand():
    x = torch.cat([paint(("red", 1, 1, 6, 6), ("blue", 9, 9, 14, 14)), paint(("green", 1, 1, 6, 6))])
    figures = prompt_figures(ShapesJudge()(x), ["a red square and a blue circle", "a green square and a yellow triangle"])
    assert figures == pytest.approx({
        "colour_presence": 3 / 4,  # no yellow
        "absent_colours": 0,
        "pair_recall": 2 / 4,  # the blue one is no circle
        "binding": 2 / 3,
        "shape_recall": 2 / 4,  # asked: square, circle, square, triangle
        "full_scene": 0,
    })  # fmt: skip
    swapped = prompt_figures(ShapesJudge()(x), ["a green square", "a green square"])
    assert swapped["absent_colours"] == 2 / 6 and swapped["colour_presence"] == 1 / 2 and swapped["full_scene"] == 1 / 2
    assert swapped["shape_recall"] == 1
    nothing = prompt_figures(ShapesJudge()(torch.zeros(1, 3, 16, 16)), ["a red square"])
    assert nothing["colour_presence"] == 0 and math.isnan(nothing["binding"])


def test_positions_are_judged():
    x, batch = clean(300, size=30, positions=True)
    findings = ShapesJudge()(x)
    assert prompt_figures(findings, batch["text"])["position"] == 1
    x, batch = clean(600, size=30, objects=(1, 1), extent=(0.2, 0.2))
    told = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]
    shares = [prompt_figures(ShapesJudge()(x), [f"{text} at the {place}" for text in batch["text"]])["position"] for place in told]
    assert 1 <= sum(shares) < 1.2  # each lies in one ninth, or on the border of several


def test_shuffled_prompts_score_chance():
    """One object per picture: another picture's caption names its colour one time in four, its pair one time in twelve."""
    x, batch = clean(2000, objects=(1, 1))
    findings = ShapesJudge()(x)
    figures = prompt_figures(findings, [batch["text"][i] for i in rng.permutation(2000, "shuffle").tolist()])
    assert figures["colour_presence"] == pytest.approx(1 / 4, abs=0.04)
    assert figures["absent_colours"] == pytest.approx(1 / 4, abs=0.02)
    assert figures["pair_recall"] == figures["full_scene"] == pytest.approx(1 / 12, abs=0.025)
    assert figures["binding"] == pytest.approx(1 / 3, abs=0.07)
    assert figures["shape_recall"] == pytest.approx(1 / 3, abs=0.045)


def test_a_shift_lowers_the_overlap_as_geometry_says():
    x = paint(("red", 2, 2, 8, 8))
    findings = ShapesJudge()(x)
    colours, boxes = torch.tensor([[0, 2, -1]]), torch.tensor([[[4, 2, 10, 8], [0, 0, 4, 4], [0, 0, 0, 0]]])
    region = torch.zeros(1, 3, 16, 16, dtype=torch.bool)
    region[0, 0, 2:8, 4:10] = True
    region[0, 1, :4, :4] = True
    for overlap in (findings.box_iou(colours, boxes), findings.mask_iou(colours, region)):
        assert overlap[0, :2].tolist() == pytest.approx([24 / 48, 0]) and overlap[0, 2].isnan()


def test_bytes_and_numbers_are_judged_alike():
    x, batch = clean(30)
    for one, other in zip(vars(ShapesJudge()(x)).values(), vars(ShapesJudge()(batch["x"])).values(), strict=True):
        assert torch.equal(one, other)


def test_as_a_figure_with_claims():
    x, batch = clean(300, positions=True, size=24)
    results, skipped = measure(Evidence(samples=x, train=x), [shapes_figure(batch["text"])])
    assert not skipped and results["position"]["value"] == 1
    assert results["full_scene"]["value"] == 1 and results["full_scene"]["shuffled"] < 0.3
    assert results["prompt_gain"]["value"] == pytest.approx(1 - results["colour_presence"]["shuffled"])
    claim = Claim.parse({"samples": 300, "colour_presence": ">= 0.75", "absent_colours": "<= 0.25", "prompt_gain": ">= 0.25"}, results)
    assert claim.kept(claim.verdict(results, 300))
    blind, _ = measure(Evidence(samples=x, train=x, seed=3), [shapes_figure([batch["text"][i] for i in rng.permutation(300, "blind")])])
    assert abs(blind["prompt_gain"]["value"]) < 0.1


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a red circle"] * 3, "got 2 pictures and 3 prompts"),
        (["a red circle", "a circle"], "colour and shape of every object"),
        (["a red circle", "something else"], "cannot read 'something else'"),
    ],
)
def test_unfit_prompts(prompts, words):
    with pytest.raises(ValueError, match=words):
        prompt_figures(ShapesJudge()(torch.zeros(2, 3, 16, 16)), prompts)


def test_unfit_pictures():
    with pytest.raises(ValueError, match=r"got \(2, 1, 16, 16\)"):
        ShapesJudge()(torch.zeros(2, 1, 16, 16))
