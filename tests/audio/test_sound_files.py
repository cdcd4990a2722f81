"""WAV files by the standard library; what needs soundfile says so."""

import struct
import sys
import wave

import numpy as np
import pytest
import torch

from diffx.audio import duration, read_sound, wav_bytes, write_wav


def raw(path, width: int, frames: bytes, channels: int = 1, rate: int = 8000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return path


def test_every_integer_survives(tmp_path):
    levels = torch.arange(-32768, 32768).view(2, -1) / 32768
    path = write_wav(levels, tmp_path / "deep" / "all.wav", 22_050)
    assert duration(path) == (22_050, 2, 32_768)
    back, rate = read_sound(path)
    assert rate == 22_050 and torch.equal(back, levels)
    assert torch.equal(read_sound(path, 100, 50)[0], levels[:, 100:150]) and read_sound(path, 32_760, 50)[0].shape == (2, 8)
    assert read_sound(path, 40_000, 5)[0].shape == (2, 0)


def test_what_lies_outside_is_clipped_and_nan_is_silence(tmp_path):
    path = write_wav(torch.tensor([[2.0, -2.0, float("nan"), 0.5]]), tmp_path / "loud.wav", 8000)
    assert read_sound(path)[0].tolist() == [[32767 / 32768, -1.0, 0.0, 0.5]]


@pytest.mark.parametrize(("width", "frames"), [
    (1, bytes([0, 128, 192])), (2, struct.pack("<3h", -32768, 0, 16384)), (4, struct.pack("<3i", -(2**31), 0, 2**30)),
    (3, b"".join(v.to_bytes(3, "little", signed=True) for v in (-(2**23), 0, 2**22))),
])  # fmt: skip
def test_integers_of_every_width_have_one_full_scale(tmp_path, width, frames):
    assert read_sound(raw(tmp_path / "x.wav", width, frames))[0].tolist() == [[-1.0, 0.0, 0.5]]


def test_channels_come_first(tmp_path):
    sound, _ = read_sound(raw(tmp_path / "x.wav", 2, np.array([1, 2, 3, 4], "<i2").tobytes(), channels=2))
    assert (sound * 32768).tolist() == [[1, 3], [2, 4]]


def test_other_files_need_soundfile_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    head = b"WAVE" + b"fmt " + struct.pack("<IHHIIHH", 16, 3, 1, 8000, 32_000, 4, 32) + b"data" + struct.pack("<I", 4) + b"\0" * 4
    (tmp_path / "floats.wav").write_bytes(b"RIFF" + struct.pack("<I", len(head)) + head)
    for name in ("x.flac", "floats.wav"):
        for read in (read_sound, duration):
            with pytest.raises(ModuleNotFoundError, match=rf"{name} is read by soundfile.*diffx\[audio\]"):
                read(tmp_path / name)


def test_broken_files_are_named(tmp_path):
    for content in (b"", b"RIFF", b"no sound at all, but text"):
        (tmp_path / "x.wav").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.wav is no WAV file"):
            read_sound(tmp_path / "x.wav")
    with pytest.raises(ValueError, match=r"expected sound \(C, L\)"):
        wav_bytes(torch.zeros(5), 8000)
