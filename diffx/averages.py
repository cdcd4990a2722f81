"""Moving averages of weights as functions of images seen, and averages made after training from stored snapshots.

One optimizer step of ``B`` images moves an average ``e`` towards the weights ``p`` by ``e <- beta e + (1 - beta) p``; a *profile* says
what beta is. The power-function profile has a second gift: a few stored snapshots of it span nearly all other averaging lengths, so the
length can be chosen when training is over (Karras et al. 2024, arXiv:2312.02696, section 3).
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import files
from .recipes import recorded

__all__ = ["Constant", "HalfLife", "InversePower", "Power", "Profile", "Snapshot", "coefficients", "gamma_of", "reconstruct",
           "save_snapshot", "sigma_rel_of", "snapshots_in"]  # fmt: skip

SIGMA_REL_LIMIT = 12**-0.5  # the width of a uniform average, gamma = 0


class Profile(ABC):
    """How much of an average survives one optimizer step."""

    @abstractmethod
    def beta(self, seen: int, batch: int, updates: int) -> float:
        """Decay in [0, 1] of the step of ``batch`` images that follows ``seen`` images in ``updates`` steps; 0 copies the weights."""


@recorded
@dataclass(frozen=True)
class Constant(Profile):
    """The same decay at every step, whatever the batch; the average starts at the initial weights.

    Args:
        decay: beta in [0, 1); the half-life is ``ln 0.5 / ln decay`` steps.
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")

    def beta(self, seen: int, batch: int, updates: int) -> float:
        """`Profile.beta`."""
        return self.decay


@recorded
@dataclass(frozen=True)
class HalfLife(Profile):
    """Half-life in images, shorter at the start: ``beta = 0.5 ** (batch / min(images, rampup * seen))`` (EDM, arXiv:2206.00364).

    The first step copies the weights, so the random initial ones leave no trace.

    Args:
        images: images after which half of the average is replaced.
        rampup: the half-life never exceeds this share of the images seen before the step; None keeps it at ``images`` from the start.
    """

    images: float = 20_000
    rampup: float | None = 0.05

    def __post_init__(self) -> None:
        if self.images <= 0 or (self.rampup is not None and self.rampup <= 0):
            raise ValueError(f"images and rampup must be positive, got images={self.images}, rampup={self.rampup}")

    def beta(self, seen: int, batch: int, updates: int) -> float:
        """`Profile.beta`."""
        halflife = self.images if self.rampup is None else min(self.images, self.rampup * seen)
        return 0.5 ** (batch / max(halflife, 1e-8))


@recorded
@dataclass(frozen=True)
class InversePower(Profile):
    """Warm-up in steps: ``beta = 1 - (1 + updates / inv_gamma) ** -power``, clamped to ``[min, max]``.

    Args:
        power: exponent; 2/3 suits long runs, 3/4 shorter ones.
        inv_gamma: steps over which the warm-up stretches.
        min: smallest decay; 0 lets the first step copy the weights.
        max: largest decay, in [min, 1).
    """

    power: float = 2 / 3
    inv_gamma: float = 1.0
    min: float = 0.0
    max: float = 0.9999

    def __post_init__(self) -> None:
        if self.power <= 0 or self.inv_gamma <= 0 or not 0 <= self.min <= self.max < 1:
            raise ValueError(f"power and inv_gamma must be positive and 0 <= min <= max < 1, got {self}")

    def beta(self, seen: int, batch: int, updates: int) -> float:
        """`Profile.beta`."""
        return min(max(1 - (1 + updates / self.inv_gamma) ** -self.power, self.min), self.max)


@recorded
@dataclass(frozen=True)
class Power(Profile):
    """Power-function average (EDM2): after ``n`` images the weights at image ``t`` count with ``t ** gamma``.

    ``beta = (1 - batch / n) ** (gamma + 1)`` with ``n`` counted after the step.

    Args:
        sigma_rel: width of the profile, its standard deviation as a share of ``n``; in (0, 0.2886751).
    """

    sigma_rel: float = 0.10

    def __post_init__(self) -> None:
        gamma_of(self.sigma_rel)

    def beta(self, seen: int, batch: int, updates: int) -> float:
        """`Profile.beta`."""
        return (1 - batch / (seen + batch)) ** (gamma_of(self.sigma_rel) + 1)


