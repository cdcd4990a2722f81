"""Loss weightings: how much the squared error of the x0 estimate counts at each noise level.

All are functions of ``sigma`` (B,) that return the weight (B,) in ``loss = weight(sigma) * mean |D(x, sigma) - x0|^2``, whatever the
network itself predicts. With SNR = sigma^-2 (the standard deviation of the data does not enter), an error elsewhere is this one times

| space | factor on the x0 error |
|---|---|
| noise (eps) | SNR |
| velocity (v) | SNR + 1 |
| flow (n - x0) | ((1 + sigma) / sigma)^2 |
| EDM's F | SNR + 1 / sigma_data^2 |

so a weight published in one of these spaces is multiplied by its factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .recipes import recorded

__all__ = ["EDM", "SNR", "Cosmap", "LearnedUncertainty", "MinSNR", "SNRPlusOne", "SoftMinSNR", "TruncatedSNR", "Uniform", "Weighting"]

Weighting: TypeAlias = Callable[[Tensor], Tensor]


@recorded
@dataclass(frozen=True)
class Uniform:
    """1: plain squared error of x0."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


@recorded
@dataclass(frozen=True)
class SNR:
    """SNR: plain squared error of the noise (DDPM's simple loss)."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2


@recorded
@dataclass(frozen=True)
class SNRPlusOne:
    """SNR + 1: plain squared error of v (Salimans & Ho 2022)."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2 + 1


@recorded
@dataclass(frozen=True)
class EDM:
    """SNR + 1 / sigma_data^2: plain squared error of the network under EDM's preconditioning (Karras et al. 2022, table 1).

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2 + self.sigma_data**-2


@recorded
@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1): the larger of the noise error and the x0 error (Salimans & Ho 2022)."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**-2).clamp(min=1)


@recorded
@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma): easy levels of low noise count no more than ``gamma`` (Hang et al. 2023).

    Args:
        gamma: the cap.
    """

    gamma: float = 5.0

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**-2).clamp(max=self.gamma)


@recorded
@dataclass(frozen=True)
class SoftMinSNR:
    """gamma SNR / (SNR + gamma), the smooth form of `MinSNR`; the same function as a sigmoid in log-SNR with bias ln(gamma).

    Args:
        gamma: the value approached at low noise.
    """

    gamma: float = 5.0

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.gamma / (1 + self.gamma * sigma**2)


@recorded
@dataclass(frozen=True)
class Cosmap:
    """2 / (pi (1 - 2t + 2t^2)) on the flow error with t = sigma / (1 + sigma) (Esser et al. 2024), as a weight on the x0 error."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return 2 / math.pi * (1 + sigma) ** 4 / (sigma**2 * (1 + sigma**2))


@recorded
class LearnedUncertainty(nn.Module):
    """Weights learnt as the network's own uncertainty: loss / exp(u(sigma)) + u(sigma) (Karras et al. 2024, EDM2).

    At its optimum u(sigma) is the logarithm of the expected loss at that level, so all levels pull equally hard. u is a linear map of
    random Fourier features of ln(sigma) / 4; it starts at 0, where the loss passes unchanged. Thrown away after training.

    Args:
        channels: number of Fourier features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))
        self.weight = nn.Parameter(torch.zeros(channels))

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """u(sigma), (B,) to (B,): the logarithm of the loss to expect."""
        phase = sigma[:, None].to(self.phases.dtype).log() / 4 * self.frequencies + self.phases
        return math.sqrt(2 / len(self.weight)) * (phase.cos() * self.weight).sum(1)  # no matmul: autocast would round it

    def forward(self, sigma: Tensor, loss: Tensor) -> Tensor:
        """Balance ``loss`` (B,), already weighted, at levels ``sigma`` (B,)."""
        u = self.uncertainty(sigma)
        return loss * (-u).exp() + u
