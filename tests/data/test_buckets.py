"""Aspect-ratio buckets: which sizes there are, where a picture goes, and in which order batches come."""

from __future__ import annotations

import logging
from itertools import islice

import numpy as np
import pytest

from diffx.data import BucketOrder, Buckets, Placed, equal_area_buckets, grid_buckets

# the published list, upright
NOVELAI = [(1024, 256), (1024, 320), (1024, 384), (960, 384), (896, 384), (832, 448), (768, 512), (704, 512), (640, 576)]
SMALL = [(64, 64), (48, 80), (80, 48)]


def placed(*counts):
    """So many pictures in each bucket, in a mixed order; all have the aspect of a square."""
    bucket = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return Placed(bucket, np.zeros(len(bucket)))


def epoch(order, number=0):
    """The global batches of an epoch: (bucket, ids)."""
    found = [order.at(step) for step in range(number * len(order), (number + 1) * len(order))]
    assert {e for e, _, _ in found} == {number}
    return [(bucket, ids) for _, bucket, ids in found]


def seen(batches):
    return np.concatenate([ids for _, ids in batches])


def test_grid_gives_the_published_list():
    assert sorted(grid_buckets()) == sorted({(512, 512), *NOVELAI, *((b, a) for a, b in NOVELAI)})
    assert len(grid_buckets()) == 19


@pytest.mark.parametrize(("area", "step", "count"), [(1024**2, 64, 9), (512**2, 16, 11), (48**2, 4, 11)])
def test_equal_area_sizes_have_their_area_and_come_in_pairs(area, step, count):
    sizes = equal_area_buckets(area, step=step)
    assert len(sizes) == len(set(sizes)) == count  # coarse steps round 3:4 and 4:5 to one size
    assert all(h % step == w % step == 0 and 0.9 < h * w / area < 1.1 for h, w in sizes)
    assert {(w, h) for h, w in sizes} == set(sizes)


def test_sizes_far_from_their_area_are_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        sizes = equal_area_buckets(3000, step=32, ratios=[1, 2])
    assert sizes == [(64, 64), (32, 64)] and "[(64, 64), (32, 64)]" in caplog.text
    assert all(abs(h * w / 3000 - 1) > 0.25 for h, w in sizes)


RATIOS = np.exp(np.linspace(0, np.log(4), 1001))


def plain(ratio, buckets):
    """NovelAI's rule: the smallest difference of the ratios themselves."""
    return np.abs(ratio[:, None] - np.exp(buckets.ratios)).argmin(1)


def test_upright_and_lying_pictures_are_treated_alike():
    buckets = Buckets(grid_buckets(), beyond="nearest")
    mirror = [buckets.sizes.index((w, h)) for h, w in buckets.sizes]
    lying = np.stack([np.full_like(RATIOS, 1000), 1000 * RATIOS], 1)

    def unequal(rule):
        return (np.take(mirror, rule(lying)) != rule(lying[:, ::-1])).mean()

    assert unequal(lambda sizes: buckets.place(sizes).bucket) == 0
    assert unequal(lambda sizes: plain(sizes[:, 1] / sizes[:, 0], buckets)) == pytest.approx(0.044, abs=5e-4)  # why logarithms
    for ratio, ours, theirs in ((1.24, (512, 704), (576, 640)), (0.60, (768, 512), (832, 448))):
        assert buckets[buckets.place(np.array([[1000.0, 1000 * ratio]])).bucket[0]] == ours
        assert buckets[plain(np.array([ratio]), buckets)[0]] == theirs


def test_of_equally_near_sizes_the_largest_then_the_first():
    buckets = Buckets([(32, 32), (64, 64), (80, 100), (100, 80)])
    assert buckets.place(np.array([[500, 500]])).bucket == [1]
    assert Buckets([(80, 100), (100, 80)]).place(np.array([[500, 500]])).bucket == [0]


def test_what_fits_no_bucket(caplog):
    sizes = np.array([[100, 100], [100, 300], [300, 100], [100, 105]])
    with caplog.at_level(logging.WARNING):
        assert Buckets(SMALL).place(sizes, "picture {}".format).bucket.tolist() == [0, -1, -1, 0]
    assert "2 of 4 pictures are left out: their aspect fits no bucket; the first is picture 1" in caplog.text
    assert Buckets(SMALL, beyond="nearest").place(sizes).bucket.tolist() == [0, 1, 2, 0]
    assert Buckets(SMALL, max_log_error=0.6).place(sizes).bucket.tolist() == [0, 1, 2, 0]  # ln 3 - ln 5/3 = 0.588
    with pytest.raises(ValueError, match=r"2 pictures fit no bucket .*=0.25, the first is picture 1, \[100, 300\]"):
        Buckets(SMALL, beyond="error").place(sizes, "picture {}".format)


def test_small_pictures(caplog):
    sizes, shapes = np.array([[100, 100], [40, 40], [20, 20]]), [(64, 64), (32, 32)]
    with caplog.at_level(logging.WARNING):
        assert Buckets(shapes).place(sizes).bucket.tolist() == [0, 0, 0]
    assert "2 of 3 pictures are enlarged to their bucket; the first is 1" in caplog.text
    assert Buckets(shapes, small="drop").place(sizes).bucket.tolist() == [0, -1, -1]
    assert Buckets(shapes, small="smaller").place(sizes).bucket.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("leftover", "batches", "shown", "repeats"), [("pad", 144, 1140, 12), ("drop", 142, 1136, 0)])
