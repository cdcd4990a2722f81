"""Mask-ratio laws and parallel decoding: counts, invariances, and a chain whose joint law is known exactly."""

import pytest
import torch
from chain import STATES, chain_law, frequencies, logits_of

from diffx import rng
from diffx.masking import (
    CosineRatio,
    ExpRatio,
    LogRatio,
    ParallelDecoding,
    PowerRatio,
    feathered,
    random_mask,
    shifted,
    touched,
)

MASK = 2


@pytest.mark.parametrize("law", [CosineRatio(), PowerRatio(1), PowerRatio(2), PowerRatio(3), LogRatio(), ExpRatio()])
def test_laws_fall_from_one_to_zero(law):
    r, n = torch.linspace(0, 1, 101), torch.full((101,), 256)
    share = law(r, n)
    assert share[0] == pytest.approx(1, abs=0.005) and share[-1] == pytest.approx(0, abs=1e-6)
    assert (share.diff() <= 0).all()


def test_every_row_hides_exactly_as_many_as_the_law_says():
    r = torch.linspace(0, 1, 1001, dtype=torch.float64)
    hidden = random_mask((torch.pi * r / 2).cos(), (4, 4)).flatten(1).sum(1)
    expected = [max(1, -int(-16 * float(torch.cos(torch.pi * x / 2)) // 1)) for x in r]
    assert hidden.tolist() == expected


def test_all_places_are_hidden_alike_often():
    share = random_mask(torch.full((8000,), 0.25), (4, 4)).float().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        (8, [251, 236, 212, 181, 142, 97, 49, 0]),
        (12, [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]),
    ],
)
def test_numbers_left_are_those_of_the_published_code(steps, left):
    mask = 10
    rounds = ParallelDecoding(steps).rounds(lambda ids: torch.randn(*ids.shape, 10), torch.full((2, 256), mask), mask)
    assert [(ids == mask).sum(1).tolist() for ids in rounds] == [[k, k] for k in left]


@pytest.mark.parametrize("steps", [1, 2, 8, 16, 40])
def test_nothing_stays_hidden_and_known_tokens_stay(steps):
    """More rounds than tokens, and rows with none, one or all hidden, included."""
    ids = torch.randint(0, MASK, (5, 4, 4))
    hidden = torch.rand(5, 4, 4) < 0.5
    hidden[0], hidden[1], hidden[2] = False, True, False
    hidden[2, 0, 0] = True
    done = ParallelDecoding(steps)(lambda x: torch.randn(*x.shape, MASK), ids.masked_fill(hidden, MASK), MASK)
    assert (done != MASK).all() and torch.equal(done[~hidden], ids[~hidden])


def test_without_noise_and_temperature_the_seed_is_silent():
    table = torch.randn(16, 5)
    walk = ParallelDecoding(4, noise=0.0, temperature=0.0)
    one, two = (walk(lambda x: table.expand(3, 16, 5), torch.full((3, 16), 5), 5, rng.sample_generators(s, 3)) for s in (0, 50))
    assert torch.equal(one, two)


def test_ties_do_not_change_the_counts():
    rounds = ParallelDecoding(8, noise=0.0, temperature=0.0).rounds(lambda x: torch.zeros(1, 256, 3), torch.full((1, 256), 3), 3)
    assert [(ids == 3).sum().item() for ids in rounds] == [251, 236, 212, 181, 142, 97, 49, 0]


def true_logits(ids):
    """Exact conditional law of each token given the known ones, by summing over all 64 states."""
    fits = ((ids[:, None] == STATES) | (ids[:, None] == MASK)).all(-1)
    return logits_of(fits * chain_law())


def empirical(steps, n=20_000, ratio=CosineRatio()):
    """Frequencies of the 64 states; the huge noise makes the order random."""
    walk = ParallelDecoding(steps, noise=1e6, ratio=ratio)
    ids = walk(true_logits, torch.full((n, 6), MASK), MASK, torch.Generator().manual_seed(0))
    return frequencies(ids)


def test_one_token_at_a_time_draws_the_exact_joint_law():
    """The two alternating states are expected 0.04 times: too rare for a z-value, so they are only bounded."""
    law, seen = chain_law(), empirical(6, ratio=PowerRatio(1))
    assert (seen - law).abs().sum() / 2 <= 0.02
    z = (seen - law) / (law * (1 - law) / 20_000).sqrt()
    rare = law * 20_000 < 0.1
    assert rare.sum() == 2 and z[~rare].abs().max() <= 5 and (seen[rare] * 20_000 <= 3).all()


def test_parallel_drawing_is_biased():
    law = chain_law()
    three, one = ((empirical(steps) - law).abs().sum() / 2 for steps in (3, 1))
    assert 0.05 < three < 0.2 and one > 0.5


@pytest.mark.parametrize("options", [{"steps": 0}, {"noise": -1.0}, {"temperature": -1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ParallelDecoding(**options)


def test_tokens_that_a_mask_touches_and_their_ring():
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., 5, 9] = 0.1  # any touch counts
    cells = touched(mask, (4, 8), ring=0)
    assert cells.nonzero().tolist() == [[0, 1, 2]]
    ring = touched(mask, (4, 8))
    assert ring.sum() == 9 and ring[0, 0:3, 1:4].all()


def test_a_feather_falls_off_outside_the_mask():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    soft = feathered(mask, 2)
    assert soft[0, 0, 4, 4] == 1 and (soft >= mask).all() and (soft[0, 0, 4].diff()[:4] >= 0).all() and 0 < soft[0, 0, 4, 2] < 1
    assert torch.equal(feathered(mask, 0), mask)


def test_a_moved_frame():
    x = torch.arange(1.0, 13).view(1, 1, 3, 4)
    moved, mask = shifted(x, (1, -2))
    assert torch.equal(moved[0, 0], torch.tensor([[0.0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]))
    assert torch.equal(mask[0, 0], (moved[0, 0] == 0).float())
    with pytest.raises(ValueError, match=r"by \(3, 0\) leaves nothing"):
        shifted(x, (3, 0))


def test_negative_borders_and_broken_steps():
    mask = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="ring is a number of tokens"):
        touched(mask, (4, 4), ring=-1)
    with pytest.raises(ValueError, match="a feather is a number of pixels"):
        feathered(mask, -1)
    with pytest.raises(ValueError, match=r"whole number of steps, at least 1, got steps=2\.5"):
        ParallelDecoding(2.5)
