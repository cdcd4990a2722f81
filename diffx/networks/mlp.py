"""A residual multilayer perceptron: the denoiser for points, curves and tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, Conditions
from .embedders import LabelEmbedding, NoiseEmbedding, VectorEmbedding, with_conditions
from .layers import zero
from .units import Unit

__all__ = ["MLP"]


@recorded
class MLP(nn.Module):
    """Denoiser for low-dimensional data with label and vector conditions; a fresh one returns exactly zero.

    Args:
        features: numbers per sample; data ``(B, C, *)`` is flattened and given its shape back, so this is the product of all but the batch.
        width: width of the hidden layers and of the embedding.
        depth: residual layers.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
    """

    def __init__(
        self, features: int = 2, width: int = 128, depth: int = 3, classes: int = 0, vectors: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.conditions = Conditions(classes, dict(vectors or {}))
        self.noise = NoiseEmbedding(width, width)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, width) for name, length in self.conditions.vectors.items())
        self.stem = nn.Linear(features, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, features)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Zero what closes each layer and the head; everything else keeps torch's draw."""
        zero(self.head, *(layer.second for layer in self.modules() if isinstance(layer, Layer)))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled data ``(B, C, *)`` at noise coordinates ``(B,)`` to the same shape.

        Raises:
            ValueError: x does not hold ``features`` numbers per sample, or conditions the network does not know.
        """
        cond = NO_COND if cond is None else cond
        if x.ndim < 2 or x[0].numel() != self.features:
            raise ValueError(f"x must hold {self.features} numbers per sample, got shape {tuple(x.shape)}")
        if noise.shape != x.shape[:1]:
            raise ValueError(f"noise must hold one level per sample, ({len(x)},), got {tuple(noise.shape)}")
        self.conditions.check(x, cond)
        emb, h = (
            F.silu(with_conditions(self.noise(noise), cond, self.label, self.vectors)),
            self.stem(x.flatten(1).to(self.stem.weight.dtype)),
        )
        for layer in self.layers:
            h = layer(h, emb)
        return self.head(F.silu(self.norm(h))).view_as(x)


class Layer(Unit):
    """Residual layer: norm, scale and shift by the embedding, SiLU between two linear maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        scale, shift = self.modulation(emb).chunk(2, 1)
        return h + self.second(F.silu(self.first(torch.addcmul(shift, self.norm(h), 1 + scale))))