def test_epochs_are_as_complete_as_the_policy_says(leftover, batches, shown, repeats):
    order = BucketOrder(Buckets(SMALL, leftover=leftover), placed(1000, 137, 3), batch_size=4, slices=2)
    ids = seen(epoch(order))
    assert len(order) == batches and len(np.unique(ids)) == shown and len(ids) - shown == repeats
    if leftover == "drop":
        assert len(np.unique(np.concatenate([seen(epoch(order, number)) for number in range(4)]))) == 1137, "3 pictures fill no batch ever"


def test_leftovers_may_join_another_bucket():
    sizes = np.concatenate([np.full((21, 2), 100), [[100, width] for width in range(150, 161)], [[200, 120]] * 5])
    buckets = Buckets([(64, 64), (48, 80), (80, 48), (40, 90)], leftover="merge")
    where = buckets.place(sizes)
    assert np.bincount(where.bucket).tolist() == [21, 11, 5]
    order = BucketOrder(buckets, where, batch_size=4)
    assert np.bincount(order.bucket).tolist() == [25, 8, 4]  # one of 5 and three of 11 go where the nearest aspect is; 25 is padded
    assert np.flatnonzero(order.bucket != where.bucket).tolist() == [21, 22, 23, 32], "those nearest to a square"
    square = BucketOrder(Buckets(buckets.sizes, leftover="square"), where, batch_size=4)
    assert np.bincount(square.bucket).tolist() == [25, 8, 4]
    assert sorted(set(seen(epoch(order)).tolist())) == list(range(37))


def test_a_step_has_one_bucket_and_ranks_share_it_out():
    order = BucketOrder(Buckets(SMALL), placed(50, 33, 21), batch_size=3, slices=4, seed=5)
    ranks = [list(islice(order.stream(0, rank, 2), 2 * len(order))) for rank in range(2)]  # two micro-batches a step
    for step in range(len(order)):
        pieces = [ranks[rank][2 * step + micro][0][1] for micro in range(2) for rank in range(2)]
        assert [len(piece) for piece in pieces] == [3] * 4
        assert len({int(order.bucket[i]) for piece in pieces for i in piece}) == 1
    assert sorted(set(np.concatenate([piece for rank in ranks for [(_, piece)] in rank]).tolist())) == list(range(104))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (4, 1), (2, 2)])
def test_ranks_and_micro_batches_are_the_same_slices(world, accumulate):
    order = BucketOrder(Buckets(SMALL), placed(50, 33, 21), batch_size=3, slices=4)
    alone = [request[0][1].tolist() for request in islice(order.stream(0), 40)]
    ranks = [order.stream(0, rank, world) for rank in range(world)]
    dealt = [next(rank)[0][1].tolist() for _ in range(10 * accumulate) for rank in ranks]
    assert dealt == alone


def test_order_is_a_function_of_seed_and_epoch():
    def made(seed=0, slices=2):
        return BucketOrder(Buckets(SMALL), placed(50, 33, 21), batch_size=3, slices=slices, seed=seed)

    order = made()
    late = seen(epoch(order, 3)).tolist()
    assert seen(epoch(made(), 3)).tolist() == late, "whatever was asked for before"
    assert seen(epoch(order, 0)).tolist() != late != seen(epoch(made(seed=1), 3)).tolist()
    assert made().fingerprint == order.fingerprint
    assert len({order.fingerprint, made(seed=1).fingerprint, made(slices=3).fingerprint}) == 3
    assert len({bucket for bucket, _ in epoch(order)[:6]}) > 1, "buckets are mixed"


def test_steps_and_samples_count_each_other():
    """With a budget, a bucket of larger pictures has smaller batches."""
    order = BucketOrder(Buckets([(64, 64), (32, 32)], pixels_per_batch=3 * 4096 + 5), placed(50, 50), batch_size=99, slices=2)
    assert order.batch_sizes == [3, 12]
    sizes = [len(order.at(step)[2]) for step in range(2 * len(order))]
    assert set(sizes) == {6, 24}
    for step in range(2 * len(order)):
        assert order.samples(step) == sum(sizes[:step])
        assert order.step_at(order.samples(step)) == order.step_at(order.samples(step) + sizes[step] - 1) == step


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Buckets([]), "each once, of at least one pixel"),
        (lambda: Buckets([(8, 8), (8, 8)]), "each once"),
        (lambda: Buckets([(8, 0)]), "at least one pixel"),
        (lambda: Buckets(SMALL, leftover="loop"), "leftover must be one of .* got 'loop'"),
        (lambda: Buckets(SMALL, beyond="crop"), "beyond must be one of"),
        (lambda: Buckets(SMALL, small="grow"), "small must be one of"),
        (lambda: Buckets(SMALL, pixels_per_batch=4000), "largest size, 4096 pixels; got 4000"),
        (lambda: Buckets(SMALL).place(np.array([[5, 5], [7, 0]]), "picture {}".format), r"picture 1 has a side of zero pixels: \[7, 0\]"),
        (lambda: BucketOrder(Buckets(SMALL, leftover="drop"), placed(3, 2), 4), "no bucket has the 4 or more .*5 pictures in all, 5 of"),
        (lambda: BucketOrder(Buckets(SMALL), Placed(np.array([-1]), np.zeros(1)), 4), "1 pictures in all, 0 of them in buckets"),
        (lambda: grid_buckets(step=48), "step must divide"),
        (lambda: grid_buckets(area=1000), "no size with sides from 256 to 1024"),
        (lambda: equal_area_buckets(256, step=64), r"256 pixels are too few .*\(0, 0\)"),
        (lambda: equal_area_buckets(ratios=[0]), "must be positive"),
    ],
)
def test_errors(made, words):
    with pytest.raises(ValueError, match=words):
        made()
