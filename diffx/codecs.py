"""Codecs: the maps between data space and the space a denoiser works in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from .recipes import recorded

__all__ = ["Codec", "Identity"]


@runtime_checkable
class Codec(Protocol):
    """Encodes data ``x`` ``(B, *)`` in [-1, 1] to latents ``z`` and back."""

    def encode(self, x: Tensor) -> Tensor:
        """Data to latents."""

    def decode(self, z: Tensor) -> Tensor:
        """Latents to data."""

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latent of one sample of ``data_shape``."""


@recorded
@dataclass(frozen=True)
class Identity:
    """No codec: the denoiser works on the data itself."""

    def encode(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return ``z``."""
        return z

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Return ``data_shape``."""
        return tuple(data_shape)
