"""Figures of clips: how what stands out from the background moves, and a Frechet distance on features that see motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import extract
from .figures import Evidence, Figure, Results
from .frechet import frechet, gathered

__all__ = ["MOTION", "ClipFeatures", "Motion", "motion"]

POOLED = 4  # side of the small mean frame in `ClipFeatures`


@dataclass(frozen=True, eq=False)
class Motion:
    """What moves in N clips of T frames.

    Args:
        mass: (N, T) how much stands out from the background in each frame, in pixels: the sum of
            ``|x - background| / 2``, averaged over the channels.
        centroid: (N, T, 2) its centre (down, right) in pixels; the middle of the frame where nothing stands out.
    """

    mass: Tensor
    centroid: Tensor

    @property
    def steps(self) -> Tensor:
        """(N, T - 1) pixels that the centre moves from frame to frame."""
        return self.centroid.diff(dim=1).norm(dim=-1)

    @property
    def turns(self) -> Tensor:
        """(N, T - 2) pixels by which one step differs from the next, as vectors: 0 for steady motion."""
        return self.centroid.diff(n=2, dim=1).norm(dim=-1)

    @property
    def variation(self) -> Tensor:
        """(N,) standard deviation of the mass over its mean."""
        return self.mass.std(1, correction=0) / self.mass.mean(1).clamp(min=1e-6)


def motion(x: Tensor) -> Motion:
    """Follow what stands out in clips ``(N, C, T, H, W)`` in [-1, 1]. The background of a clip is the median of each of its channels.

    Raises:
        ValueError: no clips.
    """
    if x.ndim != 5:
        raise ValueError(f"expected clips (N, C, T, H, W), got shape {tuple(x.shape)}")
    x = x.double().clamp(-1, 1)
    ground = x.flatten(2).median(2).values[:, :, None, None, None]
    out = (x - ground).abs().mean(1) / 2  # (N, T, H, W)
    mass = out.sum((2, 3))
    height, width = x.shape[3:]
    down = (out.sum(3) * torch.arange(height)).sum(2)
    right = (out.sum(2) * torch.arange(width)).sum(2)
    centre = torch.tensor([(height - 1) / 2, (width - 1) / 2], dtype=torch.float64)
    centroid = torch.stack([down, right], -1) / mass.clamp(min=1e-6)[..., None]
    return Motion(mass, torch.where((mass > 1e-6)[..., None], centroid, centre))


class ClipFeatures:
    """Hand-made features of clips: the path of the centre and its steps, the mass of each frame, and the mean frame at 4 x 4 pixels.

    A Frechet distance on them is no FVD, which needs a trained video network: give that one as `TorchScript`.
    """

    name = "clip"

    def __call__(self, x: Tensor) -> Tensor:
        """Features (B, 3 T + 2 (T - 1) + 16 C) of clips ``x`` (B, C, T, H, W) in [-1, 1]."""
        seen = motion(x)
        scale = x.shape[3] * x.shape[4]
        small = F.adaptive_avg_pool2d(x.double().clamp(-1, 1).mean(2), POOLED)
        steps = seen.centroid.diff(dim=1)
        return torch.cat([part.flatten(1) for part in (seen.centroid, steps, 100 * seen.mass / scale, 10 * small)], 1)


def moved(evidence: Evidence) -> Results:
    """Four figures of `Motion`, each with what training clips have.

    ``mean_step`` and ``fast_step`` (95th percentile) are pixels a frame, ``unsteadiness`` is the median of `Motion.turns`,
    ``mass_variation`` the mean of `Motion.variation`. Frames in a random order, or from other clips, are several times as unsteady as a
    clip.
    """
    told, real = motion(evidence.samples), motion(evidence.train)

    def both(of: Callable[[Motion], float]) -> dict[str, float]:
        return {"value": of(told), "train": of(real)}

    return {
        "mean_step": both(lambda seen: seen.steps.mean().item()),
        "fast_step": both(lambda seen: seen.steps.flatten().sort().values[int(0.95 * (seen.steps.numel() - 1))].item()),
        "unsteadiness": both(lambda seen: seen.turns.median().item()),
        "mass_variation": both(lambda seen: seen.variation.mean().item()),
    }


def frechet_of_clips(evidence: Evidence) -> Results:
    """``frechet_clip``: Frechet distance to the training clips on `ClipFeatures`, with what held-out clips score."""
    features = ClipFeatures()
    reference = gathered(extract(features, evidence.train))
    figure = {"value": frechet(extract(features, evidence.samples), reference)}
    if evidence.held_out is not None and len(evidence.held_out) > 1:
        figure["held_out"] = frechet(extract(features, evidence.held_out[: len(evidence.samples)]), reference)
    return {"frechet_clip": figure}


MOTION = (
    Figure(("mean_step", "fast_step", "unsteadiness", "mass_variation"), moved),
    Figure(("frechet_clip",), frechet_of_clips),
)
