"""Pictures that are kept at their final size: the same batches, no decoding, and nothing trusted that was written half."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diffx.data import ImageFolder
from diffx.data.kept import KeptPictures


@pytest.fixture
def folder(tmp_path):
    draw, made = np.random.default_rng(0), tmp_path / "pictures"
    made.mkdir()
    for i in range(6):
        Image.fromarray(draw.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(made / f"{i}.png")
    return made


def module(folder, cache=True, **options):
    return ImageFolder(folder, 3, size=8, val=0.34, **({"cache": folder.parent / "cache"} if cache else {}), **options)


def batches(data, epochs=2):
    return [part.fetch(np.arange(len(part)), epoch)["x"] for epoch in range(epochs) for part in (data.train, data.val)]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(batches(a), batches(b), strict=True))


def test_batches_are_the_same_and_nothing_is_decoded_twice(folder, monkeypatch):
    assert equal(module(folder, flip=True), module(folder, cache=False, flip=True))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    flipped, plain = module(folder, flip=True), module(folder)
    assert not torch.equal(batches(flipped)[0], batches(plain)[0])  # mirrored after they were kept, epoch by epoch
    assert not torch.equal(batches(flipped)[0], batches(flipped)[2])
    assert len(list((folder.parent / "cache").iterdir())) == 2  # training and validation


def test_a_changed_picture_or_another_size_is_read_anew(folder):
    batches(module(folder))
    Image.new("RGB", (30, 30), "red").save(folder / "0.png")
    os.utime(folder / "0.png", ns=(1, 1))
    assert equal(module(folder), module(folder, cache=False))
    batches(ImageFolder(folder, 3, size=4, val=0.34, cache=folder.parent / "cache"))
    assert equal(module(folder), module(folder, cache=False))


@pytest.mark.parametrize("place", [0, 8, -1])
def test_a_row_that_is_broken_is_read_again(folder, place):
    batches(module(folder))
    for file in (folder.parent / "cache").iterdir():
        spoilt = bytearray(file.read_bytes())
        spoilt[place] ^= 1
        file.write_bytes(spoilt)
    assert equal(module(folder), module(folder, cache=False))
    assert equal(module(folder), module(folder, cache=False))


def test_rows_are_empty_until_they_are_put_and_black_is_no_empty_row(tmp_path):
    kept = KeptPictures(tmp_path, ["a"], 3, (1, 2, 2))
    assert kept.get(1) is None
    kept.put(1, torch.zeros(1, 2, 2, dtype=torch.uint8))
    again = pickle.loads(pickle.dumps(kept))
    assert torch.equal(again.get(1), torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert again.get(0) is None and again.get(2) is None
    assert KeptPictures(tmp_path, ["b"], 3, (1, 2, 2)).get(1) is None


def test_a_disk_that_takes_nothing_ends_the_keeping_not_the_run(folder, monkeypatch, caplog):
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError("no space left on device")))
    assert equal(module(folder), module(folder, cache=False))
    assert caplog.text.count("pictures are not kept") == 2  # once for each part
    (folder.parent / "file").touch()
    assert equal(ImageFolder(folder, 3, size=8, val=0.34, cache=folder.parent / "file" / "cache"), module(folder, cache=False))


def test_a_cache_needs_one_size(folder):
    with pytest.raises(ValueError, match="a cache keeps pictures of one size; set size="):
        ImageFolder(folder, 3, cache=folder)
