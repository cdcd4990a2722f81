"""Video diffusion: clips beside still pictures, clips of which some frames are known, clips of any length.

Ho et al. 2022, Video Diffusion Models, arXiv:2204.03458.
"""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["GIVEN", "KNOWN", "VideoDiffusion"]

GIVEN, KNOWN = "given", "known"


class VideoDiffusion(EDM):
    """A denoiser of clips ``(C, T, H, W)``.

    **Pictures beside clips.** With ``stills``, each training clip is followed by that many single frames of other clips of its batch, told
    apart from it by the network's argument ``stills``; all frames count alike in the loss.

    **Known frames.** `complete`, `extend` and `infill` draw clips of which some frames are given. Any model can be guided to them
    (`diffx.guidance.reconstruction_guided`). A network with the maps ``"given"`` (the channels of the data: known frames, 0 elsewhere) and
    ``"known"`` (one channel: 1 in known frames, 0 elsewhere) is trained to it: half of the training clips show their first m frames, half
    any m frames, m uniform in 0 .. T - 1, and the loss counts the others.

    Args:
        denoiser: network with preconditioning, such as `VideoUNet`'s.
        shape: ``(C, T, H, W)`` of a clip.
        stills: single frames that follow each training clip.
        options: see `EDM`.

    Raises:
        ValueError: a shape that is no clip's, negative stills, a network with one of the two maps, or with both and ``stills``.
    """

    def __init__(self, denoiser: Denoiser, *, shape: Sequence[int], stills: int = 0, **options: Any) -> None:
        super().__init__(denoiser=denoiser, shape=shape, **options)
        if len(self.shape) != 4:
            raise ValueError(f"the shape of a clip is (C, T, H, W), got {self.shape}")
        maps = getattr(getattr(denoiser.net, "conditions", None), "maps", {})
        told = [name for name in (GIVEN, KNOWN) if name in maps]
        if len(told) == 1:
            raise ValueError(f"a network that is shown known frames takes the maps {GIVEN!r} and {KNOWN!r}, got {told[0]!r} alone")
        if stills < 0 or (stills and told):
            raise ValueError(f"stills must not be negative, and 0 for a network that is shown known frames; got {stills}")
        self.stills, self.shows_frames = stills, bool(told)

    # Training ---------------------------------------------------------------------------------------------------------------------------

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`; with single frames behind the clips, or with the frames that the network is shown."""
        x, cond = super().inputs(batch)
        if self.stills and self.training:
            return torch.cat([x, self._single(x)], 2), cond
        return x, _shown(cond, x, self._drawn_frames(x)) if self.shows_frames else cond

    def _single(self, x: Tensor) -> Tensor:
        """Frames (B, C, stills, H, W) of other clips of the batch."""
        clips, frames = len(x), x.shape[2]
        offset = 1 + torch.randint(max(clips - 1, 1), (clips, self.stills), device=x.device)
        rows = (torch.arange(clips, device=x.device)[:, None] + offset) % clips
        return x.transpose(1, 2)[rows, torch.randint(frames, rows.shape, device=x.device)].transpose(1, 2)

    def _drawn_frames(self, x: Tensor) -> Tensor:
        """Which frames (B, T) a training clip shows."""
        clips, frames = len(x), x.shape[2]
        rank = torch.rand(clips, frames, device=x.device).argsort(1).argsort(1)
        first = torch.rand(clips, 1, device=x.device) < 0.5
        rank = torch.where(first, torch.arange(frames, device=x.device), rank)
        return rank < torch.randint(frames, (clips, 1), device=x.device)

    def estimate(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """As in `EDM`; single frames are told apart, frames that the network is shown are their own estimate."""
        if self.stills and self.training:
            place = torch.arange(noisy.shape[2], device=noisy.device)
            alone = place >= len(place) - self.stills
            return self.denoiser.assemble(noisy, sigma, self.denoiser.raw(noisy, sigma, cond, stills=alone)[0])
        estimate = super().estimate(noisy, sigma, cond)
        return torch.where(cond.maps[KNOWN] > 0.5, cond.maps[GIVEN], estimate) if self.shows_frames else estimate

    # Sampling ---------------------------------------------------------------------------------------------------------------------------

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `Gaussian`; ``shape`` may have another number of frames."""
        options: dict[str, Any] = {"guidance": guidance, "sampler": sampler, "seed": seed, "chunk": chunk}
        if not self.shows_frames:
            return super().sample(n, cond, shape=shape, **options)
        empty = torch.zeros(n, *(self.shape if shape is None else shape), device=self.device)
        return self.complete(empty, torch.zeros(empty.shape[2], dtype=torch.bool), cond, weight=0.0, **options)

    def complete(self, clips: Tensor, known: Tensor, cond: Cond = Cond(), *, weight: float = 5.0, guidance: float | Tensor | Guide = 1.0,
                 sampler: Sampler | None = None, seed: int | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Draw the frames that are not known.

        The known ones are put, freshly noised, into every state, and the network sees them if it takes them. A ``weight`` guides the others
        to fit them; a network that was not trained with known frames needs it.

        Args:
            clips: (n, C, T, H, W) in [-1, 1], anything in frames that are not known.
            known: bool (T,), or (n, T) where clips differ.
            cond: conditions, as in `sample`.
            weight: of reconstruction guidance, 0 = off; see `diffx.guidance.reconstruction_guided`.
            guidance: as in `sample`.
            sampler: as in `sample`.
            seed: as in `sample`.
            chunk: as in `sample`.

        Returns:
            (n, C, T, H, W): in known frames the given ones, as far as the codec keeps them.

        Raises:
            ValueError: clips or ``known`` of another shape; see also `sample`.
        """
        if clips.ndim != 5 or clips.shape[1] != self.shape[0]:
            raise ValueError(f"clips must be (n, {self.shape[0]}, T, H, W), got {tuple(clips.shape)}")
        n, frames = len(clips), clips.shape[2]
        if known.dtype != torch.bool or known.shape not in ((frames,), (n, frames)):
            raise ValueError(f"known must be bool ({frames},) or ({n}, {frames}), got {known.dtype} {tuple(known.shape)}")
        with torch.no_grad():
            given = self.codec.encode(clips.to(self.device))
        told, guide = self.guided(n, _shown(cond, given, known.to(self.device).expand(n, frames)), guidance)
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            held, mask = cond.maps[GIVEN], cond.maps[KNOWN] > 0.5
            if not self.shows_frames:
                cond = replace(cond, maps={name: value for name, value in cond.maps.items() if name not in (GIVEN, KNOWN)})
            denoise = guide(self.denoiser, cond)
            if weight:
                denoise = reconstruction_guided(denoise, held, lambda x0: x0 * mask, weight)
            noise = rng.randn(size, generators, device=self.device)
            return walk(replaced(denoise, held, mask, lambda: rng.randn(size, generators, device=self.device)), noise, generator=generators)

        return self.sampled(n, told, draw, seed=seed, shape=clips.shape[1:], chunk=chunk)

    def extend(self, clips: Tensor, blocks: int, cond: Cond = Cond(), *, overlap: int | None = None, seed: int | None = None,
               **options: Any) -> Tensor:  # fmt: skip
        """Go on from clips ``(n, C, T, H, W)``, block after block of their own length, the first included.

        See `diffx.continuation.extended`. Further ``options`` are those of `complete`.
        """
        return extended(self._window(cond, seed, options), clips, blocks, overlap)

    def infill(self, coarse: Tensor, factor: int, cond: Cond = Cond(), *, seed: int | None = None, **options: Any) -> Tensor:
        """Draw the frames between those of coarse clips ``(n, C, K, H, W)``, in windows of the module's own length.

        See `diffx.continuation.infilled`. Further ``options`` are those of `complete`.
        """
        return infilled(self._window(cond, seed, options), coarse, factor, self.shape[1])

    def _window(self, cond: Cond, seed: int | None, options: dict[str, Any]) -> Any:
        begin = int(torch.randint(2**31, ())) if seed is None else seed

        def complete(window: Tensor, known: Tensor, number: int) -> Tensor:
            return self.complete(window, known, cond, seed=begin + number * rng.STRIDE, **options)

        return complete


def _shown(cond: Cond, x: Tensor, known: Tensor) -> Cond:
    """The conditions with the frames (B, T) of ``x`` that are known."""
    mask = known[:, None, :, None, None].to(x.dtype).expand(-1, 1, -1, *x.shape[3:])
    return replace(cond, maps={**cond.maps, GIVEN: x * mask, KNOWN: mask})
