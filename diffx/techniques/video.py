"""Video diffusion: clips beside still pictures (Ho et al. 2022, Video Diffusion Models, arXiv:2204.03458)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..module import Batch
from .sequence import GIVEN, KNOWN, SequenceDiffusion

__all__ = ["GIVEN", "KNOWN", "VideoDiffusion"]


class VideoDiffusion(SequenceDiffusion):
    """A denoiser of clips ``(C, T, H, W)``, of which some frames may be known (see `SequenceDiffusion`).

    **Pictures beside clips.** With ``stills``, each training clip is followed by that many single frames of other clips of its batch, told
    apart from it by the network's argument ``stills``; all frames count alike in the loss.

    Args:
        denoiser: network with preconditioning, such as `VideoUNet`'s.
        shape: ``(C, T, H, W)`` of a clip.
        stills: single frames that follow each training clip.
        options: see `EDM`.

    Raises:
        ValueError: a shape that is no clip's, negative stills, a network that is shown known frames together with ``stills``; see also
            `SequenceDiffusion`.
    """

    def __init__(self, denoiser: Denoiser, *, shape: Sequence[int], stills: int = 0, **options: Any) -> None:
        super().__init__(denoiser=denoiser, shape=shape, **options)
        if len(self.shape) != 4:
            raise ValueError(f"the shape of a clip is (C, T, H, W), got {self.shape}")
        if stills < 0 or (stills and self.shows_known):
            raise ValueError(f"stills must not be negative, and 0 for a network that is shown known frames; got {stills}")
        self.stills = stills

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `SequenceDiffusion`; with single frames behind the clips."""
        x, cond = super().inputs(batch)
        return (torch.cat([x, self._single(x)], 2), cond) if self.stills and self.training else (x, cond)

    def _single(self, x: Tensor) -> Tensor:
        """Frames (B, C, stills, H, W) of other clips of the batch."""
        clips, frames = len(x), x.shape[2]
        offset = 1 + torch.randint(max(clips - 1, 1), (clips, self.stills), device=x.device)
        rows = (torch.arange(clips, device=x.device)[:, None] + offset) % clips
        return x.transpose(1, 2)[rows, torch.randint(frames, rows.shape, device=x.device)].transpose(1, 2)

    def estimate(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """As in `SequenceDiffusion`; single frames are told apart."""
        if self.stills and self.training:
            place = torch.arange(noisy.shape[2], device=noisy.device)
            alone = place >= len(place) - self.stills
            return self.denoiser.assemble(noisy, sigma, self.denoiser.raw(noisy, sigma, cond, stills=alone)[0])
        return super().estimate(noisy, sigma, cond)
