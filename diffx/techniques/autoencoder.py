"""A KL autoencoder, the first stage of latent diffusion (Kingma & Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import rng
from ..codecs import KL, posterior
from ..conditions import Cond
from ..module import Batch, DiffusionModule, freeze
from ..tensors import mean_flat, psnr

__all__ = ["Autoencoder"]


class Autoencoder(DiffusionModule):
    """Trains a `KL` codec: reconstruction error plus a small weight on the divergence of the latents from a standard normal law.

    The trained codec is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique. Its shift and scale
    follow the latents' mean and standard deviation in training, so what it hands on is normalised. An autoencoder of diffusers is
    trained further in the same way.

    Args:
        codec: the codec to train, e.g. ``KL(ConvAutoencoder(...))``; it is unfrozen.
        reconstruction: ``"l1"`` or ``"l2"``: mean absolute or squared error of a pixel.
        kl: weight of the divergence, which is counted in nats per data value, so that it means the same at every size.
        perceptual: ``(x, y) -> (B,)`` distance that joins the loss; a module is frozen.
        perceptual_weight: its weight.
        rate: share of each batch in the running shift and scale, in (0, 1].
        options: see `DiffusionModule`, except ``text`` and ``drop``, which have no meaning here; ``shape`` is that of a picture.

    Raises:
        ValueError: an unknown reconstruction, or numbers out of range; a shape that the codec's factor does not divide.
    """

    trained = averaged = ("codec",)
    codec: KL

    def __init__(
        self,
        codec: KL,
        *,
        reconstruction: Literal["l1", "l2"] = "l1",
        kl: float = 1e-6,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        perceptual_weight: float = 1.0,
        rate: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(codec=codec, text=None, drop=0.0, **options)
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction must be 'l1' or 'l2', got {reconstruction!r}")
        if kl < 0 or not 0 < rate <= 1:
            raise ValueError(f"kl must be >= 0 and rate in (0, 1], got {kl} and {rate}")
        self.codec.shape(self.shape)
        self.codec.requires_grad_(True)
        self.reconstruction, self.kl, self.rate = reconstruction, kl, rate
        self.perceptual = freeze(perceptual) if isinstance(perceptual, torch.nn.Module) else perceptual
        self.perceptual_weight = perceptual_weight

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """``"loss"``, its parts ``"reconstruction"`` and ``"kl"`` (and ``"perceptual"``), and ``"psnr"`` in dB, each ``(B,)``.

        An autoencoder knows no noise levels: ``u`` plays no part.

        Raises:
            ValueError: the batch holds latents instead of pictures.
        """
        if "x" not in batch:
            raise ValueError(f'an autoencoder trains on pictures, batch["x"]; got {sorted(batch)}')
        x = batch["x"]
        moments = self.codec.moments(x)
        mean, std = posterior(moments)
        y = self.codec.picture(mean + std * torch.randn(mean.shape, device=mean.device))
        if self.training:
            self.codec.adapt(moments, self.rate)
        error = mean_flat((y - x).abs() if self.reconstruction == "l1" else (y - x).square())
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1) / x[0].numel()
        parts = {"reconstruction": error, "kl": kl, "psnr": psnr(x, y.detach())}
        loss = error + self.kl * kl
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(x, y)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        return {"loss": loss, **parts}

    def condition(self, batch: Batch) -> Cond:
        """No conditions."""
        return Cond()

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through the mean of their latents and back, clamped to [-1, 1]."""
        with torch.no_grad():
            return self.codec.picture(posterior(self.codec.moments(x))[0]).float().clamp(-1, 1)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: Any = 1.0, sampler: Any = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Decode latents drawn from a normal law with the mean and deviation of the training latents, independently at every place.

        That is what a variational autoencoder can draw by itself; it shows how far from the data such latents lie, hence what is left to
        a diffusion model. For the quality of the codec see `reconstruct`.

        Raises:
            ValueError: conditions, guidance or a sampler, of which it knows none.
        """
        if len(cond) or guidance != 1 or sampler is not None:
            raise ValueError(
                f"an autoencoder samples without conditions, guidance and sampler; got conditions {[*cond.names, *cond.maps]}, "
                f"guidance = {guidance}, sampler = {sampler}"
            )

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            return rng.randn(size, generators, device=self.device)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)
