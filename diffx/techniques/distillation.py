"""`Distillation`: a student learns from a frozen teacher. The base of all distilling techniques; it decides nothing of what is learnt."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..codecs import Codec
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, Plain
from ..module import Batch, freeze
from ..recipes import recipe_of
from .gaussian import Gaussian

__all__ = ["ADAM", "GUIDANCE", "Distillation", "at_scale"]

ADAM = partial(torch.optim.Adam, lr=1e-4, fused=True)
GUIDANCE = "guidance"  # the vector by which a network is told the guidance scale


class Distillation(Gaussian):
    """A student, `denoiser`, and a frozen `teacher`. A subclass writes `loss` and calls both.

    The teacher is a copy that belongs to the module: never trained nor averaged, always in evaluation mode, its weights once in every
    checkpoint. A student therefore loads although the teacher's file is gone. In an experiment the teacher is usually
    ``{_target_: diffx.load, path: RUN, part: denoiser}``. Without ``part`` it is the whole trained module; its shape must then be this
    module's, and its codec is taken over.

    With ``scales`` the student is a network that is told the guidance scale, as its vector ``"guidance"`` (B, 1): `inputs` draws one per
    sample from that range, and ``sample(guidance=w)`` hands it to the network instead of evaluating two branches.

    Args:
        teacher: denoiser, or the whole module it was trained in.
        student: what is trained; a copy of the teacher by default. It must take what the teacher takes and may take more.
        shape: shape of one sample in data space.
        warm_start: copy the teacher's weights into a given student by name; each must have a place there, the student may have more.
        scales: lowest and highest guidance scale, 1 = off; None for networks that take none.
        codec: see `DiffusionModule`; a whole module as the teacher brings its own.
        options: see `Gaussian`. The optimizer is Adam without decay and no condition is hidden unless told otherwise.

    Raises:
        ValueError: teacher and student do not fit: other conditions, weights without a place, another preconditioning under the same
            weights; shape or codec differ from the teacher's; an empty range of scales, or one that the student is not told.
    """

    large = ("teacher",)

    def __init__(
        self,
        teacher: Denoiser | Gaussian,
        student: Denoiser | None = None,
        *,
        shape: Sequence[int],
        warm_start: bool = True,
        scales: Sequence[float] | None = None,
        codec: Codec | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
        drop: float | Mapping[str, float] = 0.0,
        **options: Any,
    ) -> None:
        if isinstance(teacher, Gaussian):
            teacher, codec = _unwrapped(teacher, tuple(shape), codec)
        if student is None:
            student = copy.deepcopy(teacher).requires_grad_(True)
        else:
            _check_conditions(teacher, student)
            if warm_start:
                _copy_weights(teacher, student)
        super().__init__(denoiser=student.train(), shape=shape, codec=codec, optimizer=optimizer, drop=drop, **options)
        self.teacher: Denoiser = copy.deepcopy(teacher)
        freeze(self.teacher)
        self.scales = _checked_scales(scales, student)

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `DiffusionModule`, and with a guidance scale for every sample if the network is told one."""
        x, cond = super().inputs(batch)
        if self.scales is None:
            return x, cond
        low, high = self.scales
        return x, at_scale(cond, low + (high - low) * self.positions(len(x)))

    def guided(self, n: int, cond: Cond, guidance: Any) -> tuple[Cond, Guide]:
        """As in `Gaussian`; with ``scales``, guidance is a number or one per sample ``(n,)`` in that range, and costs nothing.

        Raises:
            ValueError: the scale lies outside the range.
        """
        return super().guided(n, cond, guidance) if self.scales is None else (self.told(cond, n, guidance), Plain())

    def told(self, cond: Cond, n: int, guidance: Any) -> Cond:
        """Conditions of ``n`` samples that tell the network ``guidance``: a number or ``(n,)``.

        Raises:
            ValueError: it lies outside the range that was distilled.
        """
        assert self.scales is not None
        if not isinstance(guidance, (int, float, Tensor)):
            raise ValueError(f"this network was distilled for guidance scales from {self.scales[0]:g} to {self.scales[1]:g}, "
                             f"got {type(guidance).__name__}; give a number")  # fmt: skip
        scale = torch.as_tensor(guidance, dtype=torch.float32).expand(n)
        if scale.min() < self.scales[0] or scale.max() > self.scales[1]:
            got = f"{scale.min():g}" if scale.min() == scale.max() else f"{scale.min():g} to {scale.max():g}"
            raise ValueError(f"this network was distilled for guidance scales from {self.scales[0]:g} to {self.scales[1]:g}, got {got}")
        return at_scale(cond, scale)

    def on_fit_start(self) -> None:
        """Try teacher and student on an empty sample before the first step; the student, which may come from a file, begins to train.

        Raises:
            ValueError: one of them does not map samples of the module's shape.
        """
        super().on_fit_start()
        self.eval()
        x = torch.zeros(1, *self.codec.shape(self.shape), device=self.device)
        parts: dict[str, Denoiser] = {"teacher": self.teacher, "student": self.denoiser}
        for role, part in parts.items():
            known = getattr(part.net, "conditions", None)
            maps = {} if known is None else {name: x.new_zeros(1, c, *x.shape[2:]) for name, c in known.maps.items()}
            try:
                with torch.no_grad(), rng.forked():
                    part(x, x.new_ones(1), Cond(maps=maps))
            except (ValueError, RuntimeError) as error:
                names = " and ".join(f"{role} ({_name(part)})" for role, part in parts.items())
                raise ValueError(f"{names} must map samples of shape "
                                 f"{tuple(x.shape[1:])}, but the {role} does not: {error}") from error  # fmt: skip
        self.train()


