"""Tokenizers: codecs whose latents are integers, one code of a finite codebook per place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .recipes import recorded

__all__ = ["PixelLevels", "Tokenizer", "check_ids"]


@runtime_checkable
class Tokenizer(Protocol):
    """A codec between data ``(B, C, H, W)`` in [-1, 1] and ids ``(B, h, w)``, int64 in [0, codebook_size)."""

    codebook_size: int

    def encode(self, x: Tensor) -> Tensor:
        """Data to ids."""

    def decode(self, z: Tensor) -> Tensor:
        """Ids to data."""

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Grid ``(h, w)`` of the ids of one sample of ``data_shape``."""


def check_ids(ids: Tensor, size: int) -> None:
    """Look whether ids are integers in [0, size). Values are looked at on the CPU only: a GPU would have to be waited for.

    Raises:
        ValueError: they are not, with what was found.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers, got {ids.dtype}; encode data with a tokenizer first")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"ids must lie in [0, {size}), got {low if low < 0 else high}; the tokenizer's codebook and the network's differ")


@recorded
@dataclass(frozen=True)
class PixelLevels:
    """Every pixel is a token: its grey level on an even scale from -1 to 1. Nothing is lost for data of that many levels.

    Args:
        levels: codebook size, at least 2; 17 for `diffx.data.Digits`.

    Raises:
        ValueError: fewer than two levels.
    """

    levels: int = 17

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    @property
    def codebook_size(self) -> int:
        """Number of levels."""
        return self.levels

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, 1, H, W)`` to the nearest levels ``(B, H, W)``.

        Raises:
            ValueError: pictures with more than one channel.
        """
        self.shape(x.shape[1:])
        return ((x[:, 0] + 1) * ((self.levels - 1) / 2)).round().long().clamp(0, self.levels - 1)

    def decode(self, z: Tensor) -> Tensor:
        """Levels ``(B, H, W)`` to pictures ``(B, 1, H, W)``.

        Raises:
            ValueError: ids outside the codebook.
        """
        check_ids(z, self.levels)
        return (z.float() * (2 / (self.levels - 1)) - 1)[:, None]

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(1, H, W)`` to ``(H, W)``."""
        if len(data_shape) != 3 or data_shape[0] != 1:
            raise ValueError(f"levels of pixels are tokens of pictures with one channel, (1, H, W); got {tuple(data_shape)}")
        return tuple(data_shape[1:])
