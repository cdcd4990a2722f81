"""A KL autoencoder, the first stage of latent diffusion (Kingma & Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import rng
from ..codecs import KL, posterior
from ..module import Batch
from ..tensors import mean_flat, psnr
from .first_stage import FirstStage

__all__ = ["Autoencoder"]


class Autoencoder(FirstStage):
    """Trains a `KL` codec: reconstruction error plus a small weight on the divergence of the latents from a standard normal law.

    The trained codec is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique. Its shift and scale
    follow the latents' mean and standard deviation in training, so what it hands on is normalised. An autoencoder of diffusers is
    trained further in the same way.

    Args:
        codec: the codec to train, e.g. ``KL(ConvAutoencoder(...))``; it is unfrozen.
        reconstruction: ``"l1"`` or ``"l2"``: mean absolute or squared error of a pixel.
        kl: weight of the divergence, which is counted in nats per data value, so that it means the same at every size.
        rate: share of each batch in the running shift and scale, in (0, 1].
        options: see `FirstStage`.

    Raises:
        ValueError: an unknown reconstruction, or numbers out of range.
    """

    codec: KL

    def __init__(
        self,
        codec: KL,
        *,
        reconstruction: Literal["l1", "l2"] = "l1",
        kl: float = 1e-6,
        rate: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(codec=codec, **options)
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction must be 'l1' or 'l2', got {reconstruction!r}")
        if kl < 0 or not 0 < rate <= 1:
            raise ValueError(f"kl must be >= 0 and rate in (0, 1], got {kl} and {rate}")
        self.reconstruction, self.kl, self.rate = reconstruction, kl, rate

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """``"loss"``, its parts ``"reconstruction"`` and ``"kl"`` (and ``"perceptual"``), and ``"psnr"`` in dB, each ``(B,)``.

        An autoencoder knows no noise levels: ``u`` plays no part.

        Raises:
            ValueError: the batch holds latents instead of pictures.
        """
        x = self.pictures(batch)
        moments = self.codec.moments(x)
        mean, std = posterior(moments)
        y = self.codec.picture(mean + std * torch.randn(mean.shape, device=mean.device))
        if self.training:
            self.codec.adapt(moments, self.rate)
        error = mean_flat((y - x).abs() if self.reconstruction == "l1" else (y - x).square())
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1) / x[0].numel()
        parts = {"reconstruction": error, "kl": kl, "psnr": psnr(x, y.detach())}
        return self.judged({"loss": error + self.kl * kl, **parts}, x, y)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through the mean of their latents and back, clamped to [-1, 1]."""
        with torch.no_grad():
            return self.codec.picture(posterior(self.codec.moments(x))[0]).float().clamp(-1, 1)

    def latents(self, size: tuple[int, ...], generators: Any) -> Tensor:
        """Latents drawn from a normal law with the mean and deviation of the training latents."""
        return rng.randn(size, generators, device=self.device)