def at_scale(cond: Cond, scale: Tensor) -> Cond:
    """The conditions with a guidance scale ``(B,)`` as the vector ``"guidance"`` (B, 1)."""
    return replace(cond, vectors={**cond.vectors, GUIDANCE: scale[:, None]})


def _unwrapped(teacher: Gaussian, shape: tuple[int, ...], codec: Codec | None) -> tuple[Denoiser, Codec]:
    """The denoiser of a trained module, and its codec."""
    if teacher.shape != shape:
        raise ValueError(f"shape is {shape}, but the teacher was trained on samples of shape {teacher.shape}; make them equal")
    if codec is not None and not _alike(codec, teacher.codec):
        raise ValueError(f"the teacher was trained with the codec {recipe_of(teacher.codec)}, got codec = {recipe_of(codec)}; "
                         "leave codec out to take the teacher's")  # fmt: skip
    return teacher.denoiser, teacher.codec


def _check_conditions(teacher: Denoiser, student: Denoiser) -> None:
    theirs, mine = (getattr(part.net, "conditions", None) for part in (teacher, student))
    if theirs is None or mine is None:
        return
    wanted, given = ({"label": c.classes, **c.vectors, **c.tokens, **c.maps} for c in (theirs, mine))
    if lacking := {name: size for name, size in wanted.items() if size and given.get(name) != size}:
        has = {name: given.get(name, 0) for name in lacking}
        raise ValueError(f"the student ({_name(student)}) must take what the teacher ({_name(teacher)}) takes: {lacking}, but has {has}")


def _copy_weights(teacher: Denoiser, student: Denoiser) -> None:
    """Warm start: every tensor of the teacher goes to the student's tensor of that name."""
    title = f"the student ({_name(student)}) cannot start from the weights of the teacher ({_name(teacher)})"
    if not _alike(teacher.precond, student.precond):
        raise ValueError(f"{title}: its preconditioning is {student.precond}, but the teacher was trained with {teacher.precond}; "
                         "make them equal")  # fmt: skip
    source, target = teacher.state_dict(), student.state_dict()
    if homeless := [name for name, value in source.items() if name not in target or target[name].shape != value.shape]:
        raise ValueError(f"{title}: no tensor of that name and shape for {homeless[:5]}; set warm_start = False to start from its own")
    vectors = [list(getattr(getattr(part.net, "conditions", None), "vectors", ())) for part in (teacher, student)]
    if vectors[1][: len(vectors[0])] != vectors[0]:
        raise ValueError(f"{title}: its vectors {vectors[1]} must begin with the teacher's {vectors[0]}, since weights go by position")
    student.load_state_dict(source, strict=False)


def _checked_scales(scales: Sequence[float] | None, student: Denoiser) -> tuple[float, float] | None:
    conditions = getattr(student.net, "conditions", None)
    width = None if conditions is None else conditions.vectors.get(GUIDANCE)
    if scales is None:
        if width is not None:
            raise ValueError(f"the student ({_name(student)}) is told the guidance scale: give scales = (lowest, highest)")
        return None
    if len(scales) != 2 or not -math.inf < scales[0] <= scales[1] < math.inf:
        raise ValueError(f"scales must be (lowest, highest) guidance scale with lowest <= highest, got {tuple(scales)}: an empty range")
    if conditions is not None and width != 1:
        raise ValueError(f"scales = {tuple(scales)} needs a student that is told them: a network with vectors = {{{GUIDANCE!r}: 1}}; "
                         f"{_name(student)} has {dict(conditions.vectors)}")  # fmt: skip
    return float(scales[0]), float(scales[1])


def _name(denoiser: Denoiser) -> str:
    return type(denoiser.net).__name__


def _alike(a: Any, b: Any) -> bool:
    """Equal values, or parts without equality of their own that were made alike."""
    return a == b or recipe_of(a) == recipe_of(b)
