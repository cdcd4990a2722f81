"""Pictures in tar files, read at random through an index."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffx.data import Shards
from diffx.data.shards import index_tar


def png(value, size=(12, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(buffer, "png")
    return buffer.getvalue()


def write(path, members, format=tarfile.PAX_FORMAT):
    """A tar of (name, content)."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers, size=lambda i: (12, 10)):
    return [
        pair
        for i in numbers
        for pair in ((f"d/{i:03}.png", png(i, size(i))), (f"d/{i:03}.txt", f"number {i}\n"), (f"d/{i:03}.cls", f"{i % 3}"))
    ]


@pytest.fixture
def two(tmp_path):
    write(tmp_path / "a.tar", samples(range(7)))
    write(tmp_path / "b.tar", samples(range(7, 12)))
    return tmp_path


def everything(source):
    return source.fetch(np.arange(len(source)), 0)


@pytest.mark.parametrize("given", ["folder", "pattern", "list"])
def test_samples_of_all_shards(two, given):
    shards = {"folder": two, "pattern": str(two / "*.tar"), "list": [two / "a.tar", str(two / "b.tar")]}[given]
    data = Shards(shards, 2, classes=3)
    batch = everything(data.train)
    assert batch["x"][:, 0, 0, 0].tolist() == list(range(12)) and batch["x"].shape == (12, 3, 10, 12)
    assert batch["text"] == [f"number {i}" for i in range(12)] and batch["label"].tolist() == [i % 3 for i in range(12)]
    assert data.train.name(8).endswith("b.tar:d/008") and (data.classes, data.val) == (3, None)
    backwards = data.train.fetch(np.array([11, 0, 5]), 0)
    assert backwards["x"][:, 0, 0, 0].tolist() == [11, 0, 5]


def test_other_members_and_long_names_and_formats(tmp_path):
    long = "x" * 180
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        extra = [
            (f"{long}/é.1.json", "{}"),
            (f"{long}/é.jpg", png(3)),
            (f"{long}/é.TXT", "é"),
            ("README", "no sample"),
            ("._é.png", b"junk"),
        ]
        path = write(tmp_path / f"{format}.tar", extra, format)
        index = index_tar(path)
        assert index.keys == [f"{long}/é"] and index.read(0, 1).decode() == "é" and index.read(0, 0) == png(3)


def test_training_goes_through_each_sample_and_resumes(two):
    def indices(data, steps):
        return [(batch["index"].tolist(), batch["x"]) for batch, _ in zip(data.train_dataloader(), range(steps), strict=False)]

    whole = indices(Shards(two, 3, classes=3, flip=True), 8)
    assert sorted(i for ids, _ in whole[:4] for i in ids) == list(range(12))
    for workers in (0, 2):
        late = Shards(two, 3, classes=3, flip=True, num_workers=workers)
        late.load_state_dict({"samples": 9})
        rest = indices(late, 5)
        assert [ids for ids, _ in rest] == [ids for ids, _ in whole[3:]]
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(rest, whole[3:], strict=True))


def test_the_index_is_kept_until_the_tar_changes(two, monkeypatch):
    from diffx.data import shards

    walks, walked = [], shards._walked
    monkeypatch.setattr(shards, "_walked", lambda path: walks.append(path.name) or walked(path))

    def read():
        walks.clear()
        return everything(Shards(two, 2, classes=3).train)["x"][:, 0, 0, 0].tolist(), list(walks)

    assert read() == (list(range(12)), ["a.tar", "b.tar"])
    assert read() == (list(range(12)), [])
    write(two / "b.tar", samples([20, 21]))
    assert read() == ([*range(7), 20, 21], ["b.tar"])
    stat = (two / "b.tar").stat()
    write(two / "b.tar", samples([30, 31]))  # as long as before: the time tells
    os.utime(two / "b.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert read() == ([*range(7), 30, 31], ["b.tar"])
    monkeypatch.setattr("diffx.files.write", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    (two / ".b.tar.diffx-index.npz").unlink()
    assert read()[1] == read()[1] == ["b.tar"]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.77, 0.97])
