"""Recorded sound: files and arrays, cut and checked, never resampled."""

import json

import numpy as np
import pytest
import torch

from diffx.audio import write_wav
from diffx.data import SoundArrays, SoundFolder

WANTED = {"sample_rate": 8000, "length": 1000}


def ramp(length: int, start: int = 0) -> torch.Tensor:
    """A sound that tells by its values where it was cut."""
    return torch.arange(start, start + length)[None] / 32768


def fetch(data, rows, epoch=0, part="train"):
    return getattr(data, part).fetch(np.asarray(rows), epoch)


@pytest.fixture
def folder(tmp_path):
    for name in ("bell/a", "bell/b", "drum/c", "drum/deep/d"):
        write_wav(ramp(3000, 1000), tmp_path / f"{name}.wav", 8000)
    return tmp_path


def test_folders_become_classes_and_clips_are_cut_out(folder):
    data = SoundFolder(folder, 2, **WANTED)
    batch = fetch(data, [0, 1, 2, 3])
    assert data.class_names == ("bell", "drum") and batch["label"].tolist() == [0, 0, 1, 1] and data.shape == (1, 1000)
    starts = (batch["x"][:, 0, 0] * 32768).round() - 1000
    assert (batch["x"] * 32768 - starts[:, None, None] - 1000 == torch.arange(1000)).all()
    assert len({*starts.tolist()}) > 1 and (starts >= 0).all() and (starts <= 2000).all()
    assert torch.equal(fetch(SoundFolder(folder, 2, **WANTED), [2, 0])["x"], batch["x"][[2, 0]]), "the place is keyed"
    assert not torch.equal(fetch(data, [0, 1, 2, 3], epoch=1)["x"], batch["x"])
    assert torch.equal(fetch(SoundFolder(folder, 2, crop="start", **WANTED), [0])["x"][0], ramp(1000, 1000))


def test_captions_and_held_out_files(folder):
    rows = [{"file_name": "bell/a.wav", "text": "a bell"}, {"file_name": "drum/c.wav", "text": "a drum"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = SoundFolder(folder, 1, val=0.5, turn=True, **WANTED)
    held = fetch(data, [0], part="val")
    assert len(data.train) == len(data.val) == 1 and {*fetch(data, [0])["text"], *held["text"]} == {"a bell", "a drum"}
    assert torch.equal(held["x"][0], ramp(1000, 1000)), "validation is cut at the beginning and never turned"
    signs = {float(fetch(data, [0], epoch)["x"].sum().sign()) for epoch in range(12)}
    assert signs == {-1.0, 1.0}


@pytest.mark.parametrize(("sound", "rate", "settings", "message"), [
    (ramp(3000), 16_000, {}, r"a\.wav has 16000 samples per second, expected 8000; nothing is resampled.*sample_rate=16000"),
    (ramp(999), 8000, {}, "a.wav has 999 samples and clips have 1000.*pad=true"),
    (ramp(3000).expand(2, -1), 8000, {}, "2 channels, expected 1; set mix=true"),
    (ramp(3000), 8000, {"channels": 2}, "1 channels, expected 2; set channels=1"),
    (torch.zeros(1, 3000), 8000, {}, "cannot be read .*a clip of -180 dB is silence"),
    (ramp(3000) / 1000, 8000, {"quietest": -30.0}, "is silence, the quietest allowed is -30 dB"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, sound, rate, settings, message):
    write_wav(sound, tmp_path / "a.wav", rate)
    with pytest.raises(ValueError, match=message):
        fetch(SoundFolder(tmp_path, 1, **{**WANTED, "crop": "start", **settings}), [0])


def test_what_is_asked_for_is_done(tmp_path):
    write_wav(torch.cat([ramp(500, 100), ramp(500, 300)]), tmp_path / "a.wav", 8000)
    x = fetch(SoundFolder(tmp_path, 1, pad=True, mix=True, **WANTED), [0])["x"][0]
    assert torch.equal(x[:, :500], ramp(500, 200)) and not x[:, 500:].any()
    write_wav(torch.zeros(1, 2000), tmp_path / "b.wav", 8000)
    data = SoundFolder(tmp_path, 1, pad=True, mix=True, on_error="skip", max_bad=0.5, **WANTED)
    assert torch.equal(fetch(data, [1])["x"][0], x), "a silent file is passed over"


def test_folders_without_sounds_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no sounds below .*\.wav"):
        len(SoundFolder(tmp_path, 1, **WANTED).train)
    with pytest.raises(FileNotFoundError, match="no folder"):
        len(SoundFolder(tmp_path / "none", 1, **WANTED).train)
    with pytest.raises(ValueError, match="channels 1 or 2"):
        SoundFolder(tmp_path, 1, channels=5, **WANTED)
    with pytest.raises(ValueError, match="crop must be"):
        SoundFolder(tmp_path, 1, crop="end", **WANTED)


def arrays(kind=np.int16):
    full = -np.iinfo(kind).min if np.dtype(kind).kind == "i" else 1
    sounds = np.stack([np.linspace(0, (k + 1) / 8, 1500) * full for k in range(6)]).astype(kind)
    return {"audio": sounds, "sample_rate": np.array(8000), "kind": np.array([0, 1, 2, 0, 1, 2], np.uint8), "note": np.arange(60, 66),
            "split": np.array([0, 0, 0, 0, 1, 1]), "names": np.array(["a", "b", "c"])}  # fmt: skip


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_arrays_of_integers_have_full_scale_one(kind):
    data = SoundArrays(arrays(kind), 2, labels="kind", notes="note", class_names="names", split="split", crop="start", **WANTED)
    batch = fetch(data, [0, 3])
    expected = torch.stack([torch.linspace(0, k / 8, 1500)[:1000] for k in (1, 4)])[:, None]
    torch.testing.assert_close(batch["x"], expected, atol=1e-4, rtol=0)
    assert batch["label"].tolist() == [0, 0] and batch["note"].tolist() == [60, 63] and batch["pitch"].shape == (2, 3)
    assert data.class_names == ("a", "b", "c") and data.classes == 3 and len(data.val) == 2


@pytest.mark.parametrize(("change", "settings", "message"), [
    ({}, {"labels": "class"}, r"no array 'class' in the given arrays; it holds \['audio'"),
    ({"audio": np.zeros((6, 1500), np.uint8)}, {}, "sounds must be int16, int32 or float"),
    ({"note": np.arange(5)}, {"notes": "note"}, "6 sounds, but notes of shape"),
    ({"sample_rate": np.array(44_100)}, {}, "recording 0 has 44100 samples per second"),
    ({"audio": np.full((6, 1500), 2.0, np.float32)}, {}, r"values must lie in \[-1, 1\], got a peak of 2"),
])  # fmt: skip
def test_arrays_are_checked(change, settings, message):
    with pytest.raises(ValueError, match=message):
        fetch(SoundArrays({**arrays(), **change}, 1, **WANTED, **settings), [0])
