"""Embeddings of noise level, label and vectors: what modulates every block of a network.

Null conditions: a hidden or absent label adds nothing, and a hidden or absent vector is the zero vector. A learned null row would only
repeat the bias of the noise embedding that it is added to. A condition that is hidden for every sample thus equals one that is not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..tensors import sinusoid

__all__ = ["Exact", "FourierEmbedding", "LabelEmbedding", "NoiseEmbedding", "VectorEmbedding", "one_hot", "sinusoid", "with_conditions"]


class Exact(nn.Module):
    """Base of layers whose buffers stay in float32 whatever the network is cast to: large angles in bfloat16 would turn waves at random."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Exact:
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in exact.items():
            moved = self._buffers[name]
            if before is not None and moved is not None and moved.dtype != before.dtype:
                self._buffers[name] = before.to(moved.device)
        return self


class FourierEmbedding(Exact):
    """Embed ``(B,)`` as ``(B, width)`` by cosines, then sines, of fixed normal frequencies (Tancik et al. 2020, arXiv:2006.10739).

    Args:
        width: even number of outputs.
        scale: standard deviation of the frequencies, in cycles per unit of the noise coordinate.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2) * scale)

    def forward(self, noise: Tensor) -> Tensor:
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        angle = 2 * math.pi * noise[:, None] * self.frequencies.to(noise.dtype)
        return torch.cat([angle.cos(), angle.sin()], 1)


class NoiseEmbedding(nn.Module):
    """Sinusoid, linear, SiLU, linear: ``(B,)`` to ``(B, emb)``.

    Args:
        width: waves of the sinusoid.
        emb: outputs.
    """

    def __init__(self, width: int, emb: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, emb)
        self.second = nn.Linear(emb, emb)

    def forward(self, noise: Tensor) -> Tensor:
        waves = sinusoid(noise, self.width).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(waves)))


class LabelEmbedding(nn.Module):
    """One learned row per class; the null label (index ``classes``, hidden or absent) adds zero.

    Args:
        classes: number of classes K; labels are 0 .. K - 1, and K is the null label.
        emb: outputs.
    """

    def __init__(self, classes: int, emb: int) -> None:
        super().__init__()
        self.classes, self.rows = classes, nn.Embedding(classes, emb)

    def forward(self, cond: Cond, batch: int) -> Tensor:
        """Return ``(B, emb)``."""
        if cond.label is None:
            return self.rows.weight.new_zeros(batch, self.rows.embedding_dim)
        visible = cond.label != self.classes
        rows = self.rows(torch.where(visible, cond.label, 0))
        if "label" in cond.keep:
            visible = visible & cond.keep["label"]
        return torch.where(visible[:, None], rows, 0.0)


class VectorEmbedding(nn.Module):
    """Linear, SiLU, linear for the vector ``name``; hidden or absent, it is the zero vector. Give numbers of order one.

    Args:
        name: which vector of a `Cond`.
        width: its length D.
        emb: outputs.
    """

    def __init__(self, name: str, width: int, emb: int) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.first = nn.Linear(width, emb)
        self.second = nn.Linear(emb, emb)

    def forward(self, cond: Cond, batch: int) -> Tensor:
        """Return ``(B, emb)``."""
        vector = visible_vector(cond, self.name)
        if vector is None:
            vector = self.first.weight.new_zeros(batch, self.width)
        return self.second(F.silu(self.first(vector.to(self.first.weight.dtype))))


def with_conditions(emb: Tensor, cond: Cond, label: nn.Module | None, vectors: Iterable[nn.Module]) -> Tensor:
    """The embedding ``(B, E)`` of the noise plus those of label and vectors, modules called with (cond, batch size)."""
    for part in (*([label] if label is not None else []), *vectors):
        emb = emb + part(cond, len(emb))
    return emb


def visible_vector(cond: Cond, name: str) -> Tensor | None:
    """The vector ``(B, D)`` with zeros where it is hidden; None when the bundle lacks it."""
    vector = cond.vectors.get(name)
    if vector is None or name not in cond.keep:
        return vector
    return torch.where(cond.keep[name][:, None], vector, 0.0)


def one_hot(cond: Cond, classes: int, noise: Tensor) -> Tensor:
    """One-hot labels ``(B, classes)`` of mean square one, for noise coordinates (B,); zeros where the label is hidden, absent or null."""
    rows = torch.arange(classes, device=noise.device)
    if cond.label is None:
        return torch.zeros(len(noise), classes, device=noise.device)
    chosen = cond.label[:, None] == rows
    if "label" in cond.keep:
        chosen = chosen & cond.keep["label"][:, None]
    return chosen * classes**0.5
