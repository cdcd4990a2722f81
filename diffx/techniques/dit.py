"""DiT and SiT: the training of diffusion transformers (Peebles & Xie 2023, arXiv:2212.09748; Ma et al. 2024, arXiv:2401.08740)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser, EpsPrecond, FlowPrecond, FlowTime, Timesteps
from ..guidance import Carry, Guide, carried
from ..module import Batch
from ..recipes import recorded
from ..rng import noised
from ..samplers import Heun, LearnedAncestral, Sampler
from ..schedules import DDPM, Flow, Schedule, Table
from ..tensors import expand, handed, mean_flat
from .edm import EDM

__all__ = ["DiTDiffusion", "LearnedRange"]


@recorded
@dataclass(frozen=True)
class LearnedRange:
    """Variance of the reverse step, learnt between its two bounds by the variational bound (Nichol & Dhariwal 2021, arXiv:2102.09672).

    The network gives, beside the noise, C further channels o. With v = (o + 1) / 2 the step from timestep i has the variance
    exp(v log beta_i + (1 - v) log beta~_i) (eq. 15), where beta~ is the variance of the posterior.

    Args:
        table: the discrete process; training and the bound use its levels only.
        weight: of the bound beside the squared error of the noise; 1 in DiT.
    """

    table: Table = field(default_factory=DDPM)
    weight: float = 1.0

    def index(self, u: Tensor) -> Tensor:
        """Timestep (B,) int64 in [0, T - 1] at positions ``u`` (B,): each has an equal share of [0, 1]."""
        steps = len(self.table.table)
        return ((u.double() * steps).ceil().long() - 1).clamp(0, steps - 1)

    def sigma(self, index: Tensor) -> Tensor:
        """Levels (B,) float32 of timesteps ``index`` (B,)."""
        return handed(self.table.table.float(), index.device)[index]

    def log_variance(self, share: Tensor, index: Tensor) -> Tensor:
        """Log-variance (B, *) of the step from timesteps ``index`` (B,) with v = ``share`` (B, *), of the variance-preserving state."""
        small, wider, _ = self._steps(index, share)
        return small + wider * share

    def bound(self, x0: Tensor, estimate: Tensor, share: Tensor, index: Tensor) -> Tensor:
        """The terms of the variational bound at timesteps ``index``, (B,) in bits per dimension.

        The divergence of the modelled reverse step from the true one; at timestep 0 the negative log-likelihood of data on 256 levels in
        [-1, 1].

        Args:
            x0: clean data (B, *).
            estimate: what the network takes it for (B, *); give it detached, so that the bound trains the variance only.
            share: v (B, *).
            index: timesteps (B,).
        """
        small, wider, gap = self._steps(index, share)
        moved, last = wider * share, expand(index, share) == 0
        divergence = 0.5 * (moved - 1 + (1 + gap * (x0 - estimate).square()) * (-moved).exp())
        likelihood = _log_bin(x0, estimate, torch.where(last, 0.5 * (small + moved), 0.0).exp())
        return mean_flat(torch.where(last, -likelihood, divergence)) / math.log(2)

    def _steps(self, index: Tensor, like: Tensor) -> list[Tensor]:
        """Log beta~, log(beta / beta~) and w^2 / beta~ of the steps from ``index``; w is the weight of x0 in the mean of the posterior."""
        return [expand(column[index], like) for column in handed(self._columns, index.device, like.dtype)]

    @cached_property
    def _columns(self) -> Tensor:
        """The three columns of `_steps`, (3, T) float64, from a^2 = level i squared and b^2 = level i - 1 squared."""
        a2 = self.table.table.square()
        b2 = torch.cat([a2.new_zeros(1), a2[:-1]])
        large, small = (a2 - b2) / (1 + a2), b2 * (a2 - b2) / (a2 * (1 + b2))
        small[0] = small[1]  # the posterior of timestep 0 has no variance: published code takes that of timestep 1
        gap = (a2 - b2) / (a2 * b2)
        gap[0] = 0.0  # not used: there the likelihood counts
        return torch.stack([small.log(), (large / small).log(), gap])


class DiTDiffusion(EDM):
    """Diffusion transformers, trained by flow matching (SiT) or, with ``variance``, as DiT was published.

    | | flow matching, the default | learned variance |
    |---|---|---|
    | network predicts | n - x0 | n, and the share v of its variance: twice the channels |
    | levels | `Flow`, uniform in time | those of ``variance.table`` |
    | loss | squared error | squared error of n + bound of v |
    | sampler | `Heun`, 25 steps | `LearnedAncestral`, 250 steps; the deterministic ones work, too |

    With a `Denoiser` of any other preconditioning and its schedule this is `EDM`: ``Denoiser(net, EDMPrecond(1.0))`` and ``LogNormal()``.

    Args:
        denoiser: a `Denoiser`, or a bare network: it then predicts what the table says and sees 1000 t, or the timestep.
        variance: learn the variance of the reverse process on this table; the denoiser must then predict noise (`EpsPrecond`).
        schedule: training noise levels; by default as in the table, and fixed with ``variance``.
        sampler: used by `sample` unless another is given; by default as in the table.
        options: see `EDM`; weighting, distance and uncertainty act on the squared error, not on the bound.

    Raises:
        ValueError: a schedule, or another preconditioning than `EpsPrecond`, together with ``variance``.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        variance: LearnedRange | None = None,
        schedule: Schedule | None = None,
        sampler: Sampler | None = None,
        **options: Any,
    ) -> None:
        if variance is not None and schedule is not None:
            raise ValueError(f"a learned variance is trained on the levels of its own table, got also schedule = {schedule}; leave it out")
        if not isinstance(denoiser, Denoiser):
            denoiser = Denoiser(denoiser, FlowPrecond(FlowTime()) if variance is None else EpsPrecond(Timesteps(variance.table)))
        if variance is not None and not isinstance(denoiser.precond, EpsPrecond):
            raise ValueError(f"a learned variance goes with EpsPrecond, the denoiser has {denoiser.precond}")
        if sampler is None:
            sampler = Heun(25) if variance is None else LearnedAncestral(min(250, len(variance.table.table)), variance.table)
        levels = (schedule or Flow()) if variance is None else variance.table
        super().__init__(denoiser=denoiser, schedule=levels, sampler=sampler, **options)
        self.variance = variance

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """As `EDM.loss`; with a learned variance there is also ``"bound"`` (B,), in bits per dimension, and ``u`` names a timestep."""
        if self.variance is None:
            return super().loss(batch, u)
        x, cond = self.inputs(batch)
        index = self.variance.index(self.positions(len(x)) if u is None else u)
        sigma = self.variance.sigma(index)
        noisy = noised(x, sigma)
        out, _ = self.denoiser.raw(noisy, sigma, cond)
        x0 = self.denoiser.assemble(noisy, sigma, out)
        bound = self.variance.bound(x, x0.detach(), _share(out, x).to(x0.dtype), index)
        parts = self.errors(x0, x, sigma, batch)
        return {**parts, "loss": parts["loss"] + self.variance.weight * bound, "bound": bound}

    def guided(self, n: int, cond: Cond, guidance: Any) -> tuple[Cond, Guide]:
        """As in `Gaussian`; the learned variance, that of the conditional estimate, goes along for `LearnedAncestral` to read."""
        cond, guide = super().guided(n, cond, guidance)
        return cond, guide if self.variance is None else partial(_Reverse, guide)


