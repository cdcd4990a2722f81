"""Clips from files: which frames are taken, in which order, what is skipped."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffx import media
from diffx.data import Arrays, ClipFolder
from diffx.data.video.films import count_frames, frame_files


def numbered(frames, size=8, start=0):
    """Frames (T, 3, H, W) of plain grey, 10 levels apart, brighter on the left."""
    x = torch.arange(start, start + frames, dtype=torch.uint8)[:, None, None, None] * 10 + 20
    x = x.expand(frames, 3, size, size).clone()
    x[..., : size // 2] += 5
    return x


def numbers(x):
    """Which frames (T,) a clip (C, T, H, W) shows, and whether it is mirrored."""
    left, right = x[0, :, 0, 0].int(), x[0, :, 0, -1].int()
    return [round((value - 20) / 10) for value in torch.minimum(left, right).tolist()], bool((right > left).all())


@pytest.fixture
def folder(tmp_path):
    for number, suffix in enumerate((".gif", ".webp", ".png", ".mp4")):
        media.save(numbered(6 + number, 16), tmp_path / f"clip{number}{suffix}")
    return tmp_path


def test_frames_follow_each_other_at_one_rate(folder):
    data = ClipFolder(folder, 2, frames=3, skips=(1, 2), size=8)
    assert data.shape == (3, 3, 8, 8)
    seen = set()
    for epoch in range(30):
        batch = data.train.fetch(np.arange(4), epoch)
        assert batch["x"].dtype == torch.uint8 and batch["frame_rate"].shape == (4, 1)
        for row, (clip, rate) in enumerate(zip(batch["x"], batch["frame_rate"], strict=True)):
            frames, mirrored = numbers(clip)
            skip = round(1 / rate.item())
            assert frames == [frames[0] + skip * t for t in range(3)] and frames[-1] < 6 + row and not mirrored
            seen.add((frames[0], skip))
    assert {(0, 1), (3, 1), (0, 2), (1, 2)} <= seen


def test_all_frames_of_a_clip_are_mirrored_or_none(folder):
    data = ClipFolder(folder, 2, frames=4, size=16, flip=True)
    flips = [numbers(clip)[1] for epoch in range(20) for clip in data.train.fetch(np.arange(4), epoch)["x"]]
    assert 20 < sum(flips) < 60
    again = ClipFolder(folder, 2, frames=4, size=16, flip=True)
    assert torch.equal(again.train.fetch(np.arange(4), 3)["x"], data.train.fetch(np.arange(4), 3)["x"])


def test_validation_takes_the_middle(folder):
    data = ClipFolder(folder, 1, frames=2, size=16, val=0.5)
    for epoch in (0, 1):
        for clip, path in zip(data.val.fetch(np.arange(2), epoch)["x"], data.val.listing.paths, strict=True):
            assert numbers(clip)[0][0] == (count_frames(path) - 1) // 2


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        for t, frame in enumerate(numbered(12)):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / name / f"frame{t}.png")
    data = ClipFolder(tmp_path, 1, frames=12, layout="frames")
    assert [path.name for path in data.train.listing.paths] == ["a", "c"]
    assert numbers(data.train.fetch(np.array([1]), 0)["x"][0])[0] == list(range(12))
    assert frame_files(tmp_path / "a")[2].name == "frame2.png"


def test_labels_and_captions(tmp_path):
    for name in ("up", "down"):
        media.save(numbered(4), tmp_path / "classes" / name / "clip.gif")
        media.save(numbered(4), tmp_path / "told" / f"{name}.gif")
        (tmp_path / "told" / f"{name}.txt").write_text(f"moving {name}")
    assert ClipFolder(tmp_path / "classes", 1, frames=2).train.fetch(np.arange(2), 0)["label"].tolist() == [0, 1]
    assert ClipFolder(tmp_path / "told", 1, frames=2).train.fetch(np.arange(2), 0)["text"] == ["moving down", "moving up"]


def test_broken_and_short_clips_are_skipped_alike_every_time(folder):
    (folder / "clip1.webp").write_bytes((folder / "clip1.webp").read_bytes()[:60])
    media.save(numbered(2), folder / "clip0.gif")
    data = ClipFolder(folder, 1, frames=4, size=16, on_error="skip", max_bad=0.5)
    batch = data.train.fetch(np.arange(4), 0)
    assert batch["index"].tolist() == [2, 2, 2, 3]
    with pytest.raises(ValueError, match=r"clip0.gif cannot be read \(ValueError: it has 2 frames, 4 are needed\)"):
        ClipFolder(folder, 1, frames=4, size=16).train.fetch(np.arange(1), 0)


def test_a_film_without_its_library_is_a_setting_not_a_broken_file(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    data = ClipFolder(folder, 1, frames=2, size=8, on_error="skip")
    with pytest.raises(ValueError, match=r"clip3.mp4 needs PyAV.*diffx\[video\]"):
        data.train.fetch(np.array([3]), 0)


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        ClipFolder(tmp_path, 1, frames=0)
    with pytest.raises(FileNotFoundError, match="no clips below"):
        ClipFolder(tmp_path, 1).sources()
    with pytest.raises(FileNotFoundError, match="a folder of its frames"):
        ClipFolder(tmp_path, 1, layout="frames").sources()
    with pytest.raises(FileNotFoundError, match="no folder"):
        ClipFolder(tmp_path / "none", 1).sources()


@pytest.mark.parametrize(("shape", "channels"), [((5, 7, 8, 8), 1), ((5, 7, 8, 8, 3), 3)])
def test_clips_in_arrays(shape, channels):
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = Arrays({"images": clips}, 2)
    assert data.shape == (channels, 7, 8, 8)
    x = data.train.fetch(np.array([3]), 0)["x"][0].numpy()
    assert np.array_equal(x, clips[3][None] if channels == 1 else clips[3].transpose(3, 0, 1, 2))
