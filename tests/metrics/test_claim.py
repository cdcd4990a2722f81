from __future__ import annotations

import pytest

from diffx.metrics import Bound, Claim

KNOWN = {"accuracy", "frechet", "nearest", "nearest_floor"}


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("<= 0.25", 0.25, True),
        ("<= 0.25", 0.2501, False),
        ("< 0.25", 0.25, False),
        (">= .95", 0.95, True),
        (">1e-3", 0.001, False),
        ("> -2", -1.9, True),
        (">= 0.8, <= 2.3", 2.0, True),
        (">= 0.8, <= 2.3", 2.4, False),
        ("<= 1", float("nan"), False),
        (">= 1", float("nan"), False),
    ],
)
def test_bounds(text, value, met):
    assert all(bound.met(value) for bound in Bound.parse(text)) is met


@pytest.mark.parametrize("text", ["0.95", "=< 1", "<= one", "<= ", "", "<= 1,", "<= 1 2", 0.95, None, ["<= 1"], True])
def test_unreadable_bounds(text):
    with pytest.raises(ValueError, match=r'such as "<= 0\.25"'):
        Bound.parse(text)


def test_the_claim_of_an_experiment():
    claim = Claim.parse({"samples": 1000, "accuracy": ">= 0.95", "frechet": "<= 0.25"}, KNOWN)
    assert claim.samples == 1000
    assert {name: str(*bounds) for name, bounds in claim.bounds.items()} == {"accuracy": ">= 0.95", "frechet": "<= 0.25"}


def test_all_errors_at_once():
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the lines are compared below)
        Claim.parse({"samples": 0, "acuracy": ">= 0.95", "frechet": 0.25, "beauty": "> 1"}, KNOWN)
    lines = str(error.value).splitlines()
    assert lines[0] == "claim.samples: must be a whole number of samples, at least 1, got 0"
    assert lines[1] == "claim.acuracy: no such figure; did you mean 'accuracy'?"
    assert lines[2].startswith("claim.frechet: must be a bound") and lines[2].endswith("got 0.25")
    assert lines[3] == "claim.beauty: no such figure; there are ['accuracy', 'frechet', 'nearest', 'nearest_floor']"
    with pytest.raises(ValueError, match="must map figures to bounds"):
        Claim.parse(">= 0.95")


def test_verdict():
    claim = Claim.parse({"samples": 100, "accuracy": ">= 0.95", "frechet": "<= 0.25", "nearest": "<= 2"})
    figures = {"accuracy": {"value": 0.97}, "frechet": {"value": 0.3, "floor": 0.1}}
    verdict = claim.verdict(figures, 100, {"nearest": "there is no data"})
    assert {name: entry["met"] for name, entry in verdict.items()} == {"accuracy": True, "frechet": False, "nearest": None}
    assert verdict["nearest"]["reason"] == "not measured: there is no data"
    assert claim.kept(verdict) is False
    verdict["frechet"]["met"] = True
    assert claim.kept(verdict) is None
    verdict["nearest"]["met"] = True
    assert claim.kept(verdict) is True


def test_another_number_of_samples_gives_no_verdict():
    claim = Claim.parse({"samples": 1000, "frechet": "<= 0.25"})
    verdict = claim.verdict({"frechet": {"value": 0.1}}, 300)
    assert verdict["frechet"] == {"value": 0.1, "bound": "<= 0.25", "met": None, "reason": "claimed for 1000 samples, measured on 300"}
    assert claim.kept(verdict) is None


def test_a_figures_own_bound():
    figures = {"nearest": {"value": 1.5}, "nearest_floor": {"value": 1.5, "bound": ">= 1.9"}}
    claim = Claim.parse({"samples": 1000, "nearest": "<= 2.4"})
    verdict = claim.verdict(figures, 1000)
    assert (verdict["nearest"]["met"], verdict["nearest_floor"]["met"], claim.kept(verdict)) == (True, False, False)
    milder = Claim.parse({"nearest": "<= 2.4", "nearest_floor": ">= 1.4"})
    assert milder.kept(milder.verdict(figures, 10)) is True
    nothing = Claim({})
    assert nothing.kept(nothing.verdict(figures, 10)) is None
