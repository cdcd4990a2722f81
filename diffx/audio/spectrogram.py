"""`Spectrogram`: the codec between sound and pictures of its spectrum, by which any technique for pictures makes sound."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..recipes import recipe_of, recorded
from ..tensors import expand
from .spectra import STFT, from_mel, griffin_lim, mel_bank

__all__ = ["Spectrogram", "open_spectrogram", "save_spectrogram"]

KEY = "diffx.spectrogram"  # of the text chunk in a PNG
PEAK = 0.9  # of sound whose loudness a picture does not tell


@recorded
@dataclass(frozen=True)
class Spectrogram:
    """Sound ``(B, C, L)`` as pictures ``(B, C, H, W)`` of its short-time magnitudes, and back by Griffin and Lim's search for phases.

    Time runs right, one column per ``hop``; frequency upwards. A magnitude m becomes the grey level ``1 - 2 (m / reference)^power``:
    white is silence. Of the sound only phases are lost, and what is louder than the reference.

    Args:
        sample_rate: samples per second.
        n_fft, hop, window: of the transform in samples, see `STFT`; lengths must be multiples of ``hop``.
        mels: mel bands; None = the ``n_fft // 2 + 1`` frequencies themselves.
        low, high: range of the mel bands in Hz; ``high`` None = half the rate.
        power: exponent of the grey level, in (0, 1]; small ones show what is faint.
        reference: magnitude that is black (1 is a sine of full scale); None = each clip's own largest, whose loudness is then lost: what
            comes back has a peak of .9.
        mean, std: of the grey levels over the training data, which `encode` takes away and divides by.
        fold: squares of this side become channels, so that networks run on fewer and wider places: ``(C fold^2, H / fold, W / fold)``.
        iterations, momentum: of `griffin_lim`.

    Raises:
        ValueError: numbers out of range.
    """

    sample_rate: int
    n_fft: int
    hop: int
    window: int | None = None
    mels: int | None = None
    low: float = 0.0
    high: float | None = None
    power: float = 0.25
    reference: float | None = None
    mean: float = 0.0
    std: float = 1.0
    fold: int = 1
    iterations: int = 32
    momentum: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1 or not self.std > 0 or self.fold < 1 or (self.reference is not None and not self.reference > 0):
            raise ValueError(
                f"power must lie in (0, 1], std and reference be positive and fold at least 1; got {self.power}, {self.std}, "
                f"{self.reference} and {self.fold}"
            )
        if self.rows % self.fold:
            raise ValueError(f"fold={self.fold} does not divide the {self.rows} rows")
        STFT(self.n_fft, self.hop, self.window)

    @classmethod
    def riffusion(cls, **options: Any) -> Spectrogram:
        """The constants of Riffusion (Forsgren & Martiros 2022): 44.1 kHz, 10 ms a column, 512 mel bands to 10 kHz, power 1/4.

        Theirs has a column more at the end; here L samples have L / 441. 225,792 samples make 512 x 512 pixels.
        """
        return cls(**{"sample_rate": 44_100, "n_fft": 17_640, "hop": 441, "window": 4410, "mels": 512, "high": 10_000.0, **options})

    @property
    def stft(self) -> STFT:
        """The transform."""
        return STFT(self.n_fft, self.hop, self.window)

    @property
    def rows(self) -> int:
        """Rows of a picture."""
        return self.mels or self.n_fft // 2 + 1

    def encode(self, x: Tensor) -> Tensor:
        """Sound ``(B, C, L)`` to standardised, folded pictures in float32.

        Raises:
            ValueError: a length that is no multiple of the hop, or of hop and fold, or too short.
        """
        self.shape(x.shape[1:])
        levels = (self.picture(self.magnitude(x)) - self.mean) / self.std
        return rearrange(levels, "b c (h p) (w q) -> b (c p q) h w", p=self.fold, q=self.fold)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures as `encode` gives them to sound in float32; levels beyond black and white are clipped."""
        levels = rearrange(z.float(), "b (c p q) h w -> b c (h p) (w q)", p=self.fold, q=self.fold) * self.std + self.mean
        return self.sound(levels)

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(C, L)`` to ``(C fold^2, rows / fold, L / hop / fold)``.

        Raises:
            ValueError: see `encode`.
        """
        if len(data_shape) != 2:
            raise ValueError(f"the codec takes sounds (C, L), got {tuple(data_shape)}")
        channels, length = data_shape
        columns = self.stft.columns(length)
        if columns % self.fold:
            step = self.hop * self.fold
            raise ValueError(f"clips must be a multiple of hop x fold = {step} samples long, got {length}; "
                             f"the nearest valid length is {max(1, round(length / step)) * step}")  # fmt: skip
        return (channels * self.fold**2, self.rows // self.fold, columns // self.fold)

    # Between sound and pictures ---------------------------------------------------------------------------------------------------------

    def magnitude(self, x: Tensor) -> Tensor:
        """Magnitudes (B, C, rows, columns) of sound, lowest frequency first."""
        found = self.stft(x.float()).abs()
        return found if self.mels is None else self._bank(x) @ found

    def picture(self, magnitude: Tensor) -> Tensor:
        """Magnitudes to grey levels (B, C, rows, columns) in [-1, 1], highest frequency first; silence is white."""
        share = (magnitude / self._black(magnitude)).clamp(0, 1)
        return 1 - 2 * share.flip(2) ** self.power

    def level(self, picture: Tensor) -> Tensor:
        """Grey levels to magnitudes, lowest frequency first: the inverse of `picture`; black is 1 where the reference is unknown."""
        return ((1 - picture.clamp(-1, 1)) / 2).flip(2) ** (1 / self.power) * (self.reference or 1.0)

    def sound(self, picture: Tensor) -> Tensor:
        """Sound (B, C, L) of pictures (B, C, rows, columns) in [-1, 1]."""
        magnitude = self.level(picture)
        if self.mels is not None:
            magnitude = from_mel(magnitude, self._bank(picture))
        x = griffin_lim(magnitude, self.stft, iterations=self.iterations, momentum=self.momentum)
        if self.reference is not None:
            return x
        return x * (PEAK / expand(x.abs().amax((1, 2)).clamp_min(1e-9), x)) * expand((magnitude.amax((1, 2, 3)) > 0).float(), x)

    def _bank(self, like: Tensor) -> Tensor:
        assert self.mels is not None
        return mel_bank(self.n_fft // 2 + 1, self.mels, self.sample_rate, self.low, self.high).to(like.device)

    def _black(self, magnitude: Tensor) -> Tensor | float:
        if self.reference is not None:
            return self.reference
        largest = magnitude.amax((1, 2, 3))
        return expand(torch.where(largest > 0, largest, 1.0), magnitude)


def save_spectrogram(picture: Tensor, path: str | Path, codec: Spectrogram) -> Path:
    """Write a picture (C, H, W) in [-1, 1] as PNG of 8 bits, with all constants of the codec in a text chunk, as JSON.

    One channel is grey; two are green and blue, and red is empty, as Riffusion does it.

    Raises:
        ValueError: another number of channels or rows.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if picture.ndim != 3 or picture.shape[0] not in (1, 2) or picture.shape[1] != codec.rows:
        raise ValueError(f"expected a picture (1 or 2, {codec.rows}, W), got {tuple(picture.shape)}")
    values = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    told = PngInfo()
    told.add_text(KEY, json.dumps(recipe_of(codec)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values[0] if len(values) == 1 else np.stack([np.zeros_like(values[0]), *values], -1)
    Image.fromarray(image).save(path, "PNG", pnginfo=told)
    return path


def open_spectrogram(path: str | Path) -> tuple[Tensor, Spectrogram]:
    """Read what `save_spectrogram` wrote: (picture (C, H, W) in [-1, 1], its codec).

    Raises:
        ValueError: the file says nothing of a spectrogram.
    """
    from PIL import Image

    with Image.open(path) as file:
        told, pixels = getattr(file, "text", {}).get(KEY), np.asarray(file)
    if told is None:
        raise ValueError(f"{path} has no text chunk {KEY!r} that says what its pixels mean; build the codec yourself, as Spectrogram(...)")
    constants = {name: value for name, value in json.loads(told).items() if name != "_target_"}
    channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels[..., 1:], -1, 0)
    return torch.from_numpy(channels.astype(np.float32)) / 127.5 - 1, Spectrogram(**constants)
