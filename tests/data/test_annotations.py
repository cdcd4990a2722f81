"""The file of annotations: keyed by content, whole after a kill, one annotator each, never asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffx.data import Annotation, AnnotationFile, Detection, Shapes, ShapesOracle, annotate
from diffx.data.annotations import picture_key
from diffx.recipes import recipe_of
from diffx.recipes.build import build

DOG = Annotation((Detection("dog", (1.5, 2.0, 7.0, 8.0), 0.75), Detection("gr\u00fcner Ball", (0.0, 0.0, 1.0, 1.0))), "a dog")


class Counting:
    """An oracle that counts what it looks at."""

    fingerprint = "counting"

    def __init__(self):
        self.seen = 0

    def __call__(self, batch):
        self.seen += len(batch["x"])
        return ShapesOracle()(batch)


def data(items=50, **options):
    return Shapes(8, items=items, val_items=10, **options)


def test_what_is_written_is_read(tmp_path):
    file = AnnotationFile(tmp_path / "deep" / "seen.jsonl", "someone")
    file.add({"a": DOG, "b": Annotation()})
    for again in (file, AnnotationFile(file.path), AnnotationFile(file.path, "someone")):
        assert len(again) == 2 and "a" in again and "c" not in again
        assert again.get("a") == DOG and again.get("b") == Annotation() and again.fingerprint == "someone"
    with pytest.raises(KeyError):
        file.get("c")


def test_the_first_entry_counts(tmp_path):
    one, two = (AnnotationFile(tmp_path / "seen.jsonl", "someone") for _ in range(2))
    one.add({"a": DOG})
    two = AnnotationFile(tmp_path / "seen.jsonl", "someone")
    one.add({"b": DOG, "a": Annotation()})
    two.add({"b": Annotation()})  # a second writer, which does not know of b
    assert AnnotationFile(one.path).get("a") == AnnotationFile(one.path).get("b") == DOG


def test_another_annotator_is_refused(tmp_path):
    AnnotationFile(tmp_path / "seen.jsonl", "someone").add({"a": DOG})
    with pytest.raises(ValueError, match="by someone, but this is another"):
        AnnotationFile(tmp_path / "seen.jsonl", "another")
    (tmp_path / "other.jsonl").write_text('{"text": "not ours"}\n')
    with pytest.raises(ValueError, match="does not begin like a file of annotations"):
        AnnotationFile(tmp_path / "other.jsonl")


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_half_a_line_is_passed_over(tmp_path, cut):
    file = AnnotationFile(tmp_path / "seen.jsonl", "someone")
    file.add({"a": DOG, "b": DOG})
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    damaged = AnnotationFile(file.path)
    assert "a" in damaged and ("b" in damaged) == (cut == 1)  # without its newline a line is still whole
    damaged.add({"c": DOG})
    assert AnnotationFile(file.path).get("c") == DOG
    assert damaged.get("c") == DOG and AnnotationFile(file.path).get("a") == DOG


def test_keys_are_content():
    x = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
    assert picture_key(x) == picture_key(x.clone()) == picture_key(x.transpose(1, 2).contiguous().transpose(1, 2))
    others = [x + 1, x.view(3, 2, 4), x.float(), x.transpose(1, 2)]
    assert len({picture_key(t) for t in (x, *others)}) == 5


def test_a_data_set_is_looked_at_once(tmp_path):
    oracle, path = Counting(), tmp_path / "seen.jsonl"
    file = annotate(data(), oracle, path, batch_size=16)
    assert oracle.seen == len(file) == 60
    annotate(data(), oracle, path)
    assert oracle.seen == 60
    annotate(data(items=55), oracle, path)  # it grew
    assert oracle.seen == 65
    batch = data().train.fetch(np.array([40, 3]), 7)
    assert AnnotationFile(path)(batch) == ShapesOracle()(batch)


def test_only_one_of_the_sets(tmp_path):
    oracle = Counting()
    annotate(data(), oracle, tmp_path / "seen.jsonl", sets=["val"])
    assert oracle.seen == 10


def test_pictures_that_change_cannot_be_annotated(tmp_path):
    class Restless:
        def __len__(self):
            return 4

        def fetch(self, indices, epoch):
            return {"x": torch.full((len(indices), 3, 4, 4), epoch, dtype=torch.uint8)}

    with pytest.raises(ValueError, match="another picture of the same item in each epoch"):
        annotate(SimpleNamespace(train=Restless(), val=None), Counting(), tmp_path / "seen.jsonl")


SLOW = """
import sys, time
from diffx.data import Shapes, ShapesOracle, annotate
class Slow(ShapesOracle):
    fingerprint = "counting"
    def __call__(self, batch):
        print("looking", flush=True)
        time.sleep(0.05)
        return super().__call__(batch)
annotate(Shapes(8, items=50, val_items=10), Slow(), sys.argv[1], batch_size=2)
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "seen.jsonl"
    run = subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(8):
        run.stdout.readline()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    done = len(AnnotationFile(path))
    assert 12 <= done < 60
    oracle = Counting()
    assert len(annotate(data(), oracle, path)) == 60 and oracle.seen == 60 - done


def test_lines_are_json_that_others_can_read(tmp_path):
    file = AnnotationFile(tmp_path / "seen.jsonl", "someone")
    file.add({"a": DOG})
    head, line = map(json.loads, file.path.read_text(encoding="utf-8").splitlines())
    assert head == {"format": 1, "annotator": "someone"}
    assert line == {"key": "a", "objects": [["dog", [1.5, 2.0, 7.0, 8.0], 0.75], ["gr\u00fcner Ball", [0.0, 0.0, 1.0, 1.0], 1.0]],
                    "caption": "a dog"}  # fmt: skip


def test_the_oracle_knows_the_truth_under_every_caption():
    for options in ({}, {"drop": 1.0}, {"size": (20, 36)}):
        plain = data(**{**options, "drop": 0.0}).train.fetch(np.arange(50), 0)
        batch = data(**options).train.fetch(np.arange(50), 0)
        for row, seen in enumerate(ShapesOracle()(batch)):
            count = int(batch["count"][row])
            assert seen.caption == plain["text"][row]
            assert " and ".join(f"a {thing.label}" for thing in seen.objects) == seen.caption
            assert [list(thing.box) for thing in seen.objects] == batch["boxes"][row, :count].tolist()


def test_both_travel_in_recipes(tmp_path):
    AnnotationFile(tmp_path / "seen.jsonl", "someone").add({"a": DOG})
    assert build(recipe_of(AnnotationFile(tmp_path / "seen.jsonl"))).get("a") == DOG
    assert build(recipe_of(ShapesOracle())).fingerprint == "shapes-oracle"