class _Reverse:
    """A denoise function that also knows the ``share`` of the variance, (B, *), that came with its last conditional estimate."""

    def __init__(self, guide: Guide, denoiser: Denoiser, cond: Cond) -> None:
        self.carry = Carry()
        told: Any = _Told(denoiser)
        self.denoise: Denoise = carried(guide, told, cond, self.carry)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise(x, sigma)

    @property
    def share(self) -> Tensor | None:
        return self.carry.value


class _Told:
    """A denoiser whose share of the variance is its extra output, so that guides carry that of the conditional branch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        return self.denoiser(x, sigma, cond)

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), carry: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, _ = self.denoiser.raw(x, sigma, cond)
        return out, _share(out, x)


def _share(out: Tensor, x: Tensor) -> Tensor:
    """V = (o + 1) / 2 from the second half of the channels."""
    if out.shape[1] != 2 * x.shape[1]:
        raise ValueError(
            f"a learned variance needs twice the channels of the data, {2 * x.shape[1]}, but the network gives {out.shape[1]}; "
            f"build it with out_channels={2 * x.shape[1]}"
        )
    return (out[:, x.shape[1] :] + 1) / 2


def _log_bin(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Ln of the normal probability of the bin of width 2 / 255 around ``x0``; the outermost bins are open (Ho et al. 2020, eq. 13)."""
    above, below = (x0 - mean + 1 / 255) / std, (x0 - mean - 1 / 255) / std
    inside = (torch.special.ndtr(above) - torch.special.ndtr(below)).clamp(min=1e-12).log()
    lowest, highest = torch.special.log_ndtr(above), torch.special.log_ndtr(-below)
    return torch.where(x0 < -0.999, lowest, torch.where(x0 > 0.999, highest, inside))
