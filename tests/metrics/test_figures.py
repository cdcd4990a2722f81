from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from metrics.yardsticks import class_gaussian, class_means

from diffx.metrics import FIGURES, Claim, Evidence, Figure, measure
from diffx.metrics.figures import JUDGE_PIXELS

WANTED = torch.arange(1000) % 10
CLAIM = Claim.parse({"samples": 1000, "accuracy": ">= 0.95", "frechet": "<= 0.25", "nearest": "<= 2.4"})


class Unclipped:
    name = "unclipped"

    def __call__(self, x):
        return x.flatten(1)


@pytest.fixture(scope="module")
def evidence(digits):
    def make(samples, labels=WANTED):
        return Evidence(samples, digits.train, labels, digits.labels, digits.held_out, digits.held_out_labels)

    return make


def values(evidence):
    figures, skipped = measure(evidence)
    assert not skipped
    return {name: figure["value"] for name, figure in figures.items()}, figures


def missed(figures):
    return {name for name, entry in CLAIM.verdict(figures, 1000).items() if not entry["met"]}


def test_class_means_pass_the_judge_and_fail_frechet(digits, evidence):
    found, figures = values(evidence(class_means(digits, WANTED)))
    assert found["accuracy"] == 1.0
    assert found["frechet"] == pytest.approx(7.0, abs=0.3)
    assert found["recall"] < 0.02
    assert "frechet" in missed(figures)


def test_class_gaussians_are_caught_by_a_third_figure(digits, evidence):
    """Accuracy and (unclipped) Frechet are better than those of a trained network, without a picture; the nearest distance tells."""
    samples = class_gaussian(digits, WANTED)
    found, figures = values(evidence(samples))
    raw, _ = measure(replace(evidence(samples), features=Unclipped()), [f for f in FIGURES if f.on_features])
    assert found["accuracy"] >= 0.98
    assert raw["frechet_unclipped"]["value"] <= 0.15
    distance = torch.cdist(samples.flatten(1), digits.train.flatten(1)).min(1).values.median().item()
    assert distance == pytest.approx(2.62, abs=0.06)
    assert "frechet" in missed(figures)  # clipped, as every sample is, its moments no longer fit
    assert found["precision"] < figures["precision"]["held_out"] - 0.1


def test_copies_are_caught(digits, evidence):
    """Training digits themselves: perfect in all figures but the one that looks for copies."""
    rows = torch.cat([(digits.labels == c).nonzero()[:100, 0] for c in range(10)])
    found, figures = values(evidence(digits.train[rows], digits.labels[rows]))
    assert found["accuracy"] == 1.0
    assert found["frechet"] <= 0.25
    assert found["nearest"] == 0
    assert figures["nearest"]["copies"] == 1
    assert missed(figures) == {"nearest_floor"}


def test_noise_fails_everything(evidence):
    found, figures = values(evidence(torch.randn(1000, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)))
    assert found["accuracy"] == pytest.approx(0.1, abs=0.03)
    assert found["frechet"] > 30
    assert found["precision"] == 0
    assert missed(figures) == {"accuracy", "frechet", "nearest"}


def test_unseen_digits_look_real(digits, evidence):
    found, figures = values(evidence(digits.held_out, digits.held_out_labels))
    assert found["accuracy"] == figures["judge"]["value"] >= 0.97
    assert found["nearest"] == figures["nearest"]["held_out"] == pytest.approx(2.05, abs=0.06)
    assert found["frechet"] == pytest.approx(figures["frechet"]["held_out"])
    assert figures["frechet"]["floor"] > 0
    assert found["kid"] == pytest.approx(0, abs=0.01)
    assert min(found["precision"], found["recall"]) > 0.8
    assert figures["nearest"]["copies"] == 0


def test_the_floor_falls_with_the_count(digits, evidence):
    """What real digits score by chance at n = 300 and n = 1000 (.40 and .12 where all digits are the reference)."""
    frechet = [f for f in FIGURES if f.names == ("frechet",)]
    few, many = (measure(evidence(digits.train[:n], digits.labels[:n]), frechet)[0]["frechet"]["floor"] for n in (300, 1000))
    assert few == pytest.approx(0.40, abs=0.08)
    assert many == pytest.approx(0.12, abs=0.03)


def test_what_is_missing_is_skipped_with_a_reason(digits):
    figures, skipped = measure(Evidence(digits.held_out, digits.train))
    assert set(figures) == {"frechet", "kid", "precision", "recall", "nearest"}
    assert skipped == {
        "accuracy": "there are no labels and no train_labels",
        "judge": "there are no labels and no train_labels",
        "nearest_floor": "there are no held-out items",
    }
    figures, skipped = measure(Evidence(digits.held_out[:1], digits.train[:1]))
    assert set(figures) == {"nearest"}
    assert skipped["frechet"] == "needs at least 2 samples and training items, got 1"
    big = torch.zeros(6, JUDGE_PIXELS + 1)
    _, skipped = measure(Evidence(big, big, torch.arange(6), torch.arange(6)), FIGURES[:1])
    assert skipped["accuracy"] == f"the judge looks at pixels and takes at most 4096 numbers an item, got {JUDGE_PIXELS + 1}"


def test_names_carry_the_features(digits, evidence):
    class Net:
        def __init__(self, name):
            self.name = name

        def __call__(self, x):
            return x.flatten(1)[:, :20]

    on_features = [f for f in FIGURES if f.on_features]
    base = evidence(digits.held_out, digits.held_out_labels)
    assert set(measure(replace(base, features=Net("fid")), on_features)[0]) == {"fid", "kid_fid", "precision_fid", "recall_fid"}
    assert set(measure(replace(base, features=Net("cells")), on_features)[0]) == {
        f"{n}_cells" for n in ("frechet", "kid", "precision", "recall")
    }


def test_a_figure_of_ones_own(digits):
    ink = Figure(("ink",), lambda e: {"ink": {"value": e.samples.mean().item(), "bound": "<= 0"}})
    figures, _ = measure(Evidence(digits.held_out, digits.train), [*FIGURES, ink])
    assert figures["ink"]["value"] == pytest.approx(digits.held_out.mean().item())
    assert Claim({}).verdict(figures, 297)["ink"]["met"] is True


def test_errors(digits):
    broken = digits.held_out.clone()
    broken[3:5] = float("nan")
    with pytest.raises(ValueError, match="2 of 297 samples are not finite: the weights or the sampler have diverged"):
        measure(Evidence(broken, digits.train))
    with pytest.raises(ValueError, match=r"got \(1, 4, 4\) and \(1, 8, 8\)"):
        measure(Evidence(digits.held_out[..., :4, :4], digits.train))
