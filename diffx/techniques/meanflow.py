"""MeanFlow: average velocities, so that one network evaluation leads from noise to data (Geng et al. 2025, arXiv:2505.13447)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser, FlowPrecond, FlowTime
from ..guidance import Guide
from ..module import Batch
from ..recipes import recorded
from ..samplers import Sampler
from ..schedules import LogNormal, Schedule
from ..tensors import expand, handed, mean_flat
from .gaussian import Gaussian

__all__ = ["Jumps", "MeanFlow", "average_target", "total_derivative"]

AverageVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z (B, *), r (B,), t (B,)) -> u (B, *): average velocity of the path through z at time t, from r to t."""


def total_derivative(fn: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """d/dt fn(z(t), t) along a path with dz/dt = ``velocity``, by forward-mode differentiation and without a graph.

    Attention inside ``fn`` takes torch's plain road, because the fused ones have no forward mode, and autocast is off: the derivative is
    a difference that half precision would drown.

    Args:
        fn: function of state (B, *) and time (B,).
        z: state (B, *).
        t: time (B,).
        velocity: direction (B, *) of the state.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.autocast(z.device.type, enabled=False):
        return torch.func.jvp(fn, (z, t), (velocity, torch.ones_like(t)))[1]


def average_target(average: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """The right side of the MeanFlow identity u(z, r, t) = v - (t - r) du/dt, with du/dt taken along ``velocity`` v (B, *)."""
    return velocity - expand(t - r, z) * total_derivative(lambda z, t: average(z, r, t), z, t, velocity)


@recorded
@dataclass(frozen=True)
class Jumps:
    """z <- z - (t - r) u(z, r, t) over ``steps`` equal spans from t = 1 to 0: the sampler of average velocities.

    Args:
        steps: number of network evaluations.

    Raises:
        ValueError: fewer than one step.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got steps={self.steps}")

    def __call__(self, average: AverageVelocity, noise: Tensor) -> Tensor:
        """Bring unit noise (B, *) to data."""
        z = noise
        for i in range(self.steps, 0, -1):
            r, t = (torch.full((len(z),), end / self.steps, device=z.device) for end in (i - 1, i))
            z = z - average(z, r, t) / self.steps
        return z


class MeanFlow(Gaussian):
    """Learns the average velocity u(z, r, t) of the straight path z = (1 - t) x + t n, without a teacher.

    The network is told t as its noise coordinate and t - r as the vector ``"duration"``. A duration of 0 is the same as no duration, so the
    trained denoiser is a rectified-flow denoiser too: `sample` with any sampler of `diffx.samplers`, guidance included, follows its
    instantaneous velocity, while the default, `Jumps`, takes whole spans at once.

    Args:
        denoiser: network that takes the vector ``"duration"`` of length 1, under ``FlowPrecond(noise=FlowTime(...))``. A small factor of
            `FlowTime`, about 1 to 10, keeps the derivative in t tame.
        schedule: law of the first time, as sigma = t / (1 - t); a log-normal sigma is a logit-normal t.
        second: law of the second time; the same by default. t is the larger of the two, r the smaller.
        spans: share of the samples with r < t; the others have r = t and learn the instantaneous velocity.
        power: each squared error e is weighted with 1 / (e + ``floor``)^power, held constant in the gradient; 0 is the plain squared error.
        floor: see ``power``.
        sampler: used by `sample` unless another is given.
        options: see `Gaussian`.

    Raises:
        ValueError: another preconditioning, a network without the vector ``"duration"``, ``spans`` outside (0, 1].
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        schedule: Schedule = LogNormal(-0.4, 1.0),
        second: Schedule | None = None,
        spans: float = 0.25,
        power: float = 1.0,
        floor: float = 1e-3,
        sampler: Sampler | Jumps | None = None,
        **options: Any,
    ) -> None:
        if not 0 < spans <= 1:
            raise ValueError(f"spans is the share of samples with r < t, in (0, 1], got {spans}; with 0 this is flow matching: use EDM")
        super().__init__(denoiser=denoiser, schedule=schedule, sampler=None, **options)
        self.factor = _time_factor(denoiser)
        self.second = second or schedule
        self.spans, self.power, self.floor = spans, power, floor
        self.sampler: Any = sampler or Jumps()

    def average(self, z: Tensor, r: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """u(z, r, t) (B, *) in float32 or wider; the network itself, because the sigma frame has no room for t = 1."""
        net = self.denoiser.net
        cond = replace(cond, vectors={**cond.vectors, "duration": (t - r)[:, None]})
        dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), z.dtype)
        out = net(z.to(dtype), self.factor * t, cond)
        return (out[0] if isinstance(out, tuple) else out).to(z.dtype)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Adaptively weighted ``"loss"`` and plain squared error ``"mse"`` against the target, each ``(B,)``; u is the position of t."""
        x, cond = self.inputs(batch)
        r, t = self.times(len(x), u)
        noise = torch.randn_like(x)
        z, velocity = torch.lerp(x, noise, expand(t, x)), noise - x
        # rows are interchangeable; rounding at random keeps the share in small batches
        k = int(self.spans * len(x) + torch.rand((), generator=self.alike("spans")))
        r = torch.where(torch.arange(len(x), device=r.device) < k, r, t)
        target = velocity
        if k:
            some = cond.rows(slice(k)) if len(cond) else cond
            spanning = average_target(lambda z, r, t: self.average(z, r, t, some), z[:k], r[:k], t[:k], velocity[:k])
            target = torch.cat([spanning, velocity[k:]])
        error = (self.average(z, r, t, cond) - target).square()
        total = error.flatten(1).sum(1)
        return {"loss": total / (total.detach() + self.floor) ** self.power, "mse": mean_flat(error)}

    def times(self, n: int, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Times r <= t, each ``(n,)``; u fixes t."""
        first = self.schedule.sigma(self.positions(n) if u is None else u)
        other = self.second.sigma(handed(rng.rand((n,)), first.device, first.dtype))
        high, low = (first, torch.minimum(first, other)) if u is not None else (torch.maximum(first, other), torch.minimum(first, other))
        return low / (1 + low), high / (1 + high)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | Jumps | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `DiffusionModule.sample`; with `Jumps` by average velocities, else along the instantaneous one.

        Raises:
            ValueError: guidance with `Jumps`: a contrast of two average velocities is not the average of the guided velocity.
        """
        walk = sampler or self.sampler
        if not isinstance(walk, Jumps):
            return super().sample(n, cond, guidance=guidance, sampler=walk, seed=seed, shape=shape, chunk=chunk)
        if not isinstance(guidance, (int, float)) or guidance != 1:
            raise ValueError(f"average velocities cannot be guided, got guidance = {guidance}; give a sampler such as Heun()")

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            return walk(lambda z, r, t: self.average(z, r, t, cond), rng.randn(size, generators, device=self.device))

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)


def _time_factor(denoiser: Denoiser) -> float:
    """What t is multiplied with for the network."""
    noise = getattr(denoiser.precond, "noise", None)
    if not isinstance(denoiser.precond, FlowPrecond) or not isinstance(noise, FlowTime):
        got = f"{type(denoiser.precond).__name__} with {type(noise).__name__}"
        raise ValueError(f"MeanFlow needs Denoiser(net, FlowPrecond(FlowTime(...))), whose coordinate is finite at t = 1; got {got}")
    takes = getattr(denoiser.net, "conditions", None)
    if takes is not None and takes.vectors.get("duration") != 1:
        raise ValueError(f"MeanFlow needs a network built with vectors={{'duration': 1, ...}}; this one takes {dict(takes.vectors)}")
    return noise.factor
