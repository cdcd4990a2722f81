"""Arrays in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffx.data import Arrays


def arrays(n=12, channels=3):
    draw = np.random.default_rng(0)
    return {
        "pictures": draw.integers(0, 256, (n, 5, 4, channels), dtype=np.uint8),
        "kind": (np.arange(n) % 3).astype(np.uint8),
        "words": np.array([f"picture {i}" for i in range(n)]),
        "part": np.array([0] * (n - 3) + [1, 1, 2]),
        "names": np.array(["a", "b", "c"]),
    }


KEYS = dict(images="pictures", labels="kind", captions="words", split="part", class_names="names")


@pytest.mark.parametrize("from_file", [True, False])
def test_file_and_mapping(tmp_path, from_file):
    np.savez(tmp_path / "data.npz", **arrays())
    data = Arrays(tmp_path / "data.npz" if from_file else arrays(), 4, **KEYS)
    assert (data.shape, data.classes, data.class_names) == ((3, 5, 4), 3, ("a", "b", "c"))
    assert (len(data.train), len(data.val)) == (9, 2)
    batch = next(iter(data.train_dataloader()))
    rows = batch["index"].numpy()
    assert torch.equal(batch["x"], torch.from_numpy(arrays()["pictures"][rows]).permute(0, 3, 1, 2))
    assert batch["label"].tolist() == (rows % 3).tolist() and batch["label"].dtype == torch.int64
    assert batch["text"] == [f"picture {i}" for i in rows]
    assert [batch["text"] for batch in data.val_dataloader()] == [["picture 9", "picture 10"]]


def test_columns_are_read_parted_and_mirrored_with_their_pictures():
    given = {**arrays(), "before": arrays()["pictures"][..., ::-1].copy(), "vectors": np.arange(24.0).reshape(12, 2)}
    data = Arrays(given, 4, images="pictures", split="part", columns={"source": "before", "told": "words", "code": "vectors"}, flip=True)
    batch = data.train.fetch(np.array([0, 3, 5, 8]), 1)
    assert torch.equal(batch["source"], batch["x"].flip(1))  # channels in reverse, whether mirrored or not
    assert batch["told"] == ["picture 0", "picture 3", "picture 5", "picture 8"]
    assert batch["code"].tolist() == given["vectors"][[0, 3, 5, 8]].tolist()
    held = data.val.fetch(np.arange(2), 0)
    assert held["told"] == ["picture 9", "picture 10"] and held["code"][0, 0] == 18
    with pytest.raises(ValueError, match="12 images, but 3 source"):
        len(Arrays({**given, "before": given["before"][:3]}, 4, images="pictures", columns={"source": "before"}).train)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.zeros((6, 8, 8), np.uint8), (1, 8, 8)),
        (np.zeros((6, 8, 9, 1), np.uint8), (1, 8, 9)),
        (np.zeros((6, 3, 8, 8)), (3, 8, 8)),
        (np.zeros((6, 1, 100), np.float32), (1, 100)),
    ],
)
def test_layouts(images, shape):
    data = Arrays({"images": images}, 2)
    assert data.shape == shape and data.classes is None
    assert next(iter(data.train_dataloader()))["x"].dtype == (torch.uint8 if images.dtype == np.uint8 else torch.float32)


def test_flips_are_keyed_by_epoch_and_index_and_spare_validation():
    images = np.arange(40, dtype=np.uint8).reshape(10, 1, 4)
    data = Arrays({"images": images, "split": np.array([0] * 8 + [1] * 2)}, 8, split="split", flip=True)
    x = torch.from_numpy(images)[:, None]
    epochs = [data.train.fetch(np.arange(8), epoch)["x"] for epoch in range(50)]
    mirrored = torch.stack([(epoch == x[:8].flip(-1)).flatten(1).all(1) for epoch in epochs])
    assert all(((epoch == x[:8]) | (epoch == x[:8].flip(-1))).all() for epoch in epochs)
    assert 0.4 < mirrored.float().mean() < 0.6 and 0 < mirrored.float().mean(0).min() < mirrored.float().mean(0).max() < 1
    for epoch in (0, 3):
        assert torch.equal(data.train.fetch(np.array([6, 1]), epoch)["x"], epochs[epoch][[6, 1]])
    assert torch.equal(data.val.fetch(np.arange(2), 0)["x"], x[8:])
    assert torch.equal(data.train.x, x[:8]), "the data itself is not touched"


def test_held_out_fraction_is_the_same_for_all_seeds():
    one, other = (Arrays({"images": np.arange(100, dtype=np.uint8).reshape(100, 1, 1)}, 2, val=0.2, seed=seed) for seed in (0, 1))
    assert (len(one.train), len(one.val)) == (80, 20)
    assert torch.equal(one.val.x, other.val.x)
    assert sorted(one.train.x.flatten().tolist() + one.val.x.flatten().tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, dict(images="image"), r"no array 'image' in .*; it holds \['kind', 'names', 'part', 'pictures', 'words'\]"),
        ({}, dict(classes=2, class_names=None), r"labels must lie in \[0, 2\), got 0 to 2"),
        ({"kind": -np.ones(12, int)}, {}, r"labels must lie in \[0, 3\), got -1"),
        ({"kind": np.zeros(11, int)}, {}, "12 images, but 11 labels"),
        ({"words": np.array(["one"])}, {}, "12 images, but 1 captions"),
        ({"kind": np.zeros(12)}, {}, "labels must be integers"),
        ({"names": np.array(["a", "b"])}, dict(classes=3), "2 class names for 3 classes"),
        ({"part": np.zeros(5, int)}, {}, r"split must hold one integer per image: expected \(12,\), got \(5,\)"),
        ({"pictures": np.zeros((12, 3, 8, 8), np.uint8)}, {}, r"images must be .*; got uint8 \(12, 3, 8, 8\)"),
        ({"pictures": np.zeros((12, 8, 8), np.int16)}, {}, r"got int16"),
    ],
)
def test_what_does_not_fit_is_named(change, options, words):
    with pytest.raises(ValueError, match=words):
        Arrays({**arrays(), **change}, 4, **{**KEYS, **options}).setup("fit")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz"):
        Arrays(tmp_path / "none.npz", 4).setup("fit")
