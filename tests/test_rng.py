"""Keyed randomness: slices are parts of one global batch, samples are their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffx import rng


def test_keys_are_stable_and_distinct():
    parts = [(0, "noise", 1, 0), (0, "noise", 0, 1), (0, "drop", 1, 0), (1, "noise", 1, 0), (0, "noise", 11, 0), (0, "noise", 1, 10)]
    keys = [rng.key(*p) for p in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= k < 2**63 for k in keys)
    code = "from diffx import rng; print(rng.key(0, 'noise', 1, 0))"
    env = {"PYTHONPATH": str(Path(rng.__file__).parents[1]), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(other.stdout) == keys[0]


def test_a_generator_is_a_function_of_its_key():
    a, b, c = (torch.rand(4, generator=rng.generator(*k)) for k in ((1, "x"), (1, "x"), (2, "x")))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_seeding_the_default_generator_repeats_everything_after_it():
    draws = []
    for _ in range(2):
        rng.seed_default(3, "step", 5)
        draws.append((torch.rand(3), torch.randn(2), torch.nn.functional.dropout(torch.ones(20), 0.5)))
        torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_a_fork_gives_the_callers_state_back():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    first = torch.rand(2)
    with rng.forked(1, "validation"):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    with rng.forked(1, "validation"):
        assert torch.equal(torch.rand(3), inside)


@pytest.mark.parametrize("draw", [rng.randn, rng.rand])
def test_a_sample_depends_on_its_own_generator_alone(draw):
    batch = draw((4, 3, 5), rng.sample_generators(7, 4))
    for i in range(4):
        assert torch.equal(draw((1, 3, 5), rng.sample_generators(7, 1, i))[0], batch[i])
        assert torch.equal(draw((3, 5), torch.Generator().manual_seed(7 + i)), batch[i])
    parts = [draw((2, 3, 5), rng.sample_generators(7, 2, start)) for start in (0, 2)]
    assert torch.equal(torch.cat(parts), batch)


def test_strides_lead_to_other_noise():
    """A CPU generator forgets all but the last 32 bits of its seed, so large round distances would not do."""
    seeds = [(start + k * rng.STRIDE) % 2**32 for k in range(64) for start in (0, 100_000)]
    assert min(b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) >= 100_000
    first, second = (torch.randn(8, generator=rng.sample_generators(7 + k * rng.STRIDE, 1)[0]) for k in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.randn(8, generator=rng.sample_generators(7 + 2**32, 1)[0]))


def test_draws_follow_the_type_asked_for():
    for generator in (None, rng.generator(0), rng.sample_generators(0, 2)):
        assert rng.randn((2, 3), generator, dtype=torch.float64).dtype == torch.float64
        assert rng.rand((2, 3), generator).shape == (2, 3)
    torch.manual_seed(0)
    a = rng.randn((2, 3))
    torch.manual_seed(0)
    assert torch.equal(a, torch.randn(2, 3))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_slices_are_parts_of_one_global_batch(count):
    whole = rng.stratified(32, generator=rng.generator("step", 3))
    parts = [rng.stratified(32 // count, slice=(i, count), generator=rng.generator("step", 3)) for i in range(count)]
    assert torch.equal(torch.cat(parts), whole)


def test_strata_are_each_hit_once_and_dealt_out():
    u = torch.cat([rng.stratified(16, slice=(i, 4), generator=rng.generator("step", 9)) for i in range(4)])
    assert (u * 64).long().sort().values.tolist() == list(range(64))
    assert (u > 0).all() and (u < 1).all()
    rows = torch.stack([rng.stratified(8, generator=rng.generator("step", s)) for s in range(2000)])
    assert (rows.mean(0) - 0.5).abs().max() < 0.03  # no row is tied to a level
    assert rows.mean(1).std() < 0.5 * (1 / 12) ** 0.5 / 8**0.5


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        rng.stratified(4, slice=(2, 2), generator=rng.generator(0))
    with pytest.raises(ValueError, match="seeded alike"):
        rng.stratified(4, slice=(0, 2))
    with pytest.raises(ValueError, match="got 3 generators for a batch of 4"):
        rng.randn((4, 2), rng.sample_generators(0, 3))


def test_permutations_are_keyed():
    assert torch.equal(rng.permutation(10, 0, "epoch", 1), rng.permutation(10, 0, "epoch", 1))
    assert not torch.equal(rng.permutation(10, 0, "epoch", 1), rng.permutation(10, 0, "epoch", 2))
    assert rng.permutation(10, 0).sort().values.tolist() == list(range(10))
