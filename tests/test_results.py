"""The book of results: what is planned, what is fresh, what a line says; nothing is trained here."""

import json
import subprocess
import sys

import pytest

from benchmarks import results
from benchmarks.training import Run, measured
from diffx import techniques
from diffx.recipes.compose import compose
from diffx.recipes.errors import RecipeError


def test_what_an_experiment_begins_from_comes_first():
    assert results.begins("digits/progressive") == ["digits/teacher"]
    assert results.begins("digits/guided_few") == ["digits/teacher", "digits/guided"]
    order = results.planned("digits")
    assert order.index("digits/teacher") < order.index("digits/consistency")
    assert len(order) == len({*order})
    assert "digits/expert" not in order, "it makes no claim"
    assert results.planned("digits/edm") == ["digits/edm"]
    with pytest.raises(SystemExit, match="no experiment 'digit' with a claim; try one of audio, digits"):
        results.planned("digit")


def test_only_what_draws_nothing_comparable_makes_no_claim():
    """A part of a model, pictures of many sizes, pictures made of pictures, and what needs the reader's own files."""
    theirs = {name for name in results.names(results.search_path()) if not composes(name)}
    silent = {"digits/expert", "emoji/buckets", "shapes/muse_fine", "video/clips"}
    assert {*results.names(results.search_path())} == {*results.planned()} | silent | theirs
    assert {name.split("/")[0] for name in theirs} == {"audio", "ediff_i", "folder", "imagen", "imagen_video", "imagenet"}


def composes(name):
    try:
        return bool(compose(name))
    except RecipeError:
        return False


def test_every_technique_makes_a_claim_and_is_spoken_for():
    found = {results.compose(name).tree["module"]["_target_"].rpartition(".")[2] for name in results.planned()}
    assert found == {*results.SAYS} == {*techniques.__all__}


def test_what_another_recipe_trained_is_not_taken_for_this_one(tmp_path):
    run = Run("digits/dit", "main", ("seed=3",))
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "finished").touch()
    for options, differing in (("", ["seed"]), ("seed=3", []), ("seed=3 module.denoiser.depth=2", ["module"])):
        tree = compose("digits/dit", [*options.split(), f"runs={tmp_path}"]).tree
        (folder / "config.yaml").write_text(json.dumps({key: value for key, value in tree.items() if key not in ("run", "resume")}))
        if differing:
            with pytest.raises(SystemExit, match=f"another recipe than digits/dit is now: {', '.join(differing)} differ"):
                run.train(tmp_path)
        else:
            run.train(tmp_path)  # there is nothing to do


def held(kept=True, **changes):
    run = {
        "training": {"cpu_seconds": 61.4, "peak_memory_mib": 700.2},
        "figures": {"accuracy": {"value": 0.96}, "frechet": {"value": 0.5, "floor": 0.1}},
        "verdict": {"accuracy": {"met": True}, "frechet": {"met": kept}},
        "kept": kept,
    }
    return {
        "experiment": "digits/dit", "technique": "DiTDiffusion", "claim": {"samples": 10, "accuracy": ">= 0.9", "frechet": "<= 0.4"},
        "runs": [run], "kept": kept, "picture": "dit.png", "commands": ["python -m diffx.fit experiment=digits/dit run=main"], **changes,
    }  # fmt: skip


def test_a_missed_claim_stays_and_says_so():
    met, missed = results.row(held()), results.row(held(kept=False))
    assert met[0] == "[`DiTDiffusion`](techniques/dit.md)"
    assert met[2] == "accuracy 0.96 (>= 0.9); frechet 0.5 (<= 0.4, real 0.1)"
    assert met[3:6] == ["[met](results/digits/dit.json)", "61 CPU s, 700 MiB", "![digits/dit](results/digits/dit.png)"]
    assert missed[2].endswith("frechet 0.5 (<= 0.4, real 0.1) **missed**")
    assert missed[3] == "[**missed**](results/digits/dit.json)"


def test_seeds_are_shown_as_a_range():
    one = held()
    other = {**one["runs"][0], "figures": {"accuracy": {"value": 0.9}, "frechet": {"value": 0.7}}, "kept": False}
    other["verdict"] = {"accuracy": {"met": True}, "frechet": {"met": False}}
    assert "accuracy 0.9 to 0.96 (>= 0.9)" in results.row({**one, "runs": [one["runs"][0], other]})[2]


def test_a_result_is_fresh_until_its_recipe_changes(tmp_path):
    path = tmp_path / "dit.json"
    assert not results.is_fresh(path, "digits/dit", [0])
    path.write_text(json.dumps({"recipe_sha256": results.fingerprint("digits/dit"), "seeds": [0]}))
    assert results.is_fresh(path, "digits/dit", [0])
    assert not results.is_fresh(path, "digits/dit", [0, 1])
    assert not results.is_fresh(path, "digits/edm", [0])
    assert results.fingerprint("digits/consistency") != results.fingerprint("digits/progressive")


def test_what_is_made_goes_through_training_and_evaluation(tmp_path, monkeypatch):
    """The whole way with both programs replaced by what they write."""
    calls = []

    def train(run, runs):
        calls.append(f"{run.experiment}/{run.name}")
        folder = run.folder(runs)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text('{"cpu_seconds": 1.0, "peak_memory_mib": 2.0}')

    def evaluate(command, check):
        out = tmp_path / "runs/digits/consistency/main/evaluate/book"
        out.mkdir(parents=True)
        (out / "grid.png").write_bytes(b"picture")
        report = {"images_seen": 3, "cpu_seconds": {}, "samples": 10, "sampler": None, "guidance": 1.0, "figures": {}, "verdict": {},
                  "kept": None, "files": {"grid": str(out / "grid.png")}}  # fmt: skip
        (out / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(results.Run, "train", train)
    monkeypatch.setattr(results.subprocess, "run", evaluate)
    monkeypatch.setattr(results, "environment", lambda argv: {"git": None, "versions": {}})
    made = results.result("digits/consistency", [0], tmp_path / "runs", tmp_path / "book" / "consistency")
    assert calls == ["digits/teacher/main", "digits/consistency/main"]
    assert made["picture"] == "consistency.png"
    assert (tmp_path / "book" / "consistency.png").read_bytes() == b"picture"
    assert made["kept"] is None
    assert made["runs"][0]["training"]["cpu_seconds"] == 1.0
    assert "CPU" in made["hardware"]
    assert str(tmp_path) not in json.dumps({**made, "runs": []})


def test_what_a_command_took():
    took = measured([sys.executable, "-c", "sum(range(3 * 10**7))"])
    assert 0 < took["cpu_seconds"] <= took["wall_seconds"] + 1
    assert took["peak_memory_mib"] > 1
    with pytest.raises(subprocess.CalledProcessError):
        measured([sys.executable, "-c", "raise SystemExit(3)"])
