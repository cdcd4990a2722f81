"""Progressive distillation: a student that needs half the steps, again and again (Salimans & Ho 2022, arXiv:2202.00512)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..guidance import bind
from ..lr_schedules import Linear, LRSchedule
from ..module import Batch
from ..rng import noised
from ..samplers import Euler
from ..samplers.sampler import lerp
from ..schedules import Schedule, Tangent
from ..tensors import handed, mean_flat
from ..weightings import TruncatedSNR, Weighting
from .distillation import Distillation
from .gaussian import Gaussian

__all__ = ["ProgressiveDistillation", "two_steps"]


class ProgressiveDistillation(Distillation):
    """N steps -> N/2 -> ... -> 1: one Euler step of the student equals two of its teacher, then the student becomes the teacher.

    Stage k distils a teacher of N / 2^k steps. Its learning rate falls to 0; the student's raw weights are the next teacher; optimizer and
    averages begin afresh. A run stops by itself at the end of the last stage. Stage, teacher and student lie in every checkpoint, and a run
    that is killed on either side of a border resumes exactly.

    Because everything happens in the sigma frame, teachers of all preconditionings are distilled alike. One that predicts noise is of no
    use at few steps: at the first level its estimate of x0 is the small difference of two large numbers.

    Args:
        teacher: see `Distillation`; with ``scales``, one that is told the guidance scale (`GuidanceDistillation`).
        student: the same network with other options (dropout); a copy of the teacher by default.
        teacher_steps: N, a power of two.
        last: steps of the last student, a power of two.
        iterations: optimizer steps per stage, one number or one for each; the last stages may want more.
        schedule: whose grids are walked, they must be nested; `Tangent` with the teacher's ``sigma_data`` by default.
        stride: 2 trains jumps over two levels of the student's grid, from each of its levels: what `diffx.samplers.DoubleStride` needs. The
            teacher then takes jumps over two levels of its own.
        direction: ``"up"`` distils an encoder, which walks from data at ``schedule.sigma_min`` to noise (`encode`). That level must be an
            honest one; the default schedule then begins at 0.02.
        weighting: of the squared x0 error at the level that the student starts from.
        lr_schedule: of each stage, to 0 by default: the raw weights at its end are what counts.
        options: see `Distillation`.

    Raises:
        ValueError: steps that are no powers of two, a schedule whose grids are not nested or not so fine, iterations that do not fit the
            stages, a student that is another network; and what `Distillation` raises.
    """

    def __init__(
        self,
        teacher: Denoiser | Gaussian,
        student: Denoiser | None = None,
        *,
        teacher_steps: int = 64,
        last: int = 1,
        iterations: int | Sequence[int] = 50_000,
        schedule: Schedule | None = None,
        stride: Literal[1, 2] = 1,
        direction: Literal["down", "up"] = "down",
        weighting: Weighting = TruncatedSNR(),
        lr_schedule: LRSchedule | None = Linear(),
        **options: Any,
    ) -> None:
        if schedule is None:
            precond = (teacher.denoiser if isinstance(teacher, Gaussian) else teacher).precond
            schedule = Tangent(getattr(precond, "sigma_data", 1.0), sigma_min=1e-5 if direction == "down" else 0.02)
        super().__init__(teacher=teacher, student=student, schedule=schedule, sampler=None, lr_schedule=lr_schedule, **options)
        self.weighting = weighting
        _check_same(self.teacher, self.denoiser)
        self.teacher_steps, self.stride, self.direction = teacher_steps, stride, direction
        self.iterations = _checked_iterations(teacher_steps, last, iterations)
        if stride not in (1, 2) or direction not in ("down", "up") or (stride == 2 and (direction == "up" or last < 2)):
            raise ValueError("stride is 1, or 2 with direction = 'down' and last >= 2, and direction is 'down' or 'up'; "
                             f"got stride = {stride}, direction = {direction!r}, last = {last}")  # fmt: skip
        _check_grid(schedule, teacher_steps, direction)
        self._begin_stage()

    @property
    def steps(self) -> int:
        """Steps of the student of the present stage."""
        return self.teacher_steps >> (self.phase + 1)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted squared error ``"loss"`` against the teacher's two steps, and the plain one ``"mse"``, each ``(B,)``.

        Position u lies in [i/n, (i + 1)/n) for the i-th of the n intervals of the student's grid, the cleanest first.
        """
        x, cond = self.inputs(batch)
        a, b, c = self.levels(self.positions(len(x)) if u is None else u)
        noisy = noised(x, a.to(x))
        with torch.no_grad():
            target = two_steps(bind(self.teacher, cond), noisy, a, b, c)
        mse = mean_flat((self.denoiser(noisy, a.to(x), cond) - target).square())
        return {"loss": self.weighting(a.to(x)) * mse, "mse": mse}

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels a, b, c in float64, each ``(B,)``: the student steps from a to c, the teacher from a to b to c.

        With ``stride=2`` the student's last jump is one of the teacher's; then b = a.
        """
        n, grid = self.steps, handed(self._grid, u.device)
        interval = (u.double() * n).long().clamp(0, n - 1)
        start = 2 * (interval if self.direction == "up" else n - 1 - interval)
        a, b, c = (grid[(start + k * self.stride).clamp(max=2 * n)] for k in range(3))
        return a, torch.where(b > 0, b, a), c

    def sample(self, n: int, cond: Cond = Cond(), **options: Any) -> Tensor:
        """As in `Distillation`, by default with as many Euler steps as the present student was made for.

        Raises:
            ValueError: this is an encoder.
        """
        if self.direction == "up":
            raise ValueError("a student with direction = 'up' walks from data to noise: use encode(x, cond)")
        return super().sample(n, cond, **options)

    # Stages -----------------------------------------------------------------------------------------------------------------------------

    def phase_images(self) -> float:
        """Images that the present stage lasts."""
        return self.iterations[self.phase] * self.global_batch if self.local_batch else math.inf

    def new_phase(self) -> None:
        """The student becomes the teacher of a student with half its steps."""
        self.teacher.load_state_dict(self.denoiser.state_dict())
        super().new_phase()
        self._begin_stage()

    def on_train_start(self) -> None:
        """A run that is resumed after its last stage stops at once."""
        self._stop_at_the_end()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Cross the border to the next stage before its first step, so that a checkpoint at the border belongs to the old stage."""
        super().on_train_batch_start(batch, batch_idx)
        if self.phase_done() and self.phase + 1 < len(self.iterations):
            self.new_phase()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop after the last stage."""
        self._stop_at_the_end()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the stage of the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._begin_stage()

    def phase_done(self) -> bool:
        """Whether the present stage has had its iterations."""
        return self.trainer.global_step - self.phase_start[0] >= self.iterations[self.phase]

    def _stop_at_the_end(self) -> None:
        if self.phase_done() and self.phase + 1 == len(self.iterations):
            self.trainer.should_stop = True

    def _begin_stage(self) -> None:
        """Grid and sampler of the stage."""
        self._grid = _grid(self.schedule, 2 * self.steps, self.direction)
        self.sampler = Euler(self.steps, self.schedule)


def two_steps(denoise: Denoise, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The x0 estimate with which one Euler step from level a to c arrives where two of ``denoise``, over b, arrive.

    The convex combination w D(x, a) + (1 - w) D(x', b) with w = c (a - b) / (b (a - c)), where x' is the state at b. This is the target of
    Salimans & Ho 2022 (algorithm 2) in the sigma frame, without its division by zero at c = 0. It holds upwards, a < b < c, as well.

    Args:
        denoise: the teacher with its condition.
        x: state ``(B, *)`` at level a.
        a: level of x ``(B,)``, in float64 where steps are short.
        b: level between, positive; b = a takes the whole way in one step.
        c: level at the end, may be 0.
    """
    share = c * (a - b) / (b * (a - c))
    first = denoise(x, a.to(x))
    second = denoise(lerp(first, x, (b / a).to(x)), b.to(x))
    return lerp(second, first, share.to(x))