@functools.lru_cache
def gamma_of(sigma_rel: float) -> float:
    """Exponent of the power-function profile of relative width ``sigma_rel``; the inverse of `sigma_rel_of`.

    Raises:
        ValueError: ``sigma_rel`` outside (0, 0.2886751), where no exponent above 0 exists.
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise ValueError(f"sigma_rel must lie in (0, {SIGMA_REL_LIMIT:.7f}), got {sigma_rel}")
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def sigma_rel_of(gamma: float) -> float:
    """Relative width of the power-function profile with exponent ``gamma``."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def coefficients(times: ArrayLike, gammas: ArrayLike, time: float, gamma: float) -> NDArray[np.float64]:
    """Weights of stored averages whose sum comes nearest (least squares over profiles) to the average that ends at ``time`` with ``gamma``.

    Args:
        times: (N,) images seen at each snapshot.
        gammas: (N,) exponent of each snapshot's profile.
        time: images seen at the end of the wanted average.
        gamma: its exponent.

    Returns:
        (N,) float64 coefficients with sum 1.
    """
    t, g = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    gram = _overlap(t[:, None], g[:, None], t[None], g[None])
    target = _overlap(t, g, np.float64(time), np.float64(gamma))
    solution = np.linalg.solve(gram, target)
    return solution / solution.sum()


def _overlap(ta: NDArray, ga: NDArray, tb: NDArray | np.float64, gb: NDArray | np.float64) -> NDArray:
    """Inner product of two power-function profiles with exponents ga, gb that end at ta, tb."""
    exponent = np.where(ta < tb, gb, -ga)
    return (ga + 1) * (gb + 1) * (ta / tb) ** exponent / ((ga + gb + 1) * np.maximum(ta, tb))


@dataclass(frozen=True)
class Snapshot:
    """A stored power-function average: file, images seen when it was written, relative width."""

    path: Path
    images: int
    sigma_rel: float


def save_snapshot(path: str | os.PathLike, weights: Mapping[str, Tensor], images: int, sigma_rel: float) -> None:
    """Write an average as float16 safetensors, with its time and width in the header.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    half = {name: w.detach().to("cpu", torch.float16).contiguous() for name, w in weights.items()}
    data = save(half, {"images": str(images), "sigma_rel": repr(sigma_rel)})
    files.write(path, lambda file: file.write(data))


def snapshots_in(source: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Snapshot]:
    """The snapshots of a folder, or of the files given, oldest first; only headers are read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is no snapshot.
    """
    from safetensors import safe_open

    paths = sorted(Path(source).glob("*.safetensors")) if isinstance(source, (str, os.PathLike)) else [Path(p) for p in source]
    if not paths:
        raise FileNotFoundError(f"no snapshots (*.safetensors) in {source}")
    found = []
    for path in paths:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        if not {"images", "sigma_rel"} <= set(header):
            raise ValueError(f"{path} is no snapshot of a power-function average: its header has no 'images' and 'sigma_rel'")
        found.append(Snapshot(path, int(header["images"]), float(header["sigma_rel"])))
    return sorted(found, key=lambda s: (s.images, s.sigma_rel))


def reconstruct(source: str | os.PathLike | Iterable[str | os.PathLike], sigma_rel: float, images: int | None = None) -> dict[str, Tensor]:
    """Make the power-function average of any width after training (EDM2, section 3.2); every snapshot is read once.

    Args:
        source: folder of snapshots, or their paths.
        sigma_rel: wanted width; below the narrowest stored one the result is an extrapolation and a warning says so.
        images: end of the average, in images seen; the newest snapshot by default. Later snapshots are not used.

    Returns:
        float32 weights by their names in ``state_dict``.

    Raises:
        ValueError: ``sigma_rel`` outside (0, 0.2886751), no snapshot up to ``images``, or snapshots of different networks.
    """
    from safetensors.torch import load_file

    stored = snapshots_in(source)
    end = stored[-1].images if images is None else images
    used = [s for s in stored if s.images <= end]
    if not used:
        raise ValueError(f"no snapshot was written within the first {end} images; the oldest is at {stored[0].images}")
    gamma = gamma_of(sigma_rel)
    if sigma_rel < (narrowest := min(s.sigma_rel for s in used)):
        warnings.warn(f"sigma_rel={sigma_rel} is narrower than the narrowest stored average ({narrowest}): an extrapolation", stacklevel=2)
    factors = coefficients([s.images for s in used], [gamma_of(s.sigma_rel) for s in used], end, gamma)
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(used, factors, strict=True):
        weights = load_file(snapshot.path)
        total = total or {name: torch.zeros(w.shape) for name, w in weights.items()}
        if total.keys() != weights.keys():
            raise ValueError(f"{snapshot.path} holds other weights than {used[0].path}: they belong to different networks")
        for name, w in weights.items():
            total[name].add_(w.float(), alpha=float(factor))
    return total
