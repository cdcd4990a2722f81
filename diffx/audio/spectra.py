"""Short-time spectra and the way back: STFT and its inverse, the mel bank, phases by Griffin & Lim."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng

__all__ = ["STFT", "from_mel", "griffin_lim", "mel_bank", "mel_scale"]


@dataclass(frozen=True)
class STFT:
    """Short-time Fourier transform with a Hann window, one column per ``hop`` samples: L samples give exactly L / hop columns.

    Borders are mirrored. Column k looks at ``window`` samples around the middle of its hop. Values are scaled so that the magnitude of a
    sine is its amplitude.

    Args:
        n_fft: samples transformed, more than ``window`` = zeros around it; gives ``n_fft // 2 + 1`` frequencies.
        hop: samples between columns.
        window: samples under the window; None = ``n_fft``.

    Raises:
        ValueError: ``hop <= window / 2 <= n_fft / 2`` does not hold, without which there is no way back.
    """

    n_fft: int
    hop: int
    window: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= 2 * self.hop <= self.width <= self.n_fft:
            raise ValueError(f"hop, window and n_fft must keep 2 hop <= window <= n_fft, got {self.hop}, {self.width} and {self.n_fft}")

    @property
    def width(self) -> int:
        """Samples under the window."""
        return self.window or self.n_fft

    @property
    def bins(self) -> int:
        """Number of frequencies, 0 and half the sampling rate included."""
        return self.n_fft // 2 + 1

    @property
    def shortest(self) -> int:
        """Length in samples that a clip needs at least."""
        return self.hop * (self._pads[1] // self.hop + 1)

    @property
    def _pads(self) -> tuple[int, int]:
        left = (self.n_fft - self.hop) // 2
        return left, self.n_fft - self.hop - left

    def columns(self, length: int) -> int:
        """Number of columns of ``length`` samples.

        Raises:
            ValueError: a length that is no multiple of the hop, or too short to be mirrored at its borders, with the nearest that serves.
        """
        if length % self.hop or length < self.shortest:
            nearest = max(self.shortest, int(length / self.hop + 0.5) * self.hop)
            raise ValueError(
                f"clips must be a multiple of hop={self.hop} and at least {self.shortest} samples long, got {length}; "
                f"the nearest valid length is {nearest}"
            )
        return length // self.hop

    def __call__(self, x: Tensor) -> Tensor:
        """Sound ``(*, L)`` to complex spectra ``(*, bins, L / hop)``.

        Raises:
            ValueError: see `columns`.
        """
        self.columns(x.shape[-1])
        flat = F.pad(x.reshape(-1, 1, x.shape[-1]), self._pads, mode="reflect")[:, 0]
        window = _window(self.width, x.device, x.dtype)
        spectra = torch.stft(flat, self.n_fft, self.hop, self.width, window, center=False, return_complex=True)
        return (spectra * (2 / window.sum())).reshape(*x.shape[:-1], self.bins, -1)

    def inverse(self, spectra: Tensor) -> Tensor:
        """Complex spectra ``(*, bins, T)`` to sound ``(*, T hop)``, the nearest in least squares (Griffin & Lim 1984, eq. 6)."""
        flat = spectra.reshape(-1, *spectra.shape[-2:])
        window = _window(self.width, flat.device, flat.real.dtype)
        left = (self.n_fft - self.width) // 2
        padded = F.pad(window, (left, self.n_fft - self.width - left))
        frames = torch.fft.irfft(flat, self.n_fft, dim=1) * (window.sum() / 2)
        total = self._overlapped(frames * padded[:, None])
        weight = self._overlapped((padded.square()[:, None]).expand(-1, flat.shape[-1])[None])
        return (total / weight).reshape(*spectra.shape[:-2], -1)

    def _overlapped(self, frames: Tensor) -> Tensor:
        """Sum frames (N, n_fft, T) at their places and cut the mirrored borders: (N, T hop)."""
        length = (frames.shape[-1] - 1) * self.hop + self.n_fft
        summed = F.fold(frames, (1, length), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        return summed[:, self._pads[0] : length - self._pads[1]]


@cache
def _window(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(width, device=device, dtype=dtype)


def mel_scale(frequency: float) -> float:
    """Hz to mel, ``2595 log10(1 + f / 700)`` (HTK)."""
    return 2595 * math.log10(1 + frequency / 700)


@cache
def mel_bank(bins: int, bands: int, rate: float, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangles of height 1 whose corners are equally spaced in mel, (bands, bins) float32: ``bank @ magnitudes``.

    Args:
        bins: number of frequencies of the spectrum, from 0 to ``rate / 2``.
        bands: number of triangles.
        rate: samples per second.
        low: first corner in Hz.
        high: last corner; None = ``rate / 2``.

    Raises:
        ValueError: an empty range, or a band so narrow that no frequency falls into it.
    """
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2:
        raise ValueError(f"the mel bank needs 0 <= low < high <= {rate / 2}, got {low} and {high}")
    ends = torch.linspace(mel_scale(low), mel_scale(high), bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (ends / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp_min(0)
    if empty := int((bank.amax(1) <= 0).sum()):
        raise ValueError(f"{empty} of {bands} mel bands hold no frequency of {bins}; take fewer bands or a larger n_fft")
    return bank.float()


def from_mel(mel: Tensor, bank: Tensor, rounds: int = 50) -> Tensor:
    """Magnitudes (*, bins, T), not negative, that have given mel magnitudes (*, bands, T) in least squares.

    The exact solution of least norm, clamped, is where multiplicative updates begin (Lee & Seung 2000), which keep what is not negative so.

    Args:
        mel: (*, bands, T).
        bank: (bands, bins), see `mel_bank`.
        rounds: updates; clamping alone leaves some percent of error where single lines stand out.
    """
    found = (_pseudo_inverse(bank) @ mel).clamp_min(0)
    wanted = bank.T @ mel
    for _ in range(rounds):
        found = found * wanted / (bank.T @ (bank @ found)).clamp_min(1e-12)
    return found


@cache
def _pseudo_inverse(bank: Tensor) -> Tensor:
    wide = bank.double()
    products = wide @ wide.T + 1e-9 * torch.eye(len(wide), dtype=wide.dtype)  # narrow bands may share their only frequency
    return torch.linalg.solve(products, wide).T.float()  # far cheaper than singular values


def griffin_lim(magnitude: Tensor, stft: STFT, *, iterations: int = 32, momentum: float = 0.99, seed: int = 0) -> Tensor:
    """Sound whose short-time magnitudes are as near as possible to given ones (Griffin & Lim 1984; with momentum Perraudin et al. 2013).

    Random phases to begin with; then, in turn, the sound of these phases and the phases of that sound, minus ``momentum / (1 + momentum)``
    of the spectrum before. The first phases are keyed by ``seed`` and equal for all clips, so the answer is a function of the magnitude.

    Args:
        magnitude: (*, bins, T), not negative.
        stft: the transform that the magnitudes are of.
        iterations: rounds.
        momentum: in [0, 1); 0 is the original method.
        seed: of the first phases.

    Returns:
        (*, T hop).

    Raises:
        ValueError: momentum out of range or iterations < 1.
    """
    if not 0 <= momentum < 1 or iterations < 1:
        raise ValueError(f"momentum must lie in [0, 1) and iterations be at least 1, got {momentum} and {iterations}")
    angle = 2 * math.pi * rng.rand(magnitude.shape[-2:], rng.generator(seed, "griffin-lim"), device=magnitude.device)
    phase = torch.polar(torch.ones_like(angle), angle).to(torch.promote_types(magnitude.dtype, torch.complex64))
    before = torch.zeros_like(magnitude, dtype=phase.dtype)
    share = momentum / (1 + momentum)
    for _ in range(iterations):
        spectra = stft(stft.inverse(magnitude * phase))
        phase = torch.sgn(spectra - share * before)
        before = spectra
    return stft.inverse(magnitude * phase)
