"""`Denoiser`: a network and a preconditioning, together an estimate of clean data at any noise level.

Everything happens in the sigma frame ``x = x0 + sigma n``. A preconditioning turns what a network predicts into x0:

    D(x, sigma) = skip(sigma) x + out(sigma) net(inp(sigma) x, noise(sigma))

| network predicts | skip | out | inp |
|---|---|---|---|
| EDM's F | sd^2 / (sigma^2 + sd^2) | sigma sd / sqrt(sigma^2 + sd^2) | 1 / sqrt(sigma^2 + sd^2) |
| eps = n | 1 | -sigma | 1 / sqrt(1 + sigma^2) |
| v = (n - sigma x0) / sqrt(1 + sigma^2) | 1 / (1 + sigma^2) | -sigma / sqrt(1 + sigma^2) | 1 / sqrt(1 + sigma^2) |
| x0 | 0 | 1 | 1 / sqrt(1 + sigma^2) |
| flow = n - x0 | 1 / (1 + sigma) | -sigma / (1 + sigma) | 1 / (1 + sigma) |

``inp`` brings x to the state that the named process feeds its network. With sd = 1, F = -v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .conditions import Cond
from .recipes import recorded
from .schedules import DDPM, Schedule, Table
from .tensors import expand

__all__ = [
    "Denoise", "Denoiser", "EDMPrecond", "EpsPrecond", "FlowPrecond", "FlowTime", "LogSigma", "NoiseCoordinate", "Position", "Scales",
    "SignalShare", "Timesteps", "VPrecond", "X0Precond",
]  # fmt: skip

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x (B, *), sigma (B,)) -> x0 (B, *): a denoiser whose condition is bound."""
NoiseCoordinate: TypeAlias = Callable[[Tensor], Tensor]
"""sigma (B,) -> what the network embeds (B,)."""


