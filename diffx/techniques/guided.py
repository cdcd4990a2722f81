"""Guided distillation, first stage: one network that is told the guidance scale (Meng et al. 2023, arXiv:2210.03142)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..guidance import classifier_free
from ..module import Batch
from ..recipes import recipe_of
from ..recipes.build import build
from ..rng import noised
from ..tensors import mean_flat
from ..weightings import Weighting
from .distillation import GUIDANCE, Distillation
from .gaussian import Gaussian

__all__ = ["GuidanceDistillation", "with_guidance"]


class GuidanceDistillation(Distillation):
    """One evaluation instead of two: D(x, sigma, cond, w) learns D(x, sigma, null) + w (D(x, sigma, cond) - D(x, sigma, null)).

    The student is the conditional teacher with one more input, the scale w, and begins as exactly that teacher for every w. After training
    ``sample(guidance=w)`` tells it the scale, any from the range. The second stage is `ProgressiveDistillation` with this student as
    its teacher and the same ``scales``. The null condition is not needed any more and is not trained unless ``drop`` says so.

    Args:
        teacher: conditional denoiser, or the whole module, that was trained with hidden conditions.
        student: `with_guidance` of the teacher by default. One given is warm-started and must have a vector ``"guidance"`` of length 1.
        scales: range (lowest, highest) that w is drawn from, 1 = no guidance.
        weighting: sigma ``(B,)`` -> weight of the squared error; the student's own by default, as in `EDM`.
        options: see `Distillation`.

    Raises:
        ValueError: a teacher without conditions or trained without hiding them, an empty range, a student that does not fit.
    """

    def __init__(
        self,
        teacher: Denoiser | Gaussian,
        student: Denoiser | None = None,
        *,
        scales: Sequence[float] = (1.0, 5.0),
        weighting: Weighting | None = None,
        **options: Any,
    ) -> None:
        denoiser = teacher.denoiser if isinstance(teacher, Gaussian) else teacher
        conditions = getattr(denoiser.net, "conditions", None)
        if conditions is not None and not conditions.names:
            raise ValueError(f"guidance needs a conditional teacher, but {type(denoiser.net).__name__} takes no conditions")
        if isinstance(teacher, Gaussian) and not teacher.drop:
            raise ValueError("guidance needs a teacher that was trained with hidden conditions, but its drop is 0; train it with 0.1")
        super().__init__(teacher=teacher, student=student or with_guidance(denoiser), scales=scales, **options)
        self.weighting = weighting or self.denoiser.weight
        _close(self.teacher, self.denoiser)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted squared error ``"loss"`` against the guided teacher, and the plain one ``"mse"``, each ``(B,)``."""
        x, told = self.inputs(batch)
        cond = replace(told, vectors={name: vector for name, vector in told.vectors.items() if name != GUIDANCE})
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        noisy = noised(x, sigma)
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
