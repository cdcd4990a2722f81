"""Diffusion of what has a time: sound and clips of which some part is known, and of any length.

Ho et al. 2022, Video Diffusion Models, arXiv:2204.03458, which it follows, speaks of clips; nothing in it depends on what a frame is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..continuation import extended, infilled
from ..denoiser import Denoiser
from ..guidance import Guide, reconstruction_guided, replaced
from ..module import Batch
from ..samplers import Sampler
from .edm import EDM

__all__ = ["GIVEN", "KNOWN", "SequenceDiffusion"]

GIVEN, KNOWN = "given", "known"


class SequenceDiffusion(EDM):
    """A denoiser of samples ``(C, T, *)`` with their time on the first axis: sound ``(C, T)``, clips ``(C, T, H, W)``.

    `complete`, `extend` and `infill` draw samples of which some moments (samples of sound, frames of clips) are given. Any model can be
    guided to them (`diffx.guidance.reconstruction_guided`). A network with the maps ``"given"`` (the channels of the data: known moments,
    0 elsewhere) and ``"known"`` (one channel: 1 at known moments, 0 elsewhere) is trained to it: half of the training samples show a
    beginning; half show any moments, scattered ones or longer stretches, so that gaps of all lengths are met. Their number is uniform in
    0 .. T - 1, and the loss counts the others. A codec may slow the time down by a whole factor; in latents a moment is known where all it
    stands for is.

    Args:
        denoiser: network with preconditioning.
        shape: ``(C, T, *)`` of a sample.
        options: see `EDM`.

    Raises:
        ValueError: a shape without time, a codec that does not keep time on the first axis, a network with only one of the two maps.
    """

    def __init__(self, denoiser: Denoiser, *, shape: Sequence[int], **options: Any) -> None:
        super().__init__(denoiser=denoiser, shape=shape, **options)
        latent = self.codec.shape(self.shape)
        if len(self.shape) < 2 or len(latent) != len(self.shape) or self.shape[1] % latent[1]:
            raise ValueError(
                f"a sample has the shape (C, T, *), and its latent as many axes, with a time that divides T; got {self.shape} and {latent}"
            )
        maps = getattr(getattr(denoiser.net, "conditions", None), "maps", {})
        told = [name for name in (GIVEN, KNOWN) if name in maps]
        if len(told) == 1:
            raise ValueError(f"a network that is shown known moments takes the maps {GIVEN!r} and {KNOWN!r}, got {told[0]!r} alone")
        self.shows_known = bool(told)

    # Training ---------------------------------------------------------------------------------------------------------------------------

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`; with the moments that the network is shown."""
        x, cond = super().inputs(batch)
        return x, _shown(cond, x, self._drawn_known(x)) if self.shows_known else cond

    def _drawn_known(self, x: Tensor) -> Tensor:
        """Which moments (B, T) a training sample shows."""
        n, moments = len(x), x.shape[2]
        place = torch.arange(moments, device=x.device).expand(n, moments)
        stretch = 2 ** torch.randint(max((moments - 1).bit_length(), 1), (n, 1), device=x.device)
        keys = torch.rand(n, moments, device=x.device).gather(1, place // stretch)
        rank = torch.where(torch.rand(n, 1, device=x.device) < 0.5, place, keys.argsort(dim=1, stable=True).argsort(1))
        return rank < torch.randint(moments, (n, 1), device=x.device)

    def estimate(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """As in `EDM`; moments that the network is shown are their own estimate."""
        estimate = super().estimate(noisy, sigma, cond)
        return torch.where(cond.maps[KNOWN] > 0.5, cond.maps[GIVEN], estimate) if self.shows_known else estimate

    # Sampling ---------------------------------------------------------------------------------------------------------------------------

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `Gaussian`; ``shape`` may have another length."""
        options: dict[str, Any] = {"guidance": guidance, "sampler": sampler, "seed": seed, "chunk": chunk}
        if not self.shows_known:
            return super().sample(n, cond, shape=shape, **options)
        empty = torch.zeros(n, *(self.shape if shape is None else shape), device=self.device)
        return self.complete(empty, torch.zeros(empty.shape[2], dtype=torch.bool), cond, weight=0.0, **options)

    def complete(self, x: Tensor, known: Tensor, cond: Cond = Cond(), *, weight: float = 5.0, guidance: float | Tensor | Guide = 1.0,
                 sampler: Sampler | None = None, seed: int | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Draw the moments that are not known.

        The known ones are put, freshly noised, into every state, and the network sees them if it takes them. A ``weight`` guides the others
        to fit them; a network that was not trained with known moments needs it.

        Args:
            x: (n, C, T, *) in [-1, 1], anything at moments that are not known.
            known: bool (T,), or (n, T) where samples differ.
            cond: conditions, as in `sample`.
            weight: of reconstruction guidance, 0 = off; see `diffx.guidance.reconstruction_guided`.
            guidance: as in `sample`.
            sampler: as in `sample`.
            seed: as in `sample`.
            chunk: as in `sample`.

        Returns:
            (n, C, T, *): at known moments the given ones, as far as the codec keeps them.

        Raises:
            ValueError: ``x`` or ``known`` of another shape; see also `sample`.
        """
        if x.ndim != 1 + len(self.shape) or x.shape[1] != self.shape[0]:
            raise ValueError(f"samples must be (n, {self.shape[0]}, T, *) with {len(self.shape) + 1} axes, got {tuple(x.shape)}")
        n, moments = len(x), x.shape[2]
        if known.dtype != torch.bool or known.shape not in ((moments,), (n, moments)):
            raise ValueError(f"known must be bool ({moments},) or ({n}, {moments}), got {known.dtype} {tuple(known.shape)}")
        with self.drawing(), nullcontext() if seed is None else rng.forked(seed, "known"):
            given = self.codec.encode(x.to(self.device))
        held = known.to(self.device).expand(n, moments).unflatten(1, (given.shape[2], -1)).all(-1)
        told, guide = self.guided(n, _shown(cond, given, held), guidance)
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            held, mask = cond.maps[GIVEN], cond.maps[KNOWN] > 0.5
            if not self.shows_known:
                cond = replace(cond, maps={name: value for name, value in cond.maps.items() if name not in (GIVEN, KNOWN)})
            denoise = guide(self.denoiser, cond)
            if weight:
                denoise = reconstruction_guided(denoise, held, lambda x0: x0 * mask, weight)
            noise = rng.randn(size, generators, device=self.device)
            return walk(replaced(denoise, held, mask, lambda: rng.randn(size, generators, device=self.device)), noise, generator=generators)

        return self.sampled(n, told, draw, seed=seed, shape=x.shape[1:], chunk=chunk)

    def extend(self, x: Tensor, blocks: int, cond: Cond = Cond(), *, overlap: int | None = None, seed: int | None = None,
               **options: Any) -> Tensor:  # fmt: skip
        """Go on from samples ``(n, C, T, *)``, block after block of their own length, the first included.

        See `diffx.continuation.extended`. Further ``options`` are those of `complete`.
        """
        return extended(self._window(cond, seed, options), x, blocks, overlap)

    def infill(self, coarse: Tensor, factor: int, cond: Cond = Cond(), *, seed: int | None = None, **options: Any) -> Tensor:
        """Draw the moments between those of coarse samples ``(n, C, K, *)``, in windows of the module's own length.

        See `diffx.continuation.infilled`. Further ``options`` are those of `complete`.
        """
        return infilled(self._window(cond, seed, options), coarse, factor, self.shape[1])

    def _window(self, cond: Cond, seed: int | None, options: dict[str, Any]) -> Any:
        begin = int(torch.randint(2**31, ())) if seed is None else seed

        def complete(window: Tensor, known: Tensor, number: int) -> Tensor:
            return self.complete(window, known, cond, seed=begin + number * rng.STRIDE, **options)

        return complete


def _shown(cond: Cond, x: Tensor, known: Tensor) -> Cond:
    """The conditions with the moments (B, T) of ``x`` that are known."""
    mask = known.reshape(len(x), 1, -1, *(1,) * (x.ndim - 3)).to(x.dtype).expand(-1, 1, -1, *x.shape[3:])
    return replace(cond, maps={**cond.maps, GIVEN: x * mask, KNOWN: mask})
