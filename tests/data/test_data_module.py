"""The base DataModule under a real Trainer: resume, ranks, workers, normalisation, refusals."""

from __future__ import annotations

import ast
from contextlib import nullcontext
from multiprocessing import active_children
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

import diffx.data
from diffx.data import Arrays, DataModule, Digits, Items, normalise


class Recorder(L.LightningModule):
    """Learns nothing; remembers what it was shown."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.val_seen, self.stop_after = [], [], stop_after

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["index"].tolist(), batch["x"].clone()))
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        return self.weight * batch["x"].mean()

    def validation_step(self, batch, batch_idx):
        assert batch["x"].dtype == torch.float32
        self.val_seen += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Squares(Items):
    """11 items of random uint8 noise: the augmentation is nothing else."""

    def __len__(self):
        return 11

    def name(self, index):
        return f"square {index}"

    def item(self, index):
        noise = torch.randint(0, 200, (1, 4, 4), dtype=torch.uint8) + np.random.randint(50)
        return {"x": noise.to(torch.uint8), "label": index % 3, "text": f"number {index}"}


class Noise(DataModule):
    def __init__(self, batch_size=2, **options):
        super().__init__(batch_size, **options)

    def sources(self):
        return Squares(seed=self.seed, classes=3), Squares(seed=self.seed)


def trainer(tmp_path, **options):
    quiet = dict(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, val_check_interval=1000, check_val_every_n_epoch=None,
    )  # fmt: skip
    return L.Trainer(**{**quiet, **options})


def fitted(tmp_path, data, *, ckpt_path=None, **options):
    module = Recorder()
    trainer(tmp_path, **options).fit(module, data, ckpt_path=ckpt_path)
    return module


def same(one, other):
    return [i for i, _ in one] == [i for i, _ in other] and all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_killed_and_resumed_sees_the_same_batches(tmp_path, workers, accumulate):
    whole = fitted(tmp_path, Noise(num_workers=workers), max_steps=9, accumulate_grad_batches=accumulate).seen
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    killed = trainer(tmp_path, max_steps=9, accumulate_grad_batches=accumulate, callbacks=[saving], enable_checkpointing=True)
    with pytest.raises(KeyError, match="killed"):
        killed.fit(Recorder(stop_after=4 * accumulate + 1), Noise(num_workers=workers))
    (checkpoint,) = (tmp_path / "saved").glob("*step=4.ckpt")
    assert torch.load(checkpoint, weights_only=True)["Noise"] == {"samples": 4 * accumulate * 2}  # not what workers had read ahead
    resumed = fitted(tmp_path, Noise(num_workers=workers), max_steps=9, accumulate_grad_batches=accumulate, ckpt_path=checkpoint).seen
    assert len(resumed) == 5 * accumulate
    assert same(resumed, whole[4 * accumulate :])


def test_another_global_batch_keeps_the_position_in_samples(tmp_path):
    first = trainer(tmp_path, max_steps=5)
    first.fit(Recorder(), Noise(batch_size=2))
    first.save_checkpoint(tmp_path / "five.ckpt")
    data = Noise(batch_size=1)
    resumed = fitted(tmp_path, data, max_steps=8, accumulate_grad_batches=3, ckpt_path=tmp_path / "five.ckpt").seen
    whole = fitted(tmp_path, Noise(batch_size=1), max_steps=19).seen
    assert same(resumed, whole[10:19])
    assert data.state_dict() == {"samples": 19}


def test_fitting_on_continues_and_a_new_trainer_starts_anew(tmp_path):
    data, going = Noise(), trainer(tmp_path, max_steps=3)
    module = Recorder()
    going.fit(module, data)
    going.fit_loop.epoch_loop.max_steps = 7
    going.fit(module, data)
    assert same(module.seen, fitted(tmp_path, data, max_steps=7).seen)


def test_counted_epochs_do_not_repeat_or_lose_samples(tmp_path):
    """limit_train_batches makes Lightning ask for a new iterator every few batches, with some already read ahead."""
    options = dict(limit_train_batches=4, max_epochs=3, check_val_every_n_epoch=1, val_check_interval=1.0, accumulate_grad_batches=2)
    for workers in (0, 2):
        counted = fitted(tmp_path, Noise(num_workers=workers), **options)
        assert same(counted.seen, fitted(tmp_path, Noise(), max_steps=12).seen)
        assert counted.val_seen == [*range(11)] * 3


@pytest.mark.parametrize("dies", [False, True])
def test_workers_stop_with_the_run(tmp_path, dies):
    before = set(active_children())
    running, module = trainer(tmp_path, max_steps=2, val_check_interval=2), Recorder(stop_after=1 if dies else None)
    with pytest.raises(KeyError) if dies else nullcontext():
        running.fit(module, Noise(num_workers=2))
    assert set(active_children()) <= before


def test_workers_change_nothing():
    one, two = (iter(Noise(batch_size=4, num_workers=workers).train_dataloader()) for workers in (0, 2))
    for _ in range(8):  # 32 of 11 items: nearly three epochs
        a, b = next(one), next(two)
        assert a.keys() == b.keys() == {"x", "label", "text", "index"}
        assert all(torch.equal(a[k], b[k]) for k in ("x", "label", "index"))
        assert a["text"] == b["text"] == [f"number {i}" for i in a["index"].tolist()]
        assert a["label"].tolist() == [i % 3 for i in a["index"].tolist()]


def test_augmentation_differs_between_epochs_and_seeds():
    def first_epochs(seed):
        batches = iter(Noise(batch_size=11, seed=seed).train_dataloader())
        return [batch["x"][batch["index"].argsort()] for batch in (next(batches), next(batches))]

    (a, b), (c, _) = first_epochs(0), first_epochs(1)
    for one, other in ((a, b), (a, c)):
        assert not any(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_reading_leaves_the_default_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    for workers in (0, 2):
        torch.manual_seed(5)
        np.random.seed(5)
        next(iter(Noise(num_workers=workers).train_dataloader()))
        assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


def test_uint8_becomes_floats_in_minus_one_to_one(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8)
    x = normalise(levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x.diff(), torch.full((255,), 2 / 255), rtol=0, atol=1e-6)
    seen = fitted(tmp_path, Noise(), max_steps=1).seen
    raw = next(iter(Noise().train_dataloader()))
    assert raw["x"].dtype == torch.uint8 and torch.equal(normalise(raw["x"]), seen[0][1])


@pytest.mark.parametrize("bad", [1.5, -2.0, float("nan")])
def test_float_data_outside_the_range_stops_at_the_first_batch(tmp_path, bad):
    images = np.zeros((8, 1, 4, 4), dtype=np.float32)
    images[3, 0, 1, 2] = bad
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got .*scale it"):
        fitted(tmp_path, Arrays({"images": images}, 8), max_steps=1)


def test_float_data_that_looks_scaled_to_zero_one_is_warned_about(tmp_path):
    images = np.linspace(0, 1, 8 * 16, dtype=np.float32).reshape(8, 1, 4, 4)
    with pytest.warns(UserWarning, match=r"2 x - 1"):
        fitted(tmp_path, Arrays({"images": images}, 8), max_steps=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(max_epochs=3), r"max_epochs=3 never ends .* max_steps=16 \(one pass over the data is 5.5 steps\)"),
        (dict(max_steps=4, limit_train_batches=0.5), "fraction of an endless stream"),
        (dict(max_steps=4, val_check_interval=0.5, check_val_every_n_epoch=1), "val_check_interval=0.5"),
        (dict(max_steps=4, overfit_batches=2), "overfit_batches"),
        (dict(max_epochs=1, limit_train_batches=5, accumulate_grad_batches=2), "multiple of accumulate_grad_batches=2"),
        (dict(max_steps=4, callbacks=[GradientAccumulationScheduler({0: 1, 4: 2})]), "GradientAccumulationScheduler"),
        (dict(max_steps=4, accumulate_grad_batches=6), "global batch of 12 .* training set of 11"),
    ],
)
def test_settings_that_mean_nothing_on_a_stream_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        fitted(tmp_path, Noise(), **options)


def test_validation_that_would_never_run_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="val_check_interval"):
        assert fitted(tmp_path, Noise(), max_steps=2, val_check_interval=1.0, check_val_every_n_epoch=1).val_seen == []


@pytest.mark.parametrize("options", [dict(fast_dev_run=True), dict(max_steps=2, val_check_interval=1), dict(max_time={"seconds": 0})])
def test_settings_that_are_fine(tmp_path, options):
    module = fitted(tmp_path, Noise(), **options)
    assert len(module.val_seen) in (2, 22, 0)


def test_a_module_without_validation_trains(tmp_path):
    data = Arrays({"images": np.zeros((8, 4, 4), dtype=np.uint8)}, 2)
    assert data.val is None and data.val_dataloader() == []
    assert len(fitted(tmp_path, data, max_steps=3, val_check_interval=1).seen) == 3


@pytest.mark.parametrize(("train", "val", "words"), [([1, 1], [], "training data set of Arrays is empty"), ([0, 0], [], None)])
def test_an_empty_data_set_is_refused(tmp_path, train, val, words):
    data = Arrays({"images": np.zeros((2, 4, 4), dtype=np.uint8), "split": np.array(train + val)}, 1, split="split")
    if words is None:
        data.setup("fit")
    else:
        with pytest.raises(ValueError, match=words):
            data.setup("fit")


@pytest.mark.parametrize("options", [dict(batch_size=0), dict(batch_size=2, num_workers=-1)])
def test_sizes_must_be_positive(options):
    with pytest.raises(ValueError, match="batch_size must be >= 1 and num_workers >= 0"):
        Noise(**options)


def test_two_ranks_read_what_one_rank_accumulates(tmp_path, monkeypatch):
    alone = [index for index, _ in fitted(tmp_path, Noise(), max_steps=4, accumulate_grad_batches=2).seen]
    per_rank = []
    for rank in range(2):
        data = Noise()
        with monkeypatch.context() as patch:
            patch.setattr(L.Trainer, "distributed_sampler_kwargs", {"rank": rank, "num_replicas": 2})
            per_rank.append([index for index, _ in fitted(tmp_path, data, max_steps=4).seen])
            assert data.global_batch == 4 and data.state_dict() == {"samples": 16}
            assert [b["index"].tolist() for b in data.val_dataloader()] == ([[0, 2], [4, 6], [8, 10]], [[1, 3], [5, 7], [9]])[rank]
    assert [index for pair in zip(*per_rank, strict=True) for index in pair] == alone


def test_validation_needs_an_item_for_each_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(L.Trainer, "distributed_sampler_kwargs", {"rank": 0, "num_replicas": 12})
    with pytest.raises(ValueError, match="11 items for 12 ranks"):
        fitted(tmp_path, Noise(batch_size=1), max_steps=1)


def test_digits():
    data = Digits(64)
    assert (data.shape, data.classes, data.class_names) == ((1, 8, 8), 10, tuple("0123456789"))
    assert (len(data.train), len(data.val)) == (1500, 297)
    parts = [part.fetch(np.arange(len(part)), 0) for part in (data.train, data.val)]
    x, label = (torch.cat([part[name] for part in parts]) for name in ("x", "label"))
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1) and label.dtype == torch.int64
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert sorted(map(tuple, raw.data.tolist())) == sorted(map(tuple, ((x + 1) * 8).flatten(1).tolist())), "each digit is on one side"
    assert all((part["label"].bincount(minlength=10) / len(part["label"]) - 0.1).abs().max() < 0.05 for part in parts)
    assert torch.equal(Digits(64, seed=9).val.x, data.val.x), "no seed moves the split"
    assert str(data) == "Digits(1500 training items, 297 validation items, batch_size=64)"
    assert sum(len(batch["x"]) for batch in data.val_dataloader()) == 297


def test_heavy_libraries_are_imported_only_where_they_are_used():
    files = sorted(Path(diffx.data.__file__).parent.rglob("*.py"))
    statements = [(file.name, node) for file in files for node in ast.parse(file.read_text()).body]
    names = [(file, ast.unparse(node)) for file, node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert len(names) > 50
    assert not [
        (file, name) for file, name in names if any(heavy in name.split() for heavy in ("torchvision", "sklearn.datasets", "sklearn"))
    ]