class Scales(NamedTuple):
    """What a preconditioning gives for ``sigma`` (B,); each is (B,)."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


@recorded
@dataclass(frozen=True)
class LogSigma:
    """Noise coordinate ``factor * ln(sigma)``: smooth, unbounded, the same for every process. EDM's is the default.

    Args:
        factor: 1/4 in EDM.
    """

    factor: float = 0.25

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.factor * sigma.log()


@recorded
@dataclass(frozen=True)
class Timesteps:
    """Noise coordinate of published discrete networks: the timestep 0 .. T - 1, continued between the integers.

    Args:
        table: the table of levels the network was trained on.
    """

    table: Table = field(default_factory=DDPM)

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.table.index(sigma)


@recorded
@dataclass(frozen=True)
class Position:
    """Noise coordinate ``factor * u(sigma)`` on a schedule, e.g. ``Position(VP(), 999)`` of variance-preserving SDE networks.

    Args:
        schedule: whose positions count.
        factor: what the position in [0, 1] is multiplied with.
    """

    schedule: Schedule
    factor: float = 1.0

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.factor * self.schedule.u(sigma)


@recorded
@dataclass(frozen=True)
class FlowTime:
    """Noise coordinate ``factor * t`` of flow networks, t = sigma / (1 + sigma).

    Args:
        factor: 1 for networks that scale the time themselves, 1000 for most published ones.
    """

    factor: float = 1000.0

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.factor * sigma / (1 + sigma)


@recorded
@dataclass(frozen=True)
class SignalShare:
    """Noise coordinate ``factor * gamma`` of RIN, gamma = 1 / (1 + (scale sigma)^2): the share of signal in the variance, not the time.

    Args:
        factor: what gamma in (0, 1) is multiplied with.
        scale: input scale b of a process that multiplies the data by it; see `diffx.schedules.Shifted`.
    """

    factor: float = 1000.0
    scale: float = 1.0

    def __call__(self, sigma: Tensor) -> Tensor:
        return self.factor / (1 + (self.scale * sigma) ** 2)


@recorded
@dataclass(frozen=True)
class EDMPrecond:
    """The network sees and predicts unit variance at every level (Karras et al. 2022, EDM, table 1).

    Args:
        sigma_data: standard deviation of the data.
        noise: coordinate of ``sigma`` handed to the network.
    """

    sigma_data: float = 0.5
    noise: NoiseCoordinate = field(default_factory=LogSigma)

    def __call__(self, sigma: Tensor) -> Scales:
        total = sigma**2 + self.sigma_data**2
        return Scales(self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt(), self.noise(sigma))


@recorded
@dataclass(frozen=True)
class EpsPrecond:
    """The network predicts the noise of a variance-preserving state (DDPM).

    Args:
        noise: coordinate of ``sigma`` handed to the network; `Timesteps` for published discrete ones.
    """

    noise: NoiseCoordinate = field(default_factory=LogSigma)

    def __call__(self, sigma: Tensor) -> Scales:
        return Scales(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), self.noise(sigma))


@recorded
@dataclass(frozen=True)
class VPrecond:
    """The network predicts the velocity of a variance-preserving state (Salimans & Ho 2022).

    Args:
        noise: coordinate of ``sigma`` handed to the network; `Timesteps` for published discrete ones.
    """

    noise: NoiseCoordinate = field(default_factory=LogSigma)

    def __call__(self, sigma: Tensor) -> Scales:
        alpha = (1 + sigma**2).rsqrt()
        return Scales(alpha**2, -sigma * alpha, alpha, self.noise(sigma))


@recorded
@dataclass(frozen=True)
class X0Precond:
    """The network predicts clean data from a variance-preserving state.

    Args:
        noise: coordinate of ``sigma`` handed to the network; `Timesteps` for published discrete ones.
    """

    noise: NoiseCoordinate = field(default_factory=LogSigma)

    def __call__(self, sigma: Tensor) -> Scales:
        return Scales(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2).rsqrt(), self.noise(sigma))


@recorded
@dataclass(frozen=True)
class FlowPrecond:
    """The network predicts n - x0 from the rectified-flow state (1 - t) x0 + t n, t = sigma / (1 + sigma).

    Args:
        noise: coordinate of ``sigma`` handed to the network; `FlowTime` for published ones.
    """

    noise: NoiseCoordinate = field(default_factory=LogSigma)

    def __call__(self, sigma: Tensor) -> Scales:
        share = 1 / (1 + sigma)
        return Scales(share, -sigma * share, share, self.noise(sigma))


@recorded
class Denoiser(nn.Module):
    """D(x, sigma, cond) -> x0: a network wrapped by a preconditioning.

    Args:
        net: ``net(x (B, C, *), noise (B,), cond) -> (B, C_out, *)`` or ``(that, extra)``.
        precond: ``sigma (B,) -> Scales``; EDM's by default.
    """

    def __init__(self, net: nn.Module, precond: Callable[[Tensor], Scales] = EDMPrecond()) -> None:
        super().__init__()
        self.net = net
        self.precond = precond

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What of it is entered by a call: `forward` and `raw` are two ways to the same network."""
        return (self.net,)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        """Estimate clean data, (B, C, *) like ``x``, in float32 (float64 if ``x`` is) whatever the autocast.

        Raises:
            ValueError: ``sigma`` is not (B,), or the network's output does not fit ``x``.
        """
        return self.assemble(x, sigma, self.raw(x, sigma, cond)[0])

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), **inputs: Any) -> tuple[Tensor, Any]:
        """The network's own output with all its channels, and whatever else it returned (None if nothing).

        The input is cast to the floating type of the parameters, the noise coordinate stays in float32 or wider. ``inputs`` are further
        keywords for the network, e.g. ``carry``.

        Raises:
            ValueError: ``sigma`` is not (B,).
        """
        return self._answer(self.net, x, self._checked(x, sigma), cond, inputs)

    def assemble(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """The x0 estimate that the network output ``out`` stands for; channels of ``out`` beyond those of ``x`` are dropped.

        Raises:
            ValueError: ``sigma`` is not (B,), or ``out`` does not fit ``x``.
        """
        sigma = self._checked(x, sigma)
        if x.ndim > 1:
            out = out[:, : x.shape[1]]
        if out.shape != x.shape:
            raise ValueError(f"the network must return at least the channels of its input {tuple(x.shape)}, got {tuple(out.shape)}")
        scales = self.precond(sigma)
        return expand(scales.skip, x) * x.to(sigma.dtype) + expand(scales.out, x) * out.to(sigma.dtype)

    def target(self, x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
        """The network output that stands for ``x0`` at state ``x``, the inverse of `assemble`: what a raw loss regresses."""
        sigma = self._checked(x, sigma)
        scales = self.precond(sigma)
        return (x0.to(sigma.dtype) - expand(scales.skip, x) * x.to(sigma.dtype)) / expand(scales.out, x)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / out(sigma)^2: weights the squared x0 error so that it is the plain squared error of the network's output."""
        return self.precond(sigma).out ** -2

    def takes(self, name: str) -> bool:
        """Whether the network takes the condition ``name``; one that does not say (no attribute ``conditions``) is asked to take all."""
        conditions = getattr(self.net, "conditions", None)
        return conditions is None or name in conditions.names

    def _answer(self, net: nn.Module, x: Tensor, sigma: Tensor, cond: Cond, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Scale the input, call ``net`` with the noise coordinate."""
        scales = self.precond(sigma)
        dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), sigma.dtype)
        out = net((expand(scales.inp, x) * x).to(dtype), scales.noise, cond, **inputs)
        return out if isinstance(out, tuple) else (out, None)

    @staticmethod
    def _checked(x: Tensor, sigma: Tensor) -> Tensor:
        if not isinstance(sigma, Tensor) or sigma.shape != x.shape[:1]:
            got = tuple(sigma.shape) if isinstance(sigma, Tensor) else type(sigma).__name__
            raise ValueError(f"sigma must be one level per sample, ({len(x)},), got {got}; use torch.full(({len(x)},), sigma)")
        return sigma.to(torch.promote_types(x.dtype, torch.float32))
