"""Distribution matching: a few-step student whose samples follow the teacher's law (Yin et al. 2024, DMD2, arXiv:2405.14867)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, Plain, as_guide
from ..module import Batch
from ..recipes import recorded
from ..rng import noised
from ..samplers import MultiStep, Sampler
from ..schedules import Levels
from ..tensors import expand, felt_by, mean_flat
from .distillation import Distillation
from .gaussian import Gaussian

__all__ = ["DMD", "Discriminator", "Tap", "matching_loss"]


def matching_loss(made: Tensor, gap: Tensor, real: Tensor) -> Tensor:
    """A loss (B,) whose gradient in ``made`` is ``gap`` / mean|made - real| over the number of dimensions, and in nothing else.

    The divisor makes the pull equally strong at all noise levels (Yin et al. 2024, DMD, arXiv:2311.18828).

    Args:
        made: the student's samples (B, *).
        gap: D_fake - D_real at the noised samples (B, *).
        real: D_real there (B, *).
    """
    scale = mean_flat((made - real).abs()).clamp(min=1e-6).detach()
    return mean_flat((made - (made - gap / expand(scale, gap)).detach()).square()) / 2


class Tap:
    """Catches the output of one layer whenever its network runs, without a change to the network.

    Args:
        net: the network.
        layer: dotted name of the layer, e.g. ``"body.middle.1"`` for the middle of a `UNet`.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, net: nn.Module, layer: str) -> None:
        if layer not in (names := dict(net.named_modules())) or not layer:
            raise ValueError(f"{type(net).__name__} has no layer {layer!r} to take features from; at its top are "
                             f"{[name for name in names if name and '.' not in name]}")  # fmt: skip
        self.value: Tensor | None = None
        names[layer].register_forward_hook(self.catch)

    def catch(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """The hook."""
        self.value = output

    def take(self) -> Tensor:
        """What the last run gave; it is forgotten here."""
        value, self.value = self.value, None
        assert value is not None
        return value


@recorded
class Discriminator(nn.Module):
    """Real or made? One logit for every position of a feature map.

    Args:
        channels: channels of the features.
        width: channels of the hidden layer.
        axis: where the channels stand: 1 for maps ``(B, C, *)``, -1 for tokens ``(B, N, C)``.
    """

    def __init__(self, channels: int, width: int = 64, axis: int = 1) -> None:
        super().__init__()
        self.channels, self.axis = channels, axis
        self.layers = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, positions)``, positive for real.

        Raises:
            ValueError: the features have other channels.
        """
        tokens = features.movedim(self.axis, -1)
        if tokens.shape[-1] != self.channels:
            raise ValueError(f"the discriminator takes {self.channels} channels on axis {self.axis}, got features {tuple(features.shape)}")
        return self.layers(tokens.to(cast(Tensor, self.layers[1].weight).dtype)).flatten(1)


class DMD(Distillation):
    """Student, fake-score network and discriminator, one optimizer.

    The student jumps from each of ``levels`` to a sample. It descends the difference of two denoisers at noised samples: the fake score,
    which is kept trained on the student's samples, minus the teacher. A discriminator on the teacher's features adds what the teacher
    itself does not know of the data. Inputs at lower levels are the student's own samples, noised again, as in sampling.

    In every cycle of ``every`` steps the last one belongs to the student, the others to fake score and discriminator; whoever is not on
    turn keeps ``grad = None``, so that the optimizer passes over it. Outside a training step, in validation too, `loss` gives all parts.
    Under DDP use ``strategy="ddp_find_unused_parameters_true"``.

    Args:
        teacher: see `Distillation`.
        student: what is trained; a copy of the teacher by default.
        levels: falling noise levels at which the student jumps: one for a one-step student.
        discriminator: features -> logits, e.g. `Discriminator`; None trains without.
        features: dotted name of the layer of the teacher's network that gives its features.
        gan_weight: weight of the adversarial part in the student's loss.
        every: steps of a cycle, at least 2.
        guidance: of the teacher; the student then samples guided without guidance.
        groups: options of the optimizer for ``"denoiser"`` (the student), ``"fake_score"``, ``"discriminator"``, e.g. ``{"lr": 1e-4}``.
        sampler: used by `sample` unless another is given; `MultiStep` on ``levels`` by default.
        options: see `Distillation`; ``schedule`` is the law of the levels at which the distributions are compared.

    Raises:
        ValueError: levels that do not fall, a cycle below 2, a discriminator without features or the reverse, options for parts that are
            not there, or what `Distillation` refuses.
    """

    trained = ("denoiser", "fake_score", "discriminator")
    takes_turns = True

    def __init__(
        self,
        teacher: Denoiser | Gaussian,
        student: Denoiser | None = None,
        *,
        levels: Sequence[float] = (80.0,),
        discriminator: nn.Module | None = None,
        features: str | None = None,
        gan_weight: float = 1e-3,
        every: int = 5,
        guidance: float | Guide = 1.0,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        sampler: Sampler | None = None,
        **options: Any,
    ) -> None:
        walk = MultiStep(len(levels), Levels(tuple(levels)))
        super().__init__(teacher=teacher, student=student, sampler=sampler or walk, **options)
        if every < 2:
            raise ValueError(f"a cycle needs a step for the critics and one for the student: every >= 2, got {every}")
        if (discriminator is None) != (features is None):
            raise ValueError(f"discriminator and features go together, got {type(discriminator).__name__} and features = {features!r}")
        self.fake_score = copy.deepcopy(self.teacher).requires_grad_(True).train()
        self.discriminator = discriminator
        self.tap = None if features is None else Tap(self.teacher.net, features)
        self.levels, self.every, self.gan_weight, self.guide = tuple(levels), every, gan_weight, as_guide(guidance)
        self.groups = {name: dict(options) for name, options in (groups or {}).items()}
        if unknown := set(self.groups) - {name for name in self.trained if getattr(self, name) is not None}:
            raise ValueError(f"groups names {sorted(unknown)}, but what is trained is {list(self.trained)}")

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """The parts on turn, each ``(B,)``: the student's "matching" and "adversarial", its critics' "denoising" and "telling".

        u is the position of the level at which samples are compared.
        """
        x, cond = self.inputs(batch)
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        everyone = self._trainer is None or not self.training
        student = everyone or self.global_step % self.every == self.every - 1
        state, level = self.state(x, cond)
        with torch.set_grad_enabled(student and torch.is_grad_enabled()):
            made = self.denoiser(state, level, cond)
        parts: dict[str, Tensor] = {}
        if student:
            parts |= self._student(made, sigma, cond)
        if everyone or not student:
            parts |= self._critics(x, made.detach(), sigma, cond)
        weights = {"adversarial": self.gan_weight}
        return {"loss": torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum(0), **parts}

    @torch.no_grad()
    def state(self, like: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """What the student sees at one of its levels, drawn for the batch: noise, or its own sample noised again; and that level (B,)."""
        last = int(torch.randint(len(self.levels), (), generator=self.alike("level")))
        state, level = self.levels[0] * torch.randn_like(like), like.new_full((len(like),), self.levels[0])
        for sigma in self.levels[1 : last + 1]:
            state = self.denoiser(state, level, cond) + sigma * torch.randn_like(like)
            level = torch.full_like(level, sigma)
        return state, level

    def gap(self, noisy: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor | None]:
        """D_fake - D_real and D_real at noised samples, without gradient, and the teacher's features, with it: each (B, *)."""
        with torch.set_grad_enabled(self.tap is not None and torch.is_grad_enabled()):
            real = self.teacher(noisy, sigma, cond).detach()
            features = self.tap.take() if self.tap is not None else None
        with torch.no_grad():
            if not isinstance(self.guide, Plain):
                real = self.guide(self.teacher, cond)(noisy, sigma)
            return self.fake_score(noisy, sigma, cond) - real, real, features

    def _student(self, made: Tensor, sigma: Tensor, cond: Cond) -> dict[str, Tensor]:
        gap, real, features = self.gap(noised(made, sigma), sigma, cond)
        parts = {"matching": matching_loss(made, gap, real)}
        if self.discriminator is not None and features is not None:
            told_real = self.discriminator
            parts["adversarial"] = felt_by(features, lambda held: mean_flat(F.softplus(-told_real(held))))
        return parts

    def _critics(self, x: Tensor, made: Tensor, sigma: Tensor, cond: Cond) -> dict[str, Tensor]:
        noisy = noised(made, sigma)
        error = mean_flat((self.fake_score(noisy, sigma, cond) - made).square())
        parts = {"denoising": self.fake_score.weight(sigma) * error}
        if self.discriminator is not None and self.tap is not None:
            logits = []
            for state in (noisy, noised(x, sigma)):
                with torch.no_grad():
                    self.teacher(state, sigma, cond)
                logits.append(self.discriminator(self.tap.take()))
            parts["telling"] = mean_flat(F.softplus(logits[0])) + mean_flat(F.softplus(-logits[1]))
        return parts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Named groups, two per network: what is decayed, and what is not (``".kept"``)."""
        named: list[dict[str, Any]] = []
        for group in super().parameter_groups():
            for part in self.trained:
                members = {id(p) for name, p in self.trained_parameters().items() if name.startswith(f"{part}.")}
                own = {"params": [p for p in group["params"] if id(p) in members]}
                if own["params"]:
                    name = f"{part}.kept" if "weight_decay" in group else part
                    named.append({**self.groups.get(part, {}), **group, **own, "name": name})
        return named
