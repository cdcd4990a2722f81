from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from time import process_time

import numpy as np
import pytest
import torch

from diffx.data import normalise
from diffx.data.loader import Loader
from diffx.data.order import Order
from diffx.data.shapes import COLOURS, PALETTE, SHAPES, VOCABULARY, Described, Rules, Shapes, compose, parse, scene, template
from diffx.recipes import recipe_of

SETTINGS = [
    {},
    {"size": 32},
    {"size": (20, 36)},
    {"size": (50, 17)},
    {"objects": (4, 4), "extent": (0.25, 0.3)},
    {"size": 64, "objects": (2, 3), "extent": (0.1, 0.45)},
]


def batch(count: int = 300, part: str = "train", **settings):
    """The first items of a data set."""
    return getattr(Shapes(**settings), part).fetch(np.arange(count), 0)


def pairs(row_colours, row_shapes) -> list[tuple[str, str]]:
    return [(COLOURS[c], SHAPES[s]) for c, s in zip(row_colours.tolist(), row_shapes.tolist(), strict=True) if c >= 0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pictures_are_what_the_annotations_say(settings):
    """Every pixel is the background's or its object's colour, masks lie in their boxes and apart, empty slots are empty."""
    data = batch(**settings)
    ink = ((torch.tensor(list(PALETTE.values())) + 1) * 127.5).round().byte()
    for x, masks, boxes, count, colours, shapes in zip(
        *(data[k] for k in ("x", "masks", "boxes", "count", "colours", "shapes")), strict=True
    ):
        assert masks.sum(0).max() <= 1
        ground = x[:, ~masks.any(0)]
        assert (ground == ground[0, 0]).all() and abs(int(ground[0, 0]) - 127.5) <= 0.25 * 127.5 + 0.5
        for slot in range(len(masks)):
            left, top, right, bottom = boxes[slot].tolist()
            if slot >= count:
                assert colours[slot] == shapes[slot] == -1 and not masks[slot].any() and not boxes[slot].any()
                continue
            assert (x[:, masks[slot]] == ink[colours[slot]][:, None]).all()
            side = right - left
            assert side == bottom - top >= 4 and min(left, top) >= 0 and right <= x.shape[2] and bottom <= x.shape[1]
            inside = masks[slot, top:bottom, left:right]
            assert inside.sum() == masks[slot].sum()
            assert np.array_equal(inside, template(SHAPES[shapes[slot]], side))


@pytest.mark.parametrize("canvas", [(1.0, 1.0), (1.0, 1.8), (2.9, 1.0)])
def test_objects_keep_their_distance_at_every_resolution(canvas):
    rules = Rules(canvas)
    for index in range(400):
        content = scene(3, index, rules)
        for a, b in combinations(content.objects, 2):
            apart = [a.top - b.top - b.side, b.top - a.top - a.side, a.left - b.left - b.side, b.left - a.left - a.side]
            assert max(apart) >= rules.gap - 1e-6
            for scale in (16, 17, 20, 32, 64):
                (al, at, ar, ab), (bl, bt, br, bb) = a.box(scale), b.box(scale)
                assert max(bl - ar, al - br, bt - ab, at - bb) >= 1


def test_an_index_is_a_scene_whatever_surrounds_it():
    """Not of the batch, the other options, the order's seed or the resolution; but of the world, and of training or validation."""
    data = Shapes()
    whole = data.train.fetch(np.arange(40), 0)
    some = data.train.fetch(np.array([7, 3, 39, 7]), 5)
    for name in ("x", "masks", "boxes", "colours", "shapes"):
        assert torch.equal(some[name], whole[name][[7, 3, 39, 7]])
    assert some["text"] == [whole["text"][i] for i in (7, 3, 39, 7)]
    assert some["spans"] == [whole["spans"][i] for i in (7, 3, 39, 7)]
    other = Shapes(8, size=64, items=100, seed=9, positions=True, drop=0.5, edits="any")
    assert [other.train.scene(i) for i in range(40)] == [data.train.scene(i) for i in range(40)]
    assert not torch.equal(Shapes(world=1).train.fetch(np.arange(40), 0)["x"], whole["x"])
    assert not torch.equal(data.val.fetch(np.arange(40), 0)["x"], whole["x"])


def test_scenes_are_fixed_for_all_time():
    """Runs are compared across machines and versions: a change of the stream takes the base from all old figures."""
    content = scene(0, 0)
    assert [thing.pair for thing in content.objects] == [("yellow", "triangle"), ("blue", "square"), ("green", "circle")]
    assert content.background == pytest.approx(-0.21538934823564548, abs=1e-12)
    last = content.objects[-1]
    assert (last.top, last.left, last.side) == pytest.approx((0.5543668501191661, 0.0894579346628295, 0.38580796292023606), abs=1e-12)


def test_attributes_are_evenly_spread():
    rows = [scene(0, index) for index in range(6000)]
    counts = Counter(len(row.objects) for row in rows)
    assert all(abs(counts[n] - 2000) < 150 for n in (1, 2, 3))  # four standard deviations of a binomial
    seen = Counter(thing.pair for row in rows for thing in row.objects)
    assert len(seen) == 12 and all(abs(number - 1000) < 125 for number in seen.values())
    first = Counter(tuple(thing.colour for thing in row.objects) for row in rows if len(row.objects) == 3)
    assert set(first) == set(permutations(COLOURS, 3))
    sides = torch.tensor([thing.side for row in rows for thing in row.objects])
    assert sides.mean().item() == pytest.approx(0.325, abs=0.003) and sides.min() >= 0.25 and sides.max() <= 0.4
    middles = torch.tensor([[thing.top + thing.side / 2, thing.left + thing.side / 2] for row in rows for thing in row.objects])
    assert torch.allclose(middles.mean(0), torch.tensor(0.5), atol=0.01)


def test_held_out_pairs_occur_in_validation_only():
    settings = {"held_out": ["red circle", "blue triangle", "blue circle"], "edits": "any"}
    held = {("red", "circle"), ("blue", "triangle"), ("blue", "circle")}
    data = Shapes(**settings)
    train, val = data.train.fetch(np.arange(2000), 0), data.val.fetch(np.arange(600), 0)
    assert not any(set(pairs(c, s)) & held for c, s in zip(train["colours"], train["shapes"], strict=True))
    assert not any({told[:2] for told in parse(text)} & held for text in train["source_text"])
    shown = Counter(pair for c, s in zip(val["colours"], val["shapes"], strict=True) for pair in set(pairs(c, s)) & held)
    assert all(set(pairs(c, s)) & held for c, s in zip(val["colours"], val["shapes"], strict=True))
    assert set(shown) == held and min(shown.values()) > 150
    for c in val["colours"].tolist():
        assert len({colour for colour in c if colour >= 0}) == sum(colour >= 0 for colour in c)


@pytest.mark.parametrize("positions", [False, True])
def test_captions_tell_the_scene_and_spans_point_at_its_words(positions):
    data = batch(positions=positions, parts=True)
    for text, spans, c, s in zip(data["text"], data["spans"], data["colours"], data["shapes"], strict=True):
        assert [told[:2] for told in parse(text)] == pairs(c, s)
        assert compose(parse(text)) == (text, spans)
        assert set(text.split()) <= set(VOCABULARY)
        assert all(text[span.start : span.stop] == span.phrase for span in spans)
        for number, (colour, shape) in enumerate(pairs(c, s)):
            own = {span.kind: span.phrase for span in spans if span.object == number}
            assert (own["colour"], own["shape"], own["object"]) == (colour, shape, f"{colour} {shape}")
            assert ("position" in own) is positions
    assert [tuple(d.colour for d in parse(t)) for t in data["colour_text"]] == [tuple(d.colour for d in parse(t)) for t in data["text"]]
    assert [tuple(d.shape for d in parse(t)) for t in data["shape_text"]] == [tuple(d.shape for d in parse(t)) for t in data["text"]]
    assert all(d.shape is None for t in data["colour_text"] for d in parse(t))
    assert all(d.colour is None for t in data["shape_text"] for d in parse(t))


def test_caption_by_hand():
    text, spans = compose([Described("red", "circle", "top left"), Described(None, "square"), Described("blue", None)])
    assert text == "a red circle at the top left and a square and a blue object"
    assert [(s.phrase, s.object, s.kind) for s in spans] == [
        ("red", 0, "colour"), ("circle", 0, "shape"), ("red circle", 0, "object"), ("top left", 0, "position"),
        ("square", 1, "shape"), ("square", 1, "object"), ("blue", 2, "colour"), ("blue object", 2, "object"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [30, (30, 60)])
def test_position_words_follow_the_pixels(size):
    data = batch(size=size, positions=True)
    height, width = data["x"].shape[-2:]
    seen = set()
    for text, boxes in zip(data["text"], data["boxes"].tolist(), strict=True):
        for told, (left, top, right, bottom) in zip(parse(text), boxes, strict=False):
            y, x = (top + bottom) / 2 / height * 3, (left + right) / 2 / width * 3
            if min(abs(y - 1), abs(y - 2), abs(x - 1), abs(x - 2)) > 0.1:  # one pixel away from the borders between the ninths
                words = f"{('top', '', 'bottom')[int(y)]} {('left', '', 'right')[int(x)]}".strip() or "centre"
                assert told.position == words
                seen.add(words)
    assert len(seen) == 9


def test_caption_noise_is_as_frequent_as_asked_and_never_touches_the_truth():
    clean, noisy = batch(3000), batch(3000, drop=0.3, replace=0.2)
    for name in ("x", "colours", "shapes", "boxes", "masks"):
        assert torch.equal(clean[name], noisy[name])
    fates = Counter()
    for true, told in zip(clean["text"], noisy["text"], strict=True):
        for (colour, shape, _), heard in zip(parse(true), parse(told), strict=True):
            changed = [name for name, a, b in (("colour", colour, heard.colour), ("shape", shape, heard.shape)) if a != b]
            assert len(changed) <= 1
            fates[(changed[0], getattr(heard, changed[0]) is None) if changed else "true"] += 1
    total = sum(fates.values())
    assert fates["true"] / total == pytest.approx(0.5, abs=0.025)
    for attribute in ("colour", "shape"):
        assert fates[attribute, True] / total == pytest.approx(0.15, abs=0.02)
        assert fates[attribute, False] / total == pytest.approx(0.1, abs=0.02)
    assert batch(200, "val", drop=0.5, replace=0.5)["text"] == batch(200, "val")["text"]


@pytest.mark.parametrize("kind", ["colour", "shape", "any"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_edit_pairs_differ_in_one_attribute_of_one_object(kind, part):
    data = batch(part=part, edits=kind, size=(24, 16))
    kinds = set()
    for i, instruction in enumerate(data["instruction"]):
        before, after, number = parse(data["source_text"][i]), parse(data["text"][i]), int(data["edited"][i])
        changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert changed == [number]
        old, new = before[number], after[number]
        kinds.add("colour" if old.colour != new.colour else "shape")
        assert (old.colour == new.colour) != (old.shape == new.shape)
        assert instruction == f"make the {old.colour} {old.shape} {new.colour if old.colour != new.colour else 'a ' + new.shape}"
        assert len({told.colour for told in before}) == len(before)
        assert set(instruction.split()) <= set(VOCABULARY)
        differs = (data["x"][i] != data["source"][i]).any(0)
        assert differs.any() and not (differs & ~data["edit_mask"][i, 0]).any()
        assert (data["masks"][i, number] & ~data["edit_mask"][i, 0]).sum() == 0
        if old.colour != new.colour:
            assert torch.equal(differs, data["masks"][i, number]) and torch.equal(differs, data["edit_mask"][i, 0])
    assert kinds == ({"colour", "shape"} if kind == "any" else {kind})


def test_shapes_differ_from_four_pixels_on():
    for side in range(1, 40):
        drawn = [template(shape, side) for shape in SHAPES]
        for pixels in drawn:
            assert pixels[0].any() and pixels[-1].any() and pixels[:, 0].any() and pixels[:, -1].any()
            assert np.array_equal(pixels, pixels[:, ::-1])
        distinct = len({pixels.tobytes() for pixels in drawn})
        assert distinct == 3 if side >= 4 else distinct < 3
    area = {shape: template(shape, 400).mean() for shape in SHAPES}
    assert area["circle"] == pytest.approx(np.pi / 4, abs=2e-3) and area["triangle"] == pytest.approx(0.5, abs=5e-3) and area["square"] == 1


def test_palette_is_far_apart():
    colours = torch.tensor(list(PALETTE.values()))
    assert torch.cdist(colours, colours)[~torch.eye(4, dtype=torch.bool)].min() > 1.5
    assert torch.cdist(colours, torch.linspace(-0.25, 0.25, 101)[:, None].expand(-1, 3)).min() > 1.2


def test_batches_are_the_same_with_workers_and_across_epochs():
    data = Shapes(8, items=10, edits="any", parts=True)

    def requests():
        return [Order(10, 0).at(start, 8) for start in (0, 8, 16)]  # the second and third cross into the next epoch

    alone, helped = list(Loader(data.train, requests)), list(Loader(data.train, requests, workers=2))
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() and len(one["text"]) == len(one["spans"]) == len(one["x"]) == 8
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_five_thousand_pictures_a_second(record_property):
    source = Shapes().train
    rates = []
    for start in range(0, 5 * 640, 640):
        began = process_time()
        for first in range(start, start + 640, 64):
            source.fetch(np.arange(first, first + 64), 0)
        rates.append(640 / (process_time() - began))
    record_property("pictures per CPU second", max(rates))
    assert max(rates) > 5000


def test_module_face():
    data = Shapes(4, size=(16, 24), items=100, val_items=0, held_out=["red circle"])
    assert data.shape == (3, 16, 24) and data.classes is None and data.val is None and len(data.train) == 100
    assert recipe_of(data) == {
        "_target_": "diffx.data.Shapes", "batch_size": 4, "size": [16, 24], "items": 100, "val_items": 0, "held_out": ["red circle"],
    }  # fmt: skip
    assert "spans" not in batch(2, spans=False)
    moved = data.on_after_batch_transfer(data.train.fetch(np.arange(4), 0), 0)
    assert moved["x"].dtype == torch.float32 and moved["masks"].dtype == torch.bool and moved["boxes"].dtype == torch.int64
    assert torch.equal(moved["x"], normalise(data.train.fetch(np.arange(4), 0)["x"]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 12}, "too small to tell a circle from a square; they need 4, so set extent to at least 0.333"),
        ({"objects": (0, 2)}, "1 <= min <= max <= 4"),
        ({"objects": (1, 5)}, "1 <= min <= max <= 4"),
        ({"extent": (0.5, 0.4)}, "0 < min <= max <= 1"),
        ({"extent": (0.3, 0.5)}, "3 objects of side 0.5 with gaps of 0.0625 do not fit"),
        ({"held_out": ["red hexagon"]}, "such as \"red circle\"; got 'red hexagon'"),
        ({"held_out": [f"{c} {s}" for c in ("red", "blue") for s in SHAPES]}, "leave the colours .* for 3 objects"),
        ({"drop": 0.7, "replace": 0.5}, "sum is at most 1"),
        ({"edits": "size"}, "edits must be one of"),
        ({"edits": "colour", "objects": (4, 4), "extent": (0.25, 0.3)}, "no edit of kind 'colour' leads to a scene of"),
        ({"items": 0}, "items and size must be positive"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_errors_say_what_to_do(settings, words):
    with pytest.raises(ValueError, match=words):
        Shapes(**settings)


@pytest.mark.parametrize("text", ["", "red circle", "a red circle and", "a pink circle", "a circle red", "a red circle and a hexagon"])
def test_other_texts_are_no_captions(text):
    with pytest.raises(ValueError, match="cannot read"):
        parse(text)
