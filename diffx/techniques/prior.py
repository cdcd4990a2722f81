"""A diffusion prior: what picture embedding belongs to a text (Ramesh et al. 2022, arXiv:2204.06125)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide
from ..module import Batch
from ..samplers import Sampler
from .edm import EDM

__all__ = ["Prior"]


class Prior(EDM):
    """Denoising of embeddings of pictures, told by their captions: the first half of unCLIP.

    The data are vectors of unit length, the batch's column ``name`` normalised. A decoder, any technique whose network is told such a
    vector, makes pictures of what the prior draws:

        told = decoder.condition(prior.fill({"text": texts}, seed=0))
        pictures = decoder.sample(len(texts), told, seed=0)

    Standardise the vectors by ``codec``, so that the noise levels mean what they mean for pictures. The paper predicts the clean vector
    with a plain square error: `PriorTransformer` under `X0Precond`.

    Args:
        denoiser: network with preconditioning over vectors ``(B, D)``.
        shape: ``(D,)``.
        name: of the batch column with the embeddings, ``(B, D)``.
        toward: vector of the condition that lives in the space of the embeddings, by which candidates are chosen.
        options: see `EDM`.

    Raises:
        ValueError: a shape with more than one axis.
    """

    def __init__(
        self, denoiser: Denoiser, *, shape: Sequence[int], name: str = "embedding", toward: str = "text_pooled", **options: Any
    ) -> None:
        super().__init__(denoiser=denoiser, shape=shape, **options)
        if len(self.shape) != 1:
            raise ValueError(f"a prior draws vectors, its shape is (length,); got {self.shape}")
        self.name, self.toward = name, toward

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """The pictures may have any size: their embeddings are what is learnt."""

    def embedding(self, batch: Batch) -> Tensor:
        """The embeddings (B, D) of a batch at unit length.

        Raises:
            ValueError: they are missing or of another length.
        """
        given = batch.get(self.name)
        if not isinstance(given, Tensor) or tuple(given.shape[1:]) != self.shape:
            got = tuple(given.shape) if isinstance(given, Tensor) else f"columns {sorted(batch)}"
            raise ValueError(f"a prior learns the embeddings {self.name!r} (B, {self.shape[0]}) of pictures, got {got}; name the column")
        return F.normalize(given, dim=1)

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`, of the embeddings."""
        return super().inputs({**batch, "x": self.embedding(batch)})

    def condition(self, batch: Batch) -> Cond:
        """As in `Gaussian`; the embedding itself is no condition."""
        return super().condition({name: column for name, column in batch.items() if name != self.name})

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None,
               candidates: int = 1) -> Tensor:  # fmt: skip
        """Embeddings ``(n, D)`` of unit length; arguments as in `Gaussian`.

        Of ``candidates`` the one with the largest product with the vector ``toward`` is taken (the paper draws two).

        Raises:
            ValueError: no candidates, or several where the condition has no such vector of length D.
        """
        aim = cond.vectors.get(self.toward)
        if candidates < 1 or (candidates > 1 and (aim is None or tuple(aim.shape[1:]) != self.shape)):
            raise ValueError(f"candidates must be at least 1, and choosing among several needs the vector {self.toward!r} of "
                             f"length {self.shape[0]}; got candidates = {candidates} and vectors {sorted(cond.vectors)}")  # fmt: skip
        start = int(torch.randint(2**62, ())) if seed is None else seed
        draw = partial(super().sample, n, cond, guidance=guidance, sampler=sampler, shape=shape, chunk=chunk)
        with self.drawing():
            drawn = torch.stack([F.normalize(draw(seed=start + k * rng.STRIDE), dim=1) for k in range(candidates)], 1)
            if aim is None or candidates == 1:
                return drawn[:, 0]
            best = (drawn @ aim.to(drawn)[:, :, None]).argmax(1)
            return drawn.take_along_dim(best[:, :, None], 1)[:, 0]

    def fill(self, batch: Batch, *, guidance: Any = 1.0, seed: int | None = None, **options: Any) -> dict[str, Any]:
        """A batch with drawn embeddings in place of true ones: what a decoder's ``condition`` reads. Options as in `sample`.

        Raises:
            ValueError: the batch tells the prior nothing, so its size is unknown.
        """
        with torch.no_grad():
            cond = self.condition(batch)
        if not len(cond):
            raise ValueError(f"the prior reads none of the columns {sorted(batch)}; give it what it is told by")
        return {**batch, self.name: self.sample(len(cond), cond, guidance=guidance, seed=seed, **options)}
