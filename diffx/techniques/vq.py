"""A vector-quantised autoencoder, the tokenizer of token models (van den Oord et al. 2017, arXiv:1711.00937)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..module import Batch, DiffusionModule, freeze
from ..tensors import mean_flat, psnr
from ..tokenizers import VQ

__all__ = ["VQAutoencoder"]


class VQAutoencoder(DiffusionModule):
    """Trains a `VQ` tokenizer: reconstruction through a codebook that follows the encoder, which is held to its codes.

    The gradient of the decoder's input goes straight to the encoder's output. The codebook has no gradient: it follows by moving averages.
    The trained tokenizer is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique.

    Args:
        codec: the tokenizer to train, e.g. ``VQ(ConvAutoencoder(..., moments=False), Codebook(...))``; it is unfrozen.
        commitment: weight of the encoder's squared distance to its codes.
        entropy: weight of the mean entropy of the soft assignments minus the entropy of their mean: sure of each, even over all. Soft
            assignments are ``softmax(-d^2 / 0.01)`` (Chang et al. 2022, MaskGIT).
        perceptual: ``(x, y) -> (B,)`` distance that joins the loss; a module is frozen.
        perceptual_weight: its weight.
        options: see `DiffusionModule`, except ``text`` and ``drop``, which have no meaning here; ``shape`` is that of a picture.

    Raises:
        ValueError: negative weights; a shape that the tokenizer does not take.
    """

    trained = averaged = ("codec",)
    codec: VQ

    def __init__(
        self,
        codec: VQ,
        *,
        commitment: float = 0.25,
        entropy: float = 0.0,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        perceptual_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(codec=codec, text=None, drop=0.0, **options)
        if min(commitment, entropy, perceptual_weight) < 0:
            raise ValueError(f"weights must be >= 0, got commitment {commitment}, entropy {entropy}, perceptual {perceptual_weight}")
        self.codec.shape(self.shape)
        self.codec.requires_grad_(True)
        self.commitment, self.entropy = commitment, entropy
        self.perceptual = freeze(perceptual) if isinstance(perceptual, torch.nn.Module) else perceptual
        self.perceptual_weight = perceptual_weight

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """``"loss"`` and its parts: ``"reconstruction"`` (absolute plus squared error), ``"commitment"``, ``"psnr"`` in dB, each ``(B,)``.

        ``"perplexity"`` ``()`` is the number of codes in even use that has the entropy of this batch's. A tokenizer knows no
        noise levels: ``u`` plays no part.

        Raises:
            ValueError: the batch holds ids instead of pictures.
        """
        if "x" not in batch:
            raise ValueError(f'a tokenizer trains on pictures, batch["x"]; got {sorted(batch)}')
        x, book = batch["x"], self.codec.codebook
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
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(x, y)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        return {"loss": loss, **parts}

    def condition(self, batch: Batch) -> Cond:
        """No conditions."""
        return Cond()

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through their ids and back, clamped to [-1, 1]."""
        with torch.no_grad():
            return self.codec.decode(self.codec.encode(x)).float().clamp(-1, 1)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: Any = 1.0, sampler: Any = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Decode codes drawn by their use in training, independently at every place: what is left to a token model.

        Raises:
            ValueError: conditions, guidance or a sampler, of which it knows none.
        """
        if len(cond) or guidance != 1 or sampler is not None:
            raise ValueError(
                f"a tokenizer samples without conditions, guidance and sampler; got conditions {[*cond.names, *cond.maps]}, "
                f"guidance = {guidance}, sampler = {sampler}"
            )

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            use = self.codec.codebook.count.double().clamp_min(1e-9).cumsum(0)  # before training all alike
            place = rng.rand(size, generators, device=self.device).double() * use[-1]
            return torch.searchsorted(use, place, right=True).clamp_max(self.codec.codebook_size - 1)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)


def perplexity(ids: Tensor, size: int) -> Tensor:
    """Exp of the entropy of how often each of ``size`` codes stands in ``ids``, ``()``: from 1 to ``size``."""
    share = torch.bincount(ids.flatten(), minlength=size).double() / ids.numel()
    return torch.special.entr(share).sum().exp().float()


def assignment_entropy(distances: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of ``softmax(-d^2 / temperature)`` over vectors minus the entropy of its mean, ``()``, of squared distances (N, K)."""
    logp = F.log_softmax(-distances / temperature, 1)
    mean = logp.exp().mean(0)
    return -(logp.exp() * logp).sum(1).mean() - torch.special.entr(mean).sum()