def test_a_tar_that_is_cut_short_is_refused(two, share):
    whole = (two / "a.tar").read_bytes()
    with tarfile.open(two / "a.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512  # of the last member
    (two / "a.tar").write_bytes(whole[: int(end * share)])
    with pytest.raises(ValueError, match=r"a.tar (is no plain tar file, or it )?is (cut short|damaged).*write it anew"):
        index_tar(two / "a.tar")


def test_a_tar_that_is_cut_between_members_is_refused(two):
    """Python's tarfile reads such a file without a word."""
    with tarfile.open(two / "a.tar") as tar:
        edge = tar.getmembers()[9].offset
    (two / "a.tar").write_bytes((two / "a.tar").read_bytes()[:edge])
    with tarfile.open(two / "a.tar") as tar:
        assert len(tar.getmembers()) == 9
    with pytest.raises(ValueError, match=rf"a.tar is cut short: it has {edge} bytes and no end mark"):
        index_tar(two / "a.tar")


def test_other_files_that_are_no_plain_tars(two):
    with tarfile.open(two / "a.tar") as tar:
        edge = tar.getmembers()[9].offset
    whole = (two / "a.tar").read_bytes()
    (two / "joined.tar").write_bytes(whole + (two / "b.tar").read_bytes())
    (two / "damaged.tar").write_bytes(whole[:edge] + b"\x07" * 512 + whole[edge + 512 :])
    with tarfile.open(two / "packed.tar", "w:gz") as tar:
        tar.add(two / "b.tar")
    for name, words in (("joined", "goes on after its end mark"), ("damaged", f"damaged: at byte {edge}"), ("packed", "no plain tar file")):
        with pytest.raises(ValueError, match=words):
            index_tar(two / f"{name}.tar")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.png", png(1)), ("1.txt", "a"), ("2.png", png(2))], "1 of 2 samples in .* have no txt, the first is '2'"),
        ([("1.png", png(1)), ("1.txt", "a"), ("2.txt", "b")], "1 of 2 samples in .* have no picture, the first is '2'"),
        ([("1.png", png(1)), ("2.png", png(1)), ("2.cls", "0")], "1 of 2 samples in .* have no cls, the first is '1'"),
        ([("1.png", png(1)), ("1.jpg", png(1))], "the sample '1' in .* has two members of the kind 'picture'"),
        ([("a.json", "{}")], "there are no samples in"),
    ],
)
def test_samples_that_are_not_whole(tmp_path, members, words):
    with pytest.raises(ValueError, match=words):
        index_tar(write(tmp_path / "a.tar", members))


def test_settings_that_do_not_fit(two, caplog):
    with pytest.raises(ValueError, match=r"have a class .*; tell how many there are with classes="):
        Shards(two, 2).setup("fit")
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 2 in .*a.tar:d/002"):
        everything(Shards(two, 2, classes=2).train)
    with pytest.raises(FileNotFoundError, match=r"no tar files in .*nowhere"):
        Shards([two / "a.tar", two / "nowhere"], 2).setup("fit")
    write(two / "c.tar", [("1.png", png(1)), ("1.txt", "")])
    with pytest.raises(ValueError, match=r"a.tar hold \['picture', 'txt', 'cls'\], in .*c.tar \['picture', 'txt'\]"):
        Shards(two, 2, classes=3).setup("fit")
    Shards(two / "c.tar", 1).setup("fit")
    assert "1 of 1 captions in" in caplog.text


def test_an_unreadable_sample(two):
    write(two / "c.tar", [("1.png", png(1)), ("2.png", b""), ("3.png", png(3)[:40]), ("4.png", png(4))])
    with pytest.raises(ValueError, match=r"c\.tar:2 cannot be read"):
        everything(Shards(two / "c.tar", 2).train)
    assert everything(Shards(two / "c.tar", 2, on_error="skip", max_bad=0.5).train)["index"].tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize("val", ["b.tar", 0.25])
def test_validation(two, val):
    data = Shards(two / "a.tar" if val == "b.tar" else two, 2, classes=3, val=two / val if val == "b.tar" else val)
    train, held = (everything(part)["x"][:, 0, 0, 0].tolist() for part in (data.train, data.val))
    assert sorted(train + held) == list(range(12)) and (held == [7, 8, 9, 10, 11] or len(held) == 3)


def test_buckets(tmp_path, monkeypatch):
    from diffx.data.shards import ShardItems

    write(tmp_path / "a.tar", samples(range(9), lambda i: ((30, 30), (40, 24), (24, 40))[i % 3]))
    data = Shards(tmp_path, 2, classes=3, buckets=[(16, 16), (12, 20), (20, 12)])
    assert data.order.bucket.tolist() == [0, 1, 2] * 3
    batch = data.train.fetch(np.array([1, 4]), 0)
    assert batch["x"].shape == (2, 3, 12, 20) and batch["text"] == ["number 1", "number 4"] and batch["frame"][0].tolist()[:2] == [24, 40]
    monkeypatch.setattr(ShardItems, "extent", None)  # the sizes are remembered
    assert Shards(tmp_path, 2, classes=3, buckets=[(16, 16), (12, 20)]).order.bucket.tolist() == [0, 1, -1] * 3
