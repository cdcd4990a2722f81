"""Distances between sounds, and what sets of sounds are compared by. Nothing here needs a pretrained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio import STFT, mel_bank
from ..recipes import recorded

__all__ = ["LogMel", "SpectralDistance", "log_spectral_distance", "multi_resolution_stft", "si_sdr", "spectral_convergence"]


def log_spectral_distance(x: Tensor, y: Tensor, *, n_fft: int = 512, hop: int = 128, floor: float = 1e-4) -> Tensor:
    """Mean absolute difference of natural-log magnitudes, (B,).

    Magnitudes below ``floor`` count as the floor. With a low one the figure is ruled by silent bands: noise nobody hears costs more than a
    wrong note. Sounds are taken up to a whole number of hops.

    Args:
        x: (B, C, L).
        y: the other sounds, of one shape.
        n_fft: of the transform, in samples.
        hop: samples between columns.
        floor: smallest magnitude told apart; 1 is that of a sine of amplitude 1.
    """
    a, b = (STFT(n_fft, hop)(_whole(sound, hop)).abs().clamp_min(floor).log() for sound in (x, y))
    return (a - b).abs().flatten(1).mean(1)


def spectral_convergence(x: Tensor, y: Tensor, *, n_fft: int = 512, hop: int = 128) -> Tensor:
    """``| |X| - |Y| | / |Y|`` (B,), Frobenius norms of short-time magnitudes; 0 for equal ones."""
    a, b = (STFT(n_fft, hop)(_whole(sound, hop)).abs().flatten(1) for sound in (x, y))
    return (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)


def multi_resolution_stft(x: Tensor, y: Tensor, *, sizes: Sequence[int] = (512, 1024, 2048)) -> Tensor:
    """Spectral convergence plus the log distance, averaged over windows (Yamamoto et al. 2020, arXiv:1910.11480, eq. 4 to 6); (B,).

    Args:
        x: (B, C, L), longer than the largest window.
        y: the reference, of one shape.
        sizes: windows in samples; hops are a quarter.
    """
    parts = [
        spectral_convergence(x, y, n_fft=size, hop=size // 4) + log_spectral_distance(x, y, n_fft=size, hop=size // 4) for size in sizes
    ]
    return torch.stack(parts).mean(0)


@recorded
@dataclass(frozen=True)
class SpectralDistance:
    """`multi_resolution_stft` with chosen windows, as an object that recipes can name: a loss for autoencoders of sound.

    Args:
        sizes: windows in samples.
    """

    sizes: Sequence[int] = (512, 1024, 2048)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance (B,) of sounds (B, C, L)."""
        return multi_resolution_stft(y, x, sizes=self.sizes)


def si_sdr(x: Tensor, y: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of ``x`` against the reference ``y`` (Le Roux et al. 2019, eq. 5); (B,).

    ``10 log10(|a y|^2 / |a y - x|^2)`` with the best factor a, at most 120; means are taken away first. Phase counts: a sound that begins
    a moment later scores like noise.

    Raises:
        ValueError: shapes differ, or a reference is silent.
    """
    if x.shape != y.shape:
        raise ValueError(f"the sounds must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (sound.double() - sound.double().mean(-1, keepdim=True) for sound in (x, y))
    x, y = x.flatten(1), y.flatten(1)
    power = y.square().sum(1)
    if not (power > 0).all():
        raise ValueError("a silent reference has no signal-to-distortion ratio; leave it out")
    target = ((x * y).sum(1) / power)[:, None] * y
    wrong = (target - x).square().sum(1)
    signal = target.square().sum(1).clamp_min(1e-30)
    return 10 * (signal / torch.maximum(wrong, 1e-12 * signal)).log10()


class LogMel:
    """Means and standard deviations over time of log-mel magnitudes: (B, C, L) to (B, 2 C bands).

    The Frechet distance of these is reported as ``frechet_mel``. It is not FAD, whose features come from a trained network (VGGish).

    Args:
        rate: samples per second.
        bands: mel bands up to half the rate.
        n_fft, hop: of the transform, in samples.
        floor: smallest magnitude told apart.
    """

    name = "mel"

    def __init__(self, rate: int, *, bands: int = 32, n_fft: int = 512, hop: int = 128, floor: float = 1e-3) -> None:
        self.rate, self.bands, self.stft, self.floor = rate, bands, STFT(n_fft, hop), floor

    def __call__(self, x: Tensor) -> Tensor:
        """Features of sounds ``x`` (B, C, L)."""
        bank = mel_bank(self.stft.bins, self.bands, self.rate).to(x.device)
        mel = (bank @ self.stft(_whole(x.float(), self.stft.hop)).abs()).clamp_min(self.floor).log()
        return torch.cat([mel.mean(-1), mel.std(-1)], -1).flatten(1)


def _whole(x: Tensor, hop: int) -> Tensor:
    """The sound up to its last whole hop."""
    return x[..., : x.shape[-1] // hop * hop]