def _grid(schedule: Schedule, steps: int, direction: str) -> Tensor:
    """Levels in the order they are walked, ``(steps + 1,)`` in float64."""
    falling = schedule.grid(steps, dtype=torch.float64)
    return falling if direction == "down" else torch.cat([falling.new_tensor([schedule.sigma_min]), falling[:-1].flip(0)])


def _check_grid(schedule: Schedule, steps: int, direction: str) -> None:
    if not schedule.nested:
        raise ValueError(f"the student's grid must be every other level of its teacher's, but the grids of {schedule} are not nested; "
                         "use Tangent, Cosine or another schedule with nested = True")  # fmt: skip
    levels = _grid(schedule, steps, direction)
    if direction == "up" and levels[0] >= levels[1]:
        raise ValueError(f"an encoder begins at schedule.sigma_min, which must lie below the other levels of {steps} steps; "
                         f"got {levels[0]:g} and {levels[1]:g}")  # fmt: skip


def _check_same(teacher: Denoiser, student: Denoiser) -> None:
    shapes = [{name: value.shape for name, value in part.state_dict().items()} for part in (teacher, student)]
    if other := sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)):
        raise ValueError(f"the student becomes the teacher and must be the same network, but these weights differ: {other[:5]}")


def _checked_iterations(steps: int, last: int, iterations: int | Sequence[int]) -> tuple[int, ...]:
    """Optimizer steps of every stage."""
    if last < 1 or steps <= last or steps & (steps - 1) or last & (last - 1):
        raise ValueError(f"teacher_steps and last must be powers of two with teacher_steps > last >= 1, got {steps} and {last}")
    stages = (steps // last).bit_length() - 1
    each = (iterations,) * stages if isinstance(iterations, int) else tuple(iterations)
    if len(each) != stages or min(each) < 1:
        raise ValueError(f"from {steps} to {last} steps there are {stages} stages, each of at least 1 iteration; got iterations = {each}")
    return each
