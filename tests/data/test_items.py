"""Items read one by one: unreadable ones, labels, shapes."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch

from diffx.data import DataModule, Items


class Fragile(Items):
    """Item i is a picture of i; some cannot be read."""

    def __init__(self, n=20, broken=(), **options):
        super().__init__(**options)
        self.n, self.broken = n, set(broken)

    def __len__(self):
        return self.n

    def name(self, index):
        return f"item{index}"

    def item(self, index):
        if index in self.broken:
            raise OSError("cut short\nhere")
        return {"x": torch.full((1, 2, 2), index, dtype=torch.uint8), "label": index, "score": index / 2, "text": str(index)}


class Module(DataModule):
    def __init__(self, source, batch_size=3, **options):
        super().__init__(batch_size, **options)
        self.source = source

    def sources(self):
        return self.source, None


def first(module, n):
    return [batch["index"].tolist() for batch, _ in zip(module.train_dataloader(), range(n), strict=False)]


def test_stacking():
    batch = Fragile().fetch(np.array([3, 7]), 0)
    assert batch["x"].shape == (2, 1, 2, 2) and batch["x"].dtype == torch.uint8
    assert (batch["label"].dtype, batch["score"].dtype, batch["text"]) == (torch.int64, torch.float32, ["3", "7"])


def test_an_unreadable_item_stops_with_its_name_and_the_reason():
    with pytest.raises(ValueError, match=r"item4 cannot be read \(OSError: cut short here\); .* on_error='skip'"):
        Fragile(broken=[4]).fetch(np.arange(20), 0)


def test_a_skipped_item_is_replaced_by_the_next_readable_one():
    source = Fragile(broken=[4, 5, 19], on_error="skip", max_bad=0.5)
    batch = source.fetch(np.array([3, 4, 5, 19]), 0)
    assert batch["index"].tolist() == batch["label"].tolist() == batch["x"][:, 0, 0, 0].tolist() == [3, 6, 6, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_is_the_same_with_workers_and_from_the_middle(workers):
    def module(workers=0):
        return Module(Fragile(broken=[4, 11], on_error="skip", max_bad=0.2), num_workers=workers)

    whole = first(module(), 20)
    seen = list(chain.from_iterable(whole))
    assert len(seen) == 60 and seen.count(5) == seen.count(12) == 2 * 3 and not {4, 11} & set(seen)  # three epochs
    assert first(module(workers), 20) == whole
    late = module(workers)
    late.load_state_dict({"samples": 21})
    assert first(late, 13) == whole[7:]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_list_of_unreadable_items(tmp_path, workers):
    source = Fragile(broken=[4, 11], on_error="skip", max_bad=0.1)
    source.bad_list = tmp_path / "run" / "bad_files.txt"
    first(Module(source, num_workers=workers), 20)
    lines = set(source.bad_list.read_text().splitlines())  # two workers may note one item both: a set
    assert lines == {"item4\tOSError: cut short here", "item11\tOSError: cut short here"}


@pytest.mark.parametrize("listed", [True, False])
def test_too_many_unreadable_items_stop_the_run(tmp_path, listed):
    source = Fragile(broken=[1, 4, 11], on_error="skip", max_bad=0.1)
    source.bad_list = tmp_path / "bad_files.txt" if listed else None
    with pytest.raises(ValueError, match=r"3 of 20 items cannot be read.*max_bad=0.1"):
        source.fetch(np.arange(20), 0)


def test_processes_count_together_through_the_list(tmp_path):
    sources = [Fragile(broken=[1, 4, 11], on_error="skip", max_bad=0.1) for _ in range(2)]
    for source in sources:
        source.bad_list = tmp_path / "bad_files.txt"
    sources[0].fetch(np.array([1, 4]), 0)
    with pytest.raises(ValueError, match="3 of 20 items"):
        sources[1].fetch(np.array([11]), 0)


def test_nothing_readable():
    with pytest.raises(ValueError, match="none of the 3 items is readable"):
        Fragile(n=3, broken=range(3), on_error="skip", max_bad=1.0).fetch(np.array([0]), 0)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_label_out_of_range_is_never_skipped(on_error):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\), got 12 in item12; set classes=13"):
        Fragile(classes=10, on_error=on_error, max_bad=1.0).fetch(np.array([2, 12]), 0)


def test_errors_in_workers_reach_the_main_process():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
        first(Module(Fragile(classes=5), num_workers=2), 8)


def test_pictures_of_several_sizes_are_refused():
    class Growing(Fragile):
        def item(self, index):
            return {"x": torch.zeros(1, index + 1, 2)}

    with pytest.raises(ValueError, match=r"\(1, 1, 2\) in item0, \(1, 3, 2\) in item2; set size="):
        Growing().fetch(np.array([0, 2]), 0)


def test_any_default_generator_may_augment():
    class Random(Fragile):
        def item(self, index):
            return {"x": torch.tensor([torch.rand(()), np.random.rand(), random.random()])}

    one, again = (Random().fetch(np.arange(20), 1)["x"] for _ in range(2))
    assert torch.equal(one, again)
    assert torch.equal(one[[5, 2]], Random().fetch(np.array([5, 2]), 1)["x"]), "an item's draw depends on the item alone"
    assert not (one == Random().fetch(np.arange(20), 2)["x"]).any()


def test_unknown_policy():
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        Fragile(on_error="ignore")
