"""Pictures as conditions: the codes of a tokenizer, e.g. the coarse tokens that a transformer of fine ones is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..recipes import recorded
from ..resizing import shrink
from ..tokenizers import Tokenizer, check_ids
from .encoder import Encoded, Encoder
from .learned import Layer

__all__ = ["Codes"]


@recorded
class Codes(Encoder):
    """A picture as the codes that a tokenizer has for it, embedded and trained along: what Muse's second transformer is told.

    Codes and places have learned vectors, which pass through a small transformer (Chang et al. 2023, Muse, arXiv:2301.00704); pooled is
    their mean. The tokenizer is frozen.

    Args:
        codec: see `diffx.tokenizers.Tokenizer`.
        shape: ``(C, H, W)`` of the pictures it was made for.
        width: of the states.
        depth: number of transformer layers.
        heads: attention heads; must divide ``width``.
        reads: name of the batch column: pictures (B, C, H, W) in [-1, 1] of that size, or of a multiple of it, which is shrunk.

    Raises:
        ValueError: heads that do not divide the width; when encoding, pictures of another form or size.
    """

    def __init__(
        self, codec: Tokenizer, shape: Sequence[int], width: int = 64, depth: int = 1, heads: int = 4, *, reads: str = "x"
    ) -> None:
        super().__init__(reads=reads, trainable=True)
        if width % heads:
            raise ValueError(f"heads = {heads} does not divide width = {width}")
        self.dim = self.pooled_dim = width
        self.codec, self.shape, self.grid = codec, tuple(shape), tuple(codec.shape(shape))
        if isinstance(codec, nn.Module):
            codec.requires_grad_(False).eval()
        self.table = nn.Embedding(codec.codebook_size, width)
        self.positions = nn.Embedding(self.grid[0] * self.grid[1], width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.positions.weight, std=0.3)

    def train(self, mode: bool = True) -> Codes:
        """As in torch; the tokenizer stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.codec, nn.Module):
            self.codec.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.table.weight.device

    def settings(self) -> Mapping[str, Any]:
        return {"shape": self.shape, "heads": [layer.heads for layer in self.layers.children()]}

    def encode(self, inputs: Tensor) -> Encoded:
        """Encode pictures."""
        return self(inputs)

    def forward(self, inputs: Tensor) -> Encoded:
        """See `encode`."""
        with torch.no_grad():
            ids = self.codec.encode(self._sized(inputs)).flatten(1)
        check_ids(ids, self.table.num_embeddings)
        mask = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
        x = self.table(ids) + self.positions.weight
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return Encoded(x, mask, x.mean(1))

    def _sized(self, x: Tensor) -> Tensor:
        fits = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == self.shape[0]
        factors = [side // own for side, own in zip(x.shape[2:], self.shape[1:], strict=True)] if fits else [0]
        if min(factors) < 1 or [own * by for own, by in zip(self.shape[1:], factors, strict=True)] != list(x.shape[2:]):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"Codes looks at pictures (B, {', '.join(map(str, self.shape))}), or of a multiple of that size; got {got}")
        return shrink(x.to(self.device), factors)
