"""Data whose best denoiser is known in closed form: a Gaussian and a mixture of Gaussians, any shape, every value independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffx.conditions import Cond
from diffx.tensors import expand


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2): D = (sigma^2 mean + std^2 x) / (sigma^2 + std^2)."""

    mean: float = 0.0
    std: float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = expand(sigma, x)
        return (sigma**2 * self.mean + self.std**2 * x) / (sigma**2 + self.std**2)

    def flow(self, x: float, sigma: float, sigma_next: float) -> float:
        """Where the probability-flow ODE takes ``x`` from one level to another."""
        return self.mean + (x - self.mean) * ((self.std**2 + sigma_next**2) / (self.std**2 + sigma**2)) ** 0.5


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(mean_k, std_k^2), by default two unequal modes."""

    weights: Sequence[float] = (0.3, 0.7)
    means: Sequence[float] = (-0.6, 0.5)
    stds: Sequence[float] = (0.1, 0.2)

    def _terms(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights, means, stds = (x.new_tensor(values) for values in (self.weights, self.means, self.stds))
        x, variance = x[..., None], stds**2 + expand(sigma, x)[..., None] ** 2
        return x, means, stds, weights.log() - variance.log() / 2 - (x - means) ** 2 / (2 * variance)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        wide, means, stds, logits = self._terms(x, sigma)
        square = expand(sigma, x)[..., None] ** 2
        return (logits.softmax(-1) * (square * means + stds**2 * wide) / (square + stds**2)).sum(-1)

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log-density of the noisy data up to a constant."""
        return self._terms(x, sigma)[3].logsumexp(-1)


@dataclass
class Counted:
    """A denoise function, or a denoiser with its condition, that counts its evaluations and the samples in them."""

    inner: Any
    calls: int = 0
    samples: int = 0

    def __call__(self, x: Tensor, sigma: Tensor, *cond: Cond) -> Tensor:
        self.calls += 1
        self.samples += len(x)
        return self.inner(x, sigma, *cond)


@dataclass(frozen=True)
class Conditional:
    """A denoiser: samples that see their label get ``cond``, the others ``null``."""

    cond: Gaussian = Gaussian(1.0, 0.5)
    null: Gaussian = Gaussian(0.0, 0.5)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        seen = cond.visible("label") if cond.label is not None else torch.zeros(len(x), dtype=torch.bool)
        return torch.where(expand(seen, x), self.cond(x, sigma), self.null(x, sigma))


def column(*values: float) -> Tensor:
    """Numbers as a batch of one-value samples (B, 1) in float64."""
    return torch.tensor(values, dtype=torch.float64)[:, None]
