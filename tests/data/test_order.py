"""The order of the data is a pure function of (seed, samples consumed)."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from diffx.data import Order, shard, split, stream


def flat(request):
    return [(epoch, index) for epoch, indices in request for index in indices.tolist()]


def global_batches(n, steps, batch_size, world, accumulate, start=0):
    """Optimizer steps as the lists of (epoch, index) that all ranks and micro-batches see, in the order of their slices."""
    ranks = [stream(Order(n, seed=3), start, batch_size, rank, world) for rank in range(world)]
    return [[item for _ in range(accumulate) for rank in ranks for item in flat(next(rank))] for _ in range(steps)]


@pytest.mark.parametrize(("world", "accumulate", "batch_size"), [(1, 12, 1), (2, 1, 6), (1, 2, 6), (3, 2, 2), (4, 3, 1), (2, 3, 2)])
def test_ranks_and_micro_batches_share_one_global_order(world, accumulate, batch_size):
    assert global_batches(29, 7, batch_size, world, accumulate) == global_batches(29, 7, 12, 1, 1)


def test_formula_of_the_slices():
    n, batch_size, world, accumulate, order = 50, 3, 2, 4, Order(50, 1)
    flat_order = np.concatenate([order.permutation(epoch) for epoch in range(5)])
    for rank in range(world):
        for m, request in enumerate(islice(stream(order, 0, batch_size, rank, world), 40)):
            step, micro = divmod(m, accumulate)
            start = (step * world * accumulate + micro * world + rank) * batch_size
            assert [index for _, index in flat(request)] == flat_order[start : start + batch_size].tolist()
            assert {epoch for epoch, _ in flat(request)} == {start // n, (start + batch_size - 1) // n}


@pytest.mark.parametrize("start", [0, 1, 28, 29, 30, 87, 12 * 29])
def test_resuming_at_any_sample_continues_the_stream(start):
    whole = [item for batch in global_batches(29, 50, 12, 1, 1) for item in batch]
    rest = [item for batch in global_batches(29, 5, 4, 2, 1, start=start) for item in batch]
    assert rest == whole[start : start + 40]


def test_each_epoch_holds_each_index_once_and_epochs_differ():
    items = [item for batch in global_batches(29, 29, 4, 1, 1) for item in batch]  # 116 = 4 x 29
    orders = [[index for e, index in items if e == epoch] for epoch in range(4)]
    assert all(sorted(order) == list(range(29)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert Order(29, 3).permutation(0).tolist() != Order(29, 4).permutation(0).tolist()


def test_a_batch_does_not_alias_the_permutation():
    order = Order(10)
    before = order.permutation(0).copy()
    order.at(0, 5)[0][1][:] = -1
    assert (order.permutation(0) == before).all()


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 29, 64, 65, 297])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_validation_covers_each_item_once_over_the_ranks(n, world, batch_size):
    shards = [shard(n, batch_size, rank, world) for rank in range(world)]
    seen = Counter(index for requests in shards for request in requests for _, index in flat(request))
    assert set(seen) == set(range(n))
    assert all(1 <= len(flat(request)) <= batch_size for requests in shards for request in requests)
    assert len({len(requests) for requests in shards}) == 1, "a sharded network needs the same number of batches on all ranks"
    if batch_size > 1 and n >= world:
        assert seen == Counter(range(n))
    else:
        assert sum(seen.values()) <= n + world - 1  # those that fill up


@pytest.mark.parametrize(("n", "fraction", "held"), [(10, 0.0, 0), (10, 0.3, 3), (1000, 0.05, 50), (10, 0.001, 1), (1, 0.5, 0)])
def test_split_parts_without_overlap(n, fraction, held):
    train, val = split(n, fraction)
    assert len(val) == held
    assert sorted([*train, *val]) == list(range(n))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2])
def test_split_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        split(10, fraction)
