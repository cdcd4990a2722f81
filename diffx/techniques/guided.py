"""Guided distillation, first stage: one network that is told the guidance scale (Meng et al. 2023, arXiv:2210.03142)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..codecs import Codec
from ..denoiser import Denoiser
from ..guidance import classifier_free
from ..lr_schedules import LRSchedule
from ..module import Batch
from ..recipes import recipe_of
from ..recipes.build import build
from ..samplers import Sampler
from ..schedules import LogNormal, Schedule
from ..tensors import expand, mean_flat
from .distillation import ADAM, GUIDANCE, Distillation
from .edm import EDM

__all__ = ["GuidanceDistillation", "with_guidance"]


class GuidanceDistillation(Distillation):
    """One evaluation instead of two: D(x, sigma, cond, w) learns D(x, sigma, null) + w (D(x, sigma, cond) - D(x, sigma, null)).

    The student is the conditional teacher with one more input, the scale w, and begins as exactly that teacher for every w. After training
    ``sample(guidance=w)`` tells it the scale, any from the range. The second stage is `ProgressiveDistillation` with this student as
    its teacher and the same ``scales``. The null condition is not needed any more and is not trained unless ``drop`` says so.

    Args:
        teacher: conditional denoiser, or whole `EDM` module, that was trained with hidden conditions.
        student: `with_guidance` of the teacher by default. One given is warm-started and must have a vector ``"guidance"`` of length 1.
        scales: range (lowest, highest) that w is drawn from, 1 = no guidance.
        schedule: training noise levels.
        shape, weighting, sampler, codec, optimizer, lr_schedule, drop, seed: see `Distillation`.

    Raises:
        ValueError: a teacher without conditions or trained without hiding them, an empty range, a student that does not fit.
    """

    def __init__(
        self,
        teacher: Denoiser | EDM,
        student: Denoiser | None = None,
        *,
        shape: Sequence[int],
        scales: Sequence[float] = (1.0, 5.0),
        schedule: Schedule = LogNormal(),
        weighting: Callable[[Tensor], Tensor] | None = None,
        sampler: Sampler | None = None,
        codec: Codec | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
        lr_schedule: LRSchedule | None = None,
        drop: float | Mapping[str, float] = 0.0,
        seed: int = 0,
    ) -> None:
        denoiser = teacher.denoiser if isinstance(teacher, EDM) else teacher
        conditions = getattr(denoiser.net, "conditions", None)
        if conditions is not None and not conditions.names:
            raise ValueError(f"guidance needs a conditional teacher, but {type(denoiser.net).__name__} takes no conditions")
        if isinstance(teacher, EDM) and not teacher.drop:
            raise ValueError("guidance needs a teacher that was trained with hidden conditions, but its drop is 0; train it with 0.1")
        super().__init__(teacher, student or with_guidance(denoiser), shape=shape, scales=scales, schedule=schedule, weighting=weighting,
                         sampler=sampler, codec=codec, optimizer=optimizer, lr_schedule=lr_schedule, drop=drop, seed=seed)  # fmt: skip
        _close(self.teacher, self.denoiser)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted squared error ``"loss"`` against the guided teacher, and the plain one ``"mse"``, each ``(B,)``."""
        x, told = self.inputs(batch)
        cond = replace(told, vectors={name: vector for name, vector in told.vectors.items() if name != GUIDANCE})
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        noisy = x + expand(sigma, x) * torch.randn_like(x)
        with torch.no_grad():
            target = classifier_free(self.teacher, cond, cond.hidden(), told.vectors[GUIDANCE][:, 0])(noisy, sigma)
        mse = mean_flat((self.denoiser(noisy, sigma, told) - target).square())
        return {"loss": self.weighting(sigma) * mse, "mse": mse}

    def check_batch(self, batch: Batch) -> None:
        """Refuse to train on batches that name nothing to guide towards."""
        super().check_batch(batch)
        if not self.condition(batch).names:
            raise ValueError(f"guidance needs conditions, but condition() finds none in a batch with {sorted(batch)}")


def with_guidance(denoiser: Denoiser) -> Denoiser:
    """The same denoiser, with fresh weights, whose network is also told the guidance scale as its last vector.

    Raises:
        ValueError: the network keeps no recipe of itself or takes no vectors.
    """
    recipe = recipe_of(denoiser)
    net = recipe.get("net", {})
    try:
        return build({**recipe, "net": {**net, "vectors": {**(net.get("vectors") or {}), GUIDANCE: 1}}}, at="student")
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot give {type(denoiser.net).__name__} the vector {GUIDANCE!r} ({error}); "
                         "pass a student whose network takes it") from error  # fmt: skip


@torch.no_grad()
def _close(teacher: Denoiser, student: Denoiser) -> None:
    """Zero the last of the layers that only the student has: what it is told changes nothing yet, but can be learnt at once."""
    known = teacher.state_dict()
    layers = [name.rpartition(".")[0] for name, _ in student.named_parameters() if name not in known]
    for parameter in student.get_submodule(layers[-1]).parameters(recurse=False) if layers else ():
        nn.init.zeros_(parameter)
