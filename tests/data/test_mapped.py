"""Map-style data set objects and torchvision's sets."""

from __future__ import annotations

import gzip
import types

import numpy as np
import pytest
import torch
from PIL import Image

from diffx.data import Mapped, TorchvisionSet


class Table:
    """Behaves as a Hugging Face data set does: dictionaries by integer, class names in `features`."""

    features = {"label": types.SimpleNamespace(names=["cat", "dog"])}  # noqa: RUF012

    def __init__(self, n=10, make=lambda i: Image.new("RGB", (9, 7), (i, i, i)), label=lambda i: i % 2):
        self.n, self.make, self.label = n, make, label

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        assert type(i) is int
        return {"image": self.make(i), "label": self.label(i), "words": [f"{i} one", f"{i} two"]}


def everything(source):
    return source.fetch(np.arange(len(source)), 0)


def test_names_keys_and_classes():
    data = Mapped(Table(), 2, text="words", size=4, val=0.2)
    assert (data.shape, data.classes, data.class_names, len(data.train), len(data.val)) == ((3, 4, 4), 2, ("cat", "dog"), 8, 2)
    batch = everything(data.train)
    rows = batch["x"][:, 0, 0, 0].tolist()
    assert batch["label"].tolist() == [row % 2 for row in rows]
    assert all(text in (f"{row} one", f"{row} two") for row, text in zip(rows, batch["text"], strict=True))
    drawn = {text[-3:] for epoch in range(10) for text in data.train.fetch(np.arange(8), epoch)["text"]}
    assert drawn == {"one", "two"}
    assert sorted(rows + everything(data.val)["x"][:, 0, 0, 0].tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("make", "channels", "value"),
    [
        (lambda i: np.full((7, 9, 3), i, np.uint8), 3, 1),
        (lambda i: np.full((7, 9), i, np.uint8), 1, 1),
        (lambda i: np.full((7, 9, 1), i, np.uint8), 1, 1),
        (lambda i: torch.full((3, 7, 9), i, dtype=torch.uint8), 3, 1),
        (lambda i: torch.full((1, 7, 9), i, dtype=torch.uint8), 1, 1),
        (lambda i: torch.full((7, 9), i, dtype=torch.uint8), 1, 1),
        (lambda i: torch.full((1, 7, 9), i / 100, dtype=torch.float64), 1, 0.01),
    ],
)
def test_kinds_of_pictures(make, channels, value):
    x = everything(Mapped(Table(make=make), 2, channels=channels).train)["x"]
    assert x.shape == (10, channels, 7, 9) and x.dtype == (torch.uint8 if value == 1 else torch.float32)
    torch.testing.assert_close(x[:, 0, 0, 0].float(), torch.arange(10.0) * value)


def test_a_tuple_data_set_with_another_for_validation():
    pairs = [(Image.new("L", (4, 4), i), np.int64(i)) for i in range(6)]
    data = Mapped(pairs, 2, val=pairs[:2], image=0, label=1, channels=1, classes=6)
    assert (len(data.train), len(data.val), data.classes) == (6, 2, 6)
    assert everything(data.train)["label"].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (Table(), dict(image="img"), r"have no 'img'; set image= to one of \['image', 'label', 'words'\]"),
        (Table(), dict(text="caption"), "set text= to one of"),
        (Table(label=lambda i: 2), {}, r"labels must lie in \[0, 2\), got 2 in item 0 of Table"),
        (Table(label=lambda i: "cat"), {}, "labels must be integers, got 'cat'"),
        (Table(label=lambda i: 0.5), {}, "labels must be integers, got 0.5"),
        (Table(make=lambda i: "a.png"), {}, "expected a picture .* got str"),
        (Table(make=lambda i: torch.zeros(3, 8, 8, dtype=torch.int64)), {}, "uint8 in .* or float"),
        (Table(make=lambda i: torch.zeros(3, 8, 8)), dict(size=4), r"got \(3, 8, 8\), expected 3 channels, size 4"),
        (Table(make=lambda i: Image.new("L", (4, 4 + i))), {}, "images differ in size"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_settings_that_do_not_fit_are_named_and_never_skipped(table, options, words, on_error):
    with pytest.raises(ValueError, match=words):
        everything(Mapped(table, 2, on_error=on_error, max_bad=1.0, **options).train)


def test_a_stream_is_no_map():
    with pytest.raises(TypeError, match="generator has not both"):
        Mapped((i for i in range(3)), 1).setup("fit")


def test_a_hugging_face_data_set_in_buckets(tmp_path, monkeypatch):
    """The library itself, where it is installed: pictures with captions, read by workers, batch by batch of one size."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install 'diffx[hf]'")
    lines = ["file_name,text"]
    for i in range(12):
        Image.new("RGB", ((60, 60), (80, 48))[i % 2], (i, i, i)).save(tmp_path / f"{i:02}.png")
        lines.append(f"{i:02}.png,number {i}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    table = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    data = Mapped(table, 3, label=None, text="text", buckets=[(32, 32), (24, 40)], num_workers=1)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
    assert sorted(tuple(batch["x"].shape[2:]) for batch in batches) == [(24, 40), (24, 40), (32, 32), (32, 32)]
    seen = {int(x): text for batch in batches for x, text in zip(batch["x"][:, 0, 0, 0], batch["text"], strict=True)}
    assert seen == {i: f"number {i}" for i in range(12)}


def idx(array):
    """The file format of MNIST: two zero bytes, type (8 = uint8), number of axes, their lengths, the data."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def test_a_torchvision_set_by_name(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, n in (("train", 12), ("t10k", 5)):
        images, labels = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{part}-{name}-ubyte").write_bytes(idx(array))
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    data = TorchvisionSet("MNIST", tmp_path, 4, channels=1)
    assert (data.shape, data.classes, len(data.train), len(data.val)) == ((1, 28, 28), 10, 12, 5)
    assert sorted(i for batch, _ in zip(data.train_dataloader(), range(3), strict=False) for i in batch["index"].tolist()) == list(
        range(12)
    )
    batch = everything(data.val)
    assert torch.equal(batch["x"][:, 0], torch.from_numpy(images)) and batch["label"].tolist() == [0, 1, 2, 3, 4]
    assert TorchvisionSet("MNIST", tmp_path, 4, channels=1, size=(14, 7)).shape == (1, 14, 7)
    assert TorchvisionSet("MNIST", tmp_path, 4, channels=1, val=None).val is None
    assert "label" not in everything(TorchvisionSet("MNIST", tmp_path, 4, channels=1, label=False).train)


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "ImageNet"])
def test_missing_torchvision_data(tmp_path, name):
    way = "torchvision cannot download this one" if name == "ImageNet" else "set download=true to fetch it"
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match=f"{name} is not complete under .*: {way}|scipy"):
        TorchvisionSet(name, tmp_path, 4).setup("fit")


def test_unknown_torchvision_set(tmp_path):
    with pytest.raises(ValueError, match="no data set 'CIFAR'; did you mean 'CIFAR10"):
        TorchvisionSet("CIFAR", tmp_path, 4).setup("fit")
