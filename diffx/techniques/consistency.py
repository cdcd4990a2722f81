"""Consistency: every point of a trajectory is mapped to its clean end, so that one evaluation samples (Song et al. 2023, arXiv:2303.01469).

The schedule of the pairs is that of easy consistency tuning (Geng et al. 2024, arXiv:2406.14548).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, as_guide
from ..module import Batch
from ..recipes import recorded
from ..samplers import Heun, MultiStep, Sampler
from ..schedules import LogNormal, Schedule
from ..tensors import expand
from .distillation import Distillation
from .gaussian import Gaussian

__all__ = ["ConsistencyDistillation", "EasyTuning", "distance"]


@recorded
@dataclass(frozen=True)
class EasyTuning:
    """The lower level of a pair, r = t (1 - n(t) / q^a) with n(t) = 1 + k / (1 + e^t) and never below 0.

    In the first stages nearly every r is 0, which is plain denoising; with the stage a the pair closes and its lower level rises.

    Args:
        images: images seen per stage.
        stages: the last stage a; the first is 1.
        base: q; the gap shrinks by this factor per stage.
        slope: k; pairs at low levels lie up to (1 + k/2) times as far apart, relative to t, as those at high levels.

    Raises:
        ValueError: an option out of range.
    """

    images: float = 6.4e6
    stages: int = 8
    base: float = 2.0
    slope: float = 8.0

    def __post_init__(self) -> None:
        if self.images <= 0 or self.stages < 1 or self.base <= 1 or self.slope < 0:
            raise ValueError(f"EasyTuning needs images > 0, stages >= 1, base > 1 and slope >= 0, got {self}")

    def stage(self, images: float) -> int:
        """The stage, 1 to ``stages``, after so many images seen."""
        return min(1 + int(images // self.images), self.stages)

    def lower(self, sigma: Tensor, stage: int) -> Tensor:
        """The lower levels r (B,) of pairs whose upper levels are ``sigma`` (B,); 0 <= r < sigma."""
        return sigma * (1 - (1 + self.slope * torch.sigmoid(-sigma)) / self.base**stage).clamp(min=0)


def distance(a: Tensor, b: Tensor, huber: float | None) -> Tensor:
    """Pseudo-Huber distance ``sqrt(|a - b|^2 + c^2) - c`` per sample, (B,), with c = ``huber`` sqrt(d) in d dimensions.

    Squared near 0, a norm far out, so that outliers do not decide the step (Song & Dhariwal 2024, arXiv:2310.14189). None = squared norm.
    """
    square = (a - b).square().flatten(1).sum(1)
    if huber is None:
        return square
    c = huber * a[0].numel() ** 0.5
    return square / ((square + c * c).sqrt() + c)


class ConsistencyDistillation(Distillation):
    """The student f(x, t) is to give the same answer at both ends of a short stretch of a trajectory, from level t down to r.

    Its target at r is its own answer without gradient, computed under the same dropout; where r = 0, the state itself: f(x, 0) = x. Which
    trajectory decides between two methods:

    | solver | state at r | method |
    |---|---|---|
    | a sampler | one step of it from t to r under the teacher | consistency distillation |
    | None | x0 + r n, with the x0 and n of the state at t | consistency training: the teacher is only where the student starts |

    Args:
        teacher: see `Distillation`.
        student: what is trained; a copy of the teacher by default. Its preconditioning must give f(x, 0) = x: EDM, eps, v and flow do.
            Of these eps is a poor choice, since it multiplies the network's error with the level.
        solver: deterministic one-step method such as `Heun` or `Euler`; None for consistency training.
        guidance: of the teacher; the student then samples guided without guidance.
        tuning: law of the lower levels.
        huber: see `distance`.
        schedule: law of the upper levels t.
        sampler: used by `sample` unless another is given; one evaluation from level 80 by default. Two or more by
            ``MultiStep(2, Levels((80.0, 0.8)))``.
        options: see `Distillation`.

    Raises:
        ValueError: a preconditioning without f(x, 0) = x, ``huber`` not positive, or what `Distillation` refuses.
    """

    def __init__(
        self,
        teacher: Denoiser | Gaussian,
        student: Denoiser | None = None,
        *,
        solver: Sampler | None = Heun(),
        guidance: float | Guide = 1.0,
        tuning: EasyTuning = EasyTuning(),
        huber: float | None = 0.00054,
        schedule: Schedule = LogNormal(-1.1, 2.0),
        sampler: Sampler | None = None,
        **options: Any,
    ) -> None:
        super().__init__(teacher=teacher, student=student, schedule=schedule, sampler=sampler or MultiStep(), **options)
        _check_boundary(self.denoiser)
        if huber is not None and huber <= 0:
            raise ValueError(f"huber must be positive, or None for the squared distance, got {huber}")
        self.solver, self.guide, self.tuning, self.huber = solver, as_guide(guidance), tuning, huber

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Distance between the answers over the gap t - r as ``"loss"``, the bare ``"distance"``, both ``(B,)``, and the ``"stage"``.

        u is the position of t on the schedule. Losses of different stages do not compare.
        """
        x0, cond = self.inputs(batch)
        stage = self.tuning.stage(self.images_seen)
        t = self.schedule.sigma(self.positions(len(x0)) if u is None else u)
        r = self.tuning.lower(t, stage)
        noise = torch.randn_like(x0)
        x = x0 + expand(t, x0) * noise
        below = x0 + expand(r, x0) * noise if self.solver is None else self._solved(self.solver, x, t, r, cond)
        masks = int(torch.randint(2**62, ()))  # one seed for both evaluations: the same units drop out
        rng.seed_default(masks)
        answer = self.denoiser(x, t, cond)
        rng.seed_default(masks)
        apart = distance(answer, self._target(below, r, cond), self.huber)
        return {"loss": apart / (t - r), "distance": apart, "stage": torch.full((), float(stage), device=t.device)}

    @torch.no_grad()
    def _solved(self, solver: Sampler, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        return solver.step(self.guide(self.teacher, cond), x, t, r)

    @torch.no_grad()
    def _target(self, x: Tensor, r: Tensor, cond: Cond) -> Tensor:
        """The student's answer at r; a network cannot be asked at level 0, where the answer is x."""
        clean = r == 0
        return torch.where(expand(clean, x), x, self.denoiser(x, torch.where(clean, 1.0, r), cond))


def _check_boundary(denoiser: Denoiser) -> None:
    scales = denoiser.precond(torch.tensor([1e-5]))
    if abs(scales.skip.item() - 1) > 1e-3 or abs(scales.out.item()) > 1e-3:
        raise ValueError(f"a consistency function must give back x at level 0, but {type(denoiser.precond).__name__} has skip = "
                         f"{scales.skip.item():.3g} and out = {scales.out.item():.3g} there; use EDMPrecond")  # fmt: skip
