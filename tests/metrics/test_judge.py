from __future__ import annotations

import pytest
import torch
from metrics.yardsticks import split_digits

from diffx import rng
from diffx.metrics import ClassJudge


@pytest.mark.parametrize("seed", range(4))
def test_right_on_unseen_digits(seed):
    split = split_digits(seed)
    judge = ClassJudge().fit(split.train, split.labels)
    assert judge.accuracy(split.held_out, split.held_out_labels) >= 0.97
    assert judge.trained_on == 1500


def test_knows_nothing_from_random_labels(digits):
    shuffled = digits.labels[rng.permutation(1500, "shuffle")]
    assert ClassJudge().fit(digits.train, shuffled).accuracy(digits.held_out, digits.held_out_labels) < 0.2
    assert ClassJudge().cross_accuracy(digits.train, shuffled) == pytest.approx(0.1, abs=0.03)


def test_noise_and_random_requests_score_chance(digits):
    judge = ClassJudge().fit(digits.train, digits.labels)
    wanted = torch.arange(1000) % 10
    noise = torch.randn(1000, 1, 8, 8, generator=rng.generator("noise")).clamp(-1, 1)
    assert judge.accuracy(noise, wanted) == pytest.approx(0.1, abs=0.03)
    wrong = (digits.labels + 1) % 10
    assert judge.accuracy(digits.held_out, (digits.held_out_labels + 1) % 10) < 0.03
    assert judge.accuracy(digits.train, wrong) == 0


def test_cross_validation_is_honest(digits):
    """A judge that may see what it judges is perfect here; cross-validation is not, and agrees with the held-out digits."""
    judge = ClassJudge().fit(digits.train, digits.labels)
    crossed = judge.cross_accuracy(digits.train, digits.labels)
    assert judge.accuracy(digits.train, digits.labels) == 1.0
    assert 0.97 <= crossed < 1.0
    assert crossed == pytest.approx(judge.accuracy(digits.held_out, digits.held_out_labels), abs=0.02)


def test_limit_and_errors(digits):
    assert ClassJudge(limit=200).fit(digits.train, digits.labels).trained_on == 200
    with pytest.raises(RuntimeError, match="call fit"):
        ClassJudge().accuracy(digits.train, digits.labels)
    with pytest.raises(ValueError, match="at least two classes, got the labels \\[3\\]"):
        ClassJudge().fit(digits.train[:5], torch.full((5,), 3))
    with pytest.raises(ValueError, match="got 5 items and labels of shape \\(4,\\)"):
        ClassJudge().fit(digits.train[:5], digits.labels[:4])
    with pytest.raises(ValueError, match=r"folds must lie in \[2, 3\] for 3 items"):
        ClassJudge().cross_accuracy(digits.train[:3], digits.labels[:3])
