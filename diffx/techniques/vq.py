"""A vector-quantised autoencoder, the tokenizer of token models (van den Oord et al. 2017, arXiv:1711.00937)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..module import Batch
from ..tensors import mean_flat, psnr
from ..tokenizers import VQ
from .first_stage import FirstStage

__all__ = ["VQAutoencoder"]


class VQAutoencoder(FirstStage):
    """Trains a `VQ` tokenizer: reconstruction through a codebook that follows the encoder, which is held to its codes.

    The gradient of the decoder's input goes straight to the encoder's output. The codebook has no gradient: it follows by moving averages.
    The trained tokenizer is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique.

    Args:
        codec: the tokenizer to train, e.g. ``VQ(ConvAutoencoder(..., moments=False), Codebook(...))``; it is unfrozen.
        commitment: weight of the encoder's squared distance to its codes.
        entropy: weight of the mean entropy of the soft assignments minus the entropy of their mean: sure of each, even over all. Soft
            assignments are ``softmax(-d^2 / 0.01)`` (Chang et al. 2022, MaskGIT).
        options: see `FirstStage`.

    Raises:
        ValueError: negative weights.
    """

    codec: VQ

    def __init__(
        self,
        codec: VQ,
        *,
        commitment: float = 0.25,
        entropy: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(codec=codec, **options)
        if min(commitment, entropy) < 0:
            raise ValueError(f"weights must be >= 0, got commitment {commitment} and entropy {entropy}")
        self.commitment, self.entropy = commitment, entropy

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """``"loss"`` and its parts: ``"reconstruction"`` (absolute plus squared error), ``"commitment"``, ``"psnr"`` in dB, each ``(B,)``.

        ``"perplexity"`` ``()`` is the number of codes in even use that has the entropy of this batch's. A tokenizer knows no
        noise levels: ``u`` plays no part.

        Raises:
            ValueError: the batch holds ids instead of pictures.
        """
        x, book = self.pictures(batch), self.codec.codebook
        z = self.codec.vae.encode(x)
        ids = book.nearest(z.detach())
        if self.training:
            book.update(z.detach(), ids)
        q = book.vectors(ids).to(z)
        y = self.codec.vae.decode(z + (q - z).detach())
        error = mean_flat((y - x).abs()) + mean_flat((y - x).square())
        commitment = mean_flat((z - q).square())
        parts = {"reconstruction": error, "commitment": commitment, "psnr": psnr(x, y.detach()), "perplexity": perplexity(ids, book.size)}
        loss = error + self.commitment * commitment
        if self.entropy:
            parts["entropy"] = assignment_entropy(book.distances(z.movedim(1, -1).flatten(0, -2).float()))
            loss = loss + self.entropy * parts["entropy"]
        return self.judged({"loss": loss, **parts}, x, y)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through their ids and back, clamped to [-1, 1]."""
        with torch.no_grad():
            return self.codec.decode(self.codec.encode(x)).float().clamp(-1, 1)

    def latents(self, size: tuple[int, ...], generators: Any) -> Tensor:
        """Codes drawn by their use in training."""
        use = self.codec.codebook.count.double().clamp_min(1e-9).cumsum(0)  # before training all alike
        place = rng.rand(size, generators, device=self.device).double() * use[-1]
        return torch.searchsorted(use, place, right=True).clamp_max(self.codec.codebook_size - 1)


def perplexity(ids: Tensor, size: int) -> Tensor:
    """Exp of the entropy of how often each of ``size`` codes stands in ``ids``, ``()``: from 1 to ``size``."""
    share = torch.zeros(size, dtype=torch.float64, device=ids.device)
    share = share.index_add_(0, ids.flatten(), torch.ones_like(ids.flatten(), dtype=torch.float64)) / ids.numel()
    return torch.special.entr(share).sum().exp().float()


def assignment_entropy(distances: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of ``softmax(-d^2 / temperature)`` over vectors minus the entropy of its mean, ``()``, of squared distances (N, K)."""
    logp = F.log_softmax(-distances / temperature, 1)
    mean = logp.exp().mean(0)
    return -(logp.exp() * logp).sum(1).mean() - torch.special.entr(mean).sum()
