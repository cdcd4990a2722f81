"""Sounds as conditions: their spectrum on the mel scale, which a vocoder turns back into sound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..audio import STFT, mel_bank
from ..recipes import recorded
from .encoder import Encoded, Encoder

__all__ = ["Mel"]


@recorded
class Mel(Encoder):
    """The logarithm of mel magnitudes as tokens, one a column of the spectrogram; no weights, nothing pooled.

    Values are scaled to [0, 1]: 0 is ``floor`` and less, 1 is the magnitude of a sine of amplitude 1.

    Args:
        rate: samples per second.
        bands: number D of mel bands, up to half the rate.
        n_fft: window of the transform, in samples.
        hop: samples a token.
        floor: smallest magnitude told apart.
        reads: name of the batch column: sounds (B, 1, L) in [-1, 1], whose length ``hop`` divides.

    Raises:
        ValueError: more bands than the transform tells apart, a floor outside (0, 1); when encoding, sounds of another form or length.
    """

    def __init__(self, rate: int, *, bands: int = 80, n_fft: int = 1024, hop: int = 256, floor: float = 1e-5, reads: str = "x") -> None:
        super().__init__(reads=reads, trainable=False)
        if not 0 < floor < 1:
            raise ValueError(f"floor must lie in (0, 1), got {floor}")
        self.rate, self.floor, self.stft = rate, floor, STFT(n_fft, hop)
        self.dim, self.pooled_dim = bands, None
        self.register_buffer("bank", mel_bank(self.stft.bins, bands, rate), persistent=False)
        self.freeze()

    @property
    def device(self) -> torch.device:
        """Where the mel bank is."""
        return self.get_buffer("bank").device

    def settings(self) -> Mapping[str, Any]:
        return {"rate": self.rate, "bands": self.dim, "n_fft": self.stft.n_fft, "hop": self.stft.hop, "floor": self.floor}

    def encode(self, inputs: Tensor) -> Encoded:
        """Encode sounds (B, 1, L); (B, L / hop, bands) tokens. Gradients flow into the sounds."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 3 or inputs.shape[1] != 1:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"Mel listens to sounds of one channel (B, 1, L) in [-1, 1], got {got}")
        magnitude = self.stft(inputs[:, 0].to(self.device, torch.float32)).abs()
        mel = (self.get_buffer("bank") @ magnitude).clamp_min(self.floor).log()
        tokens = (1 - mel / math.log(self.floor)).transpose(1, 2)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), None)
