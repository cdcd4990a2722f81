"""`Annotated`: captions that are completed or replaced, boxes of what they mention, and what cannot be."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from diffx.data import Annotated, Annotation, AnnotationFile, DataModule, Detection, Memory, Shapes, ShapesOracle, annotate
from diffx.data.annotated import Completion, complete, mentions
from diffx.data.shapes import parse
from diffx.data.source import assemble
from diffx.recipes import recipe_of
from diffx.recipes.build import build

DOG, CAT = Detection("dog", (1.0, 1.0, 3.0, 3.0)), Detection("orange cat", (0.0, 0.0, 2.0, 2.0))
SEEN = Annotation((DOG, CAT, DOG))


class Fixed:
    """Says the same of every picture."""

    fingerprint = "fixed"

    def __init__(self, *made):
        self.made = made[0] if made else SEEN

    def __call__(self, batch):
        return [self.made] * len(batch["x"])


class Captioned(DataModule):
    """Black pictures of 4 x 6 pixels, with captions or without."""

    def __init__(self, texts, count=0):
        super().__init__(1)
        self.texts, self.count = texts, count or len(texts)

    def sources(self):
        return Memory(torch.zeros(self.count, 3, 4, 6, dtype=torch.uint8), text=self.texts), None


def captioned(texts):
    return Captioned(list(texts))


def told(text, seen=SEEN, draw=0.5, append=1.0, replace=0.0):
    return complete(text, seen, Completion(append, replace), draw)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on the grass", "on the grass with a dog and an orange cat"),
        ("a Dog.", "a Dog with an orange cat"),
        ("dogs and orange cats", "dogs and orange cats"),
        ("a hotdog", "a hotdog with a dog and an orange cat"),
        ("", "with a dog and an orange cat"),
        (None, None),
    ],
)
def test_what_a_caption_misses_is_appended(text, said):
    assert told(text) == (said, 0 if said == text else 1)


def test_replaced_by_the_captioner_or_by_a_list():
    assert told("x", replace=1.0, append=0.0) == ("a dog and an orange cat", 2)
    assert told("x", Annotation((DOG,), "what a dog"), replace=1.0, append=0.0) == ("what a dog", 2)
    assert told("x", Annotation(), replace=1.0, append=0.0) == ("x", 0)


def test_mentions_are_whole_words():
    assert mentions("two red circles", "red circle") and mentions("Buses", "bus") and mentions("a DOG", "dog")
    assert not mentions("a circle", "red circle") and not mentions("dogma", "dog") and not mentions("a+b", "a.b")


def test_frequencies_and_determinism():
    texts = ["nothing"] * 20_000
    rows = np.arange(20_000)
    source = Annotated(captioned(texts), Fixed(), 8, append=0.25, replace=0.15, seed=3).train
    batch = source.fetch(rows, 0)
    fates = batch["rewritten"].bincount(minlength=3) / 20_000
    assert fates.tolist() == pytest.approx([0.6, 0.25, 0.15], abs=0.01)
    for text, fate in zip(batch["text"], batch["rewritten"].tolist(), strict=True):
        assert text == ["nothing", "nothing with a dog and an orange cat", "a dog and an orange cat"][fate]
    apart = [source.fetch(np.array([row]), 0)["text"][0] for row in range(50)]
    assert apart == batch["text"][:50]
    for other in (source.fetch(rows, 1), Annotated(captioned(texts), Fixed(), 8, seed=4).train.fetch(rows, 0)):
        assert (other["rewritten"] == batch["rewritten"]).float().mean() < 0.5  # independent: .6^2 + .25^2 + .15^2 = .445


def test_boxes_are_those_of_mentioned_objects_within_the_picture(caplog):
    wide = Annotation((Detection("dog", (-2.0, 1.0, 9.0, 3.5)), Detection("cat", (0, 0, 1, 1))))
    source = Annotated(captioned(["a dog", "a cat and a dog", "fog"]), Fixed(wide), 8, append=0, replace=0).train
    with caplog.at_level(logging.WARNING):
        boxes = source.fetch(np.arange(3), 0)["boxes"]
    assert boxes.tolist() == [[[0, 1, 6, 3.5], [0, 0, 0, 0]], [[0, 1, 6, 3.5], [0, 0, 1, 1]], [[0, 0, 0, 0]] * 2]
    assert source.counts == {"clipped": 2, "unmentioned": 2, "missing": 0}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "outside the picture of item 0" in said[1] and "does not mention its cat" in said[0]
    source.fetch(np.arange(3), 1)
    assert source.counts["unmentioned"] == 2  # an item counts once


def test_appended_objects_are_mentioned():
    source = Annotated(captioned(["grass"]), Fixed(), 8, append=1.0, replace=0).train
    assert source.fetch(np.zeros(1, dtype=np.int64), 0)["boxes"][0].tolist() == [list(DOG.box), list(CAT.box), list(DOG.box)]


def test_without_captions_all_boxes_count():
    batch = Annotated(Captioned(None, 2), Fixed(), 8).train.fetch(np.arange(2), 0)
    assert batch["boxes"].shape == (2, 3, 4) and "rewritten" not in batch and "text" not in batch


def test_several_annotators_join_their_objects():
    both = {"detector": Fixed(Annotation((DOG,))), "captioner": Fixed(Annotation((), "best friends")), "late": Fixed(Annotation((), "no"))}
    batch = Annotated(captioned(["x"]), both, 8, append=0, replace=1.0).train.fetch(np.zeros(1, dtype=np.int64), 0)
    assert batch["text"] == ["best friends"]


def test_a_picture_that_was_not_annotated(tmp_path):
    data = Shapes(8, items=20, val_items=5)
    annotate(data, ShapesOracle(), tmp_path / "seen.jsonl", sets=["val"])
    file = AnnotationFile(tmp_path / "seen.jsonl")
    with pytest.raises(ValueError, match=r"item 4 was not annotated: .*seen.jsonl does not know the picture \w{32}; run annotate\(\)"):
        Annotated(data, file, 8).train.fetch(np.array([4]), 0)
    source = Annotated(data, file, 8, missing="skip", append=1.0, replace=0.0).train
    batch = source.fetch(np.arange(20), 0)
    assert batch["text"] == data.train.fetch(np.arange(20), 0)["text"] and not batch["boxes"].any() and source.counts["missing"] == 20
    assert Annotated(data, file, 8).val.fetch(np.arange(5), 0)["boxes"].any()


def test_shapes_with_poor_captions_are_told_in_full():
    data = Shapes(8, items=2000, val_items=50, drop=0.5)
    source = Annotated(data, ShapesOracle(), 8, append=0.5, replace=0.2).train
    batch, plain = source.fetch(np.arange(2000), 0), data.train.fetch(np.arange(2000), 0)
    truth = ShapesOracle()(plain)
    for row, (text, spans, seen, fate) in enumerate(zip(batch["text"], batch["spans"], truth, batch["rewritten"].tolist(), strict=True)):
        assert all(text[start:stop] == phrase for phrase, start, stop, *_ in spans)
        poor = any(None in description[:2] for description in parse(plain["text"][row]))
        boxes = batch["boxes"][row][batch["boxes"][row].any(1)].tolist()
        if fate:
            assert all(mentions(text, thing.label) for thing in seen.objects) and boxes == [list(map(float, t.box)) for t in seen.objects]
            assert {thing.label for thing in seen.objects} <= {span[0] for span in spans}
        else:
            assert text == plain["text"][row] and (len(boxes) < len(seen.objects)) == poor
        assert fate != 1 or poor
    assert (batch["rewritten"] == 2).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_validation_captions_stay():
    data = Shapes(8, items=20, val_items=50)
    batch = Annotated(data, ShapesOracle(), 8, append=0.5, replace=0.5).val.fetch(np.arange(50), 0)
    assert batch["text"] == data.val.fetch(np.arange(50), 0)["text"] and not batch["rewritten"].any() and batch["boxes"].any(2).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"append": 0.8, "replace": 0.3}, "sum is at most 1"),
        ({"append": -0.1}, "sum is at most 1"),
        ({"missing": "ignore"}, "got 'ignore'"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        Annotated(captioned(["x"]), Fixed(), 8, **options)
    with pytest.raises(ValueError, match="no annotators"):
        Annotated(captioned(["x"]), {}, 8)


def test_it_travels_in_recipes():
    data = Annotated(Shapes(8, items=20, val_items=5), ShapesOracle(), 4, append=0.4, seed=2)
    again = build(recipe_of(data))
    assert (again.batch_size, again.seed, again.completion) == (4, 2, Completion(0.4, 0.15)) and again.shape == (3, 16, 16)
    assert again.train.fetch(np.arange(20), 1)["text"] == data.train.fetch(np.arange(20), 1)["text"]


def test_the_inner_data_is_prepared_and_checked():
    """Its batch size is of no account, its other checks are."""

    class Inner(Captioned):
        ready = False

        def prepare_data(self):
            self.ready = True

    inner = Inner(["x"] * 4)
    inner.batch_size = 10_000
    data = Annotated(inner, Fixed(), 2)
    data.prepare_data()
    data.setup("fit")
    assert inner.ready
    with pytest.raises(ValueError, match="the training data set of Inner is empty"):
        Annotated(Inner([]), Fixed(), 2).setup("fit")


def test_a_batch_across_epochs_takes_the_slots_of_the_fuller_part():
    data = Annotated(captioned(["", "a dog and an orange cat"]), Fixed(), append=0.0, replace=0.0)
    joined = assemble(data.sources()[0], [(0, np.array([0])), (1, np.array([1]))])
    torch.testing.assert_close(joined["boxes"], torch.tensor([[[0.0] * 4] * 3, [DOG.box, CAT.box, DOG.box]]))
