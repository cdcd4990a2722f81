"""Vectors as a source: embeddings that the data brings along, as tokens and as a pooled vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..recipes import recorded
from .encoder import Encoded, Encoder

__all__ = ["VectorTokens"]


@recorded
class VectorTokens(Encoder):
    """Gives a vector to attention as a few tokens, and as it is (Ramesh et al. 2022, arXiv:2204.06125: four tokens of a CLIP embedding).

    Only its direction counts, as for embeddings that are compared by cosine: vectors are brought to the length sqrt(``features``), entries
    of order one. The map from vector to tokens is trained along with the denoiser.

    Args:
        features: length of the vector.
        width: of a token.
        count: number of tokens.
        reads: name of the batch column ``(B, features)``.

    Raises:
        ValueError: no token; when encoding, a column of another shape.
    """

    def __init__(self, features: int, width: int = 64, count: int = 4, *, reads: str = "embedding") -> None:
        super().__init__(reads=reads, trainable=True)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.dim, self.pooled_dim, self.count = width, features, count
        self.map = nn.Linear(features, count * width)

    def settings(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def encode(self, inputs: Tensor) -> Encoded:
        """Encode vectors (B, features)."""
        return self(inputs)

    def forward(self, inputs: Tensor) -> Encoded:
        """See `encode`."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] != self.pooled_dim:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"VectorTokens reads vectors (B, {self.pooled_dim}) from {self.reads!r}, got {got}")
        vector = F.normalize(inputs.to(self.map.weight), dim=1) * self.pooled_dim**0.5
        tokens = self.map(vector).unflatten(1, (self.count, self.dim))
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), vector)
