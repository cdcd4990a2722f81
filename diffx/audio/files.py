"""Sound files: WAV with integer samples by the standard library, everything else by soundfile where it is installed.

Nothing here resamples, mixes or scales: what a file says is what is given, integers divided by their full scale.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["SUFFIXES", "Recording", "duration", "read_sound", "wav_bytes", "write_wav"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".wav")
PCM: dict[int, Any] = {1: np.uint8, 2: "<i2", 4: "<i4"}  # bytes a sample -> type


class Recording(NamedTuple):
    """What the head of a sound file says.

    Attributes:
        rate: samples per second.
        channels: number of channels.
        frames: sample times.
    """

    rate: int
    channels: int
    frames: int


def duration(path: str | Path) -> Recording:
    """Read the head of a sound file.

    Raises:
        ModuleNotFoundError: the file needs soundfile, which is not installed.
        ValueError: it is no sound file.
    """
    if (opened := _opened(path)) is not None:
        with opened as file:
            return Recording(file.getframerate(), file.getnchannels(), file.getnframes())
    with _soundfile(path) as file:
        return Recording(file.samplerate, file.channels, file.frames)


def read_sound(path: str | Path, start: int = 0, frames: int = -1) -> tuple[Tensor, int]:
    """Read a sound file, or a part of it.

    Args:
        path: the file. WAV with 8, 16, 24 or 32 bit integers needs nothing; FLAC, MP3, OGG, AIFF and WAV with floats need soundfile.
        start: first sample time.
        frames: how many; -1 = to the end. Past the end there is less.

    Returns:
        (sound (C, L) float32, samples per second). Integers are divided by 2^15 (16 bit), or their own full scale; floats come as they are.

    Raises:
        ModuleNotFoundError: the file needs soundfile, which is not installed.
        ValueError: it is no sound file.
    """
    if (opened := _opened(path)) is not None:
        with opened as file:
            file.setpos(min(start, file.getnframes()))
            data = file.readframes(file.getnframes() if frames < 0 else frames)
            values = _floats(data, file.getsampwidth()).reshape(-1, file.getnchannels())
            return torch.from_numpy(np.ascontiguousarray(values.T)), file.getframerate()
    with _soundfile(path) as file:
        file.seek(min(start, file.frames))
        return torch.from_numpy(np.ascontiguousarray(file.read(frames, dtype="float32", always_2d=True).T)), file.samplerate


def wav_bytes(x: Tensor, rate: int) -> bytes:
    """Encode sound ``(C, L)`` in [-1, 1] as a WAV file of 16 bit; what lies outside is clipped, NaN is silence.

    Raises:
        ValueError: not ``(C, L)``, or a rate below 1.
    """
    if x.ndim != 2 or rate < 1:
        raise ValueError(f"expected sound (C, L) and a rate of at least 1, got {tuple(x.shape)} and {rate}")
    values = (x.detach().float().nan_to_num(0.0).cpu() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(x))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.T.contiguous().numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def write_wav(x: Tensor, path: str | Path, rate: int) -> Path:
    """Write sound ``(C, L)`` as a WAV file, see `wav_bytes`; give back the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(x, rate))
    return path


def _floats(data: bytes, width: int) -> np.ndarray:
    """Little-endian integers of ``width`` bytes as float32 in [-1, 1)."""
    if width == 3:  # the three bytes become the upper ones of four
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = np.pad(triples, ((0, 0), (1, 0))).view("<i4").reshape(-1)
        return (values / 2.0**31).astype(np.float32)
    values = np.frombuffer(data, PCM[width])
    return ((values.astype(np.float32) - 128) / 128) if width == 1 else (values / 2.0 ** (8 * width - 1)).astype(np.float32)


def _opened(path: str | Path) -> wave.Wave_read | None:
    """The file for the standard library, or None where it cannot read it."""
    if Path(path).suffix.lower() != ".wav":
        return None
    try:
        return wave.open(str(path), "rb")
    except wave.Error as error:
        if "unknown format" in str(error):  # floats, or compressed
            return None
        raise ValueError(f"{path} is no WAV file ({error})") from error
    except EOFError as error:
        raise ValueError(f"{path} is no WAV file, it ends too early") from error


def _soundfile(path: str | Path) -> Any:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is read by soundfile, which is not there; pip install 'diffx[audio]', or convert it to WAV of 16 bit"
        ) from error
    try:
        return soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is no sound file ({error})") from error
