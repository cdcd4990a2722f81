"""The harness measures what it says."""

import json

import pytest
import torch

from benchmarks import distillation, pages
from benchmarks.harness import Subject, compare, report, training_step


def test_twice_the_work_is_twice_the_operations_and_more_time(tmp_path, capsys):
    a = torch.randn(256, 256)
    outcome = compare([Subject("one", lambda: a @ a), Subject("eight", lambda: [a @ a for _ in range(8)], 5)], rounds=7)
    one, eight = outcome["results"]
    assert one["gflop"] == 2 * 256**3 / 1e9 and eight["gflop"] == 8 * one["gflop"]
    assert one["ratio"] == [1.0, 1.0, 1.0] and 4 < eight["ratio"][0] < 16
    report("matrices", outcome, tmp_path / "new" / "figures.json")
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["results"][1]["parameters"] == 5
    assert "eight" in capsys.readouterr().out


def test_a_training_step_trains():
    net = torch.nn.Linear(3, 1)
    before = net.weight.clone()
    subject = training_step("linear", net, lambda m: m(torch.ones(2, 3)).square().mean())
    subject.call()
    assert subject.parameters == 4 and not torch.equal(net.weight, before) and net.weight.grad is None


def test_a_program_fills_its_places_of_a_page_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n")
    for text in ("first", pages.table(["x", "y"], [["1", "2"]])):
        pages.fill("page.md", "a", text)
        pages.fill("page.md", "b", "other")
        assert page.read_text() == f"before\n<!-- a -->\n{text}\n<!-- /a -->\nbetween\n<!-- b -->\nother\n<!-- /b -->\nafter\n"
    assert text.splitlines() == ["| x | y |", "| --- | --- |", "| 1 | 2 |"]
    with pytest.raises(ValueError, match="no place between <!-- c -->"):
        pages.fill("page.md", "c", "")


def test_the_page_of_distillation_says_which_claims_are_missed():
    """Figures made up so that exactly one claim fails: by 64 % of the undistilled distance at 4 steps."""

    def rows(**changed):
        row = {"accuracy": 1.0, "frechet": 0.1, "nearest": 2.0, "rms": 0.1, "ratio": 0.1}
        return {k: {**row, **changed} for k in (*distillation.STEPS, distillation.REFERENCE)}

    undistilled, progressive = rows(frechet=1.0), rows()
    undistilled[64]["frechet"], progressive[4]["ratio"] = 0.1, 0.64
    first = {scale: {"error": 0.1, "missed": float("nan") if scale == 1 else 0.5, "frechet": 0.1} for scale in distillation.SCALES}
    found = {
        "teacher": {"undistilled": undistilled, "progressive": progressive, "consistency": rows()},
        "dit": {"undistilled": rows()},
        "guided": {scale: {"undistilled": rows(), "guided": rows()} for scale in distillation.SCALES},
        "first_stage": {"teacher": first},
        "seeds": {"dmd": {0: rows()[1]}},
    }
    missed = [text for text, value, bound in distillation.claims(found) if value > bound]
    assert missed == ["progressive, 4 steps: rms over undistilled"]
    page = distillation.page(found)
    assert page["claims"].count("**missed**") == 1 and page["first_stage"].count("–") == 1
    assert set(page) == {"claims", "teacher", "dit", "guided", "first_stage", "seeds"}
