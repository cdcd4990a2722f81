"""Features: what a picture is compared by.

A feature extractor is any callable ``(B, *) -> (B, D)`` with a ``name``; the name is part of every figure that was computed with it.
Nothing is ever downloaded. Pixels need no network at all and are the default; their scores compare only with scores on the same pixels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Features", "Pixels", "TorchScript", "extract", "rows"]


class Features(Protocol):
    """The contract of a feature extractor: ``x`` (B, *) in [-1, 1] to (B, D)."""

    name: str

    def __call__(self, x: Tensor) -> Tensor: ...


class Pixels:
    """The clipped samples themselves, flattened: D is the number of pixels times channels."""

    name = "pixels"

    def __call__(self, x: Tensor) -> Tensor:
        """Flatten ``x`` (B, *) to (B, D), clipped to [-1, 1]."""
        return x.clamp(-1, 1).flatten(1)


class TorchScript:
    """A network from a TorchScript file that the user supplies, such as the Inception network with the published FID weights.

    torchvision's ``inception_v3`` is another network with other weights: its scores are not FID, so it is not offered here. **Loading a
    TorchScript file runs the code in it**: only name files you trust. Its SHA-256 is kept, so that a report can name the file.

    Args:
        path: the ``.pt`` file; its forward takes (B, 3, H, W), or of clips (B, 3, T, H, W), and returns (B, D) or a tuple that
            begins with it.
        name: how figures are labelled. Say "fid" only of the Inception network that defines FID, and "fvd" of the video network that
            defines FVD; the Frechet distance is then reported as ``fid`` or ``fvd``.
        size: side in pixels to which images are resized (bilinear, antialiased), None = as they are.
        low: value given to black (x = -1).
        high: value given to white (x = 1). The common FID network takes bytes: ``low=0, high=255``.
        options: keyword arguments of its forward, such as ``{"return_features": True}``.
        device: where it runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no TorchScript archive.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "features",
        size: int | None = None,
        low: float = 0.0,
        high: float = 255.0,
        options: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.name, self.size, self.low, self.high = Path(path), name, size, low, high
        self.options, self.device = dict(options or {}), torch.device(device)
        if not self.path.is_file():
            raise FileNotFoundError(f"no feature network at {self.path}; give the path of a TorchScript file (nothing is downloaded)")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # an old format, but the one in which such networks are published
                self.net = torch.jit.load(str(self.path), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{self.path} is not a TorchScript archive; save the network with torch.jit.save") from error
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def identity(self) -> str:
        """What the features of an item depend on beside the item: the file's contents and how it is asked."""
        return f"{self.sha256} size={self.size} low={self.low} high={self.high} options={sorted(self.options.items())}"

    def __call__(self, x: Tensor) -> Tensor:
        """Features (B, D) of images ``x`` (B, C, H, W), or clips (B, C, T, H, W), in [-1, 1]; one channel is repeated to three."""
        x = x.clamp(-1, 1).to(self.device)
        x = x.expand(-1, 3, *x.shape[2:]) if x.shape[1] == 1 else x
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            frames = x.movedim(1, -3).flatten(0, -4)
            frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
            x = frames.unflatten(0, (len(x), *x.shape[2:-2])).movedim(-3, 1)
        out = self.net((x + 1) / 2 * (self.high - self.low) + self.low, **self.options)
        return (out[0] if isinstance(out, (tuple, list)) else out).flatten(1)


@torch.no_grad()
def extract(features: Features, x: Tensor, chunk: int = 256) -> Tensor:
    """Features (N, D), float64 on the CPU, of ``x`` (N, *), ``chunk`` items at a time.

    Raises:
        ValueError: the extractor does not return (N, D) or returns numbers that are not finite.
    """
    return torch.cat([rows(features(part), len(part)).cpu() for part in x.split(chunk)])


def rows(features: Tensor, count: int | None = None) -> Tensor:
    """Check that ``features`` is (N, D), N as given if given, and finite; return it in float64.

    Raises:
        ValueError: it is not.
    """
    if features.ndim != 2 or not features.numel() or (count is not None and len(features) != count):
        raise ValueError(f"features must be ({'N' if count is None else count}, D), got {tuple(features.shape)}; flatten images first")
    features = features.detach().double()
    if bad := (~features.isfinite().all(1)).sum().item():
        raise ValueError(f"{bad} of {len(features)} items have features that are not finite; look at the samples first")
    return features
