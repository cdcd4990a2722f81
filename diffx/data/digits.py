"""`Digits`: real handwritten digits that are always at hand."""

from __future__ import annotations

import numpy as np
import torch

from .. import rng
from ..recipes import recorded
from .arrays import Memory
from .module import DataModule

__all__ = ["Digits"]


@recorded
class Digits(DataModule):
    """The 1,797 handwritten digits that scikit-learn carries: float32 ``(1, 8, 8)`` in [-1, 1] with labels 0 to 9.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits". 1,500 are for training and 297 for validation. Entries near
    each other in the file are alike, so a fixed permutation parts it, the same for every seed.

    Args:
        batch_size: samples per rank and micro-batch.
        num_workers, seed: as in `DataModule`.
    """

    def __init__(self, batch_size: int = 64, *, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers=num_workers, seed=seed)

    def sources(self) -> tuple[Memory, Memory]:
        """Load and part the digits."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.from_numpy((digits.images / 8 - 1).astype(np.float32))[:, None]  # 17 levels, 0 to 16
        label = torch.from_numpy(digits.target.astype(np.int64))
        names = [str(digit) for digit in range(10)]
        train, val = rng.permutation(len(x), "digits").split([1500, len(x) - 1500])
        return (
            Memory(x[train], label[train], classes=10, class_names=names),
            Memory(x[val], label[val], classes=10, class_names=names),
        )
