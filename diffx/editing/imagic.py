"""Edits of one picture by a model that was fitted to it: Imagic (Kawar et al. 2022, arXiv:2210.09276)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..schedules import Schedule
from ..tensors import expand, mean_flat
from ..text import pooled_name

__all__ = ["Imagic", "fit_imagic"]


@dataclass(frozen=True, eq=False)
class Imagic:
    """A picture as a text and a model that both were fitted to it.

    Args:
        denoiser: the fitted copy; the original is as it was.
        tokens: source -> (1, L, D), the text that says what the picture shows.
        vectors: name -> (1, D), its pooled vectors where the model is told them.
    """

    denoiser: Denoiser
    tokens: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def cond(self, target: Cond, share: float) -> Cond:
        """``share`` of the target and the rest of the fitted text: 0 shows the picture, 1 the target; 0.6 to 0.8 are usual.

        Args:
            target: the conditions that `fit_imagic` was given, for any number of samples.
            share: may lie outside of [0, 1], which extrapolates.
        """

        def mixed(fitted: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {**told, **{name: torch.lerp(own, told[name], share) for name, own in fitted.items()}}

        return replace(target, tokens=mixed(self.tokens, target.tokens), vectors=mixed(self.vectors, target.vectors))


def fit_imagic(denoiser: Denoiser, x: Tensor, target: Cond, schedule: Schedule, *, text_steps: int = 200, text_lr: float = 1e-2,
               steps: int = 300, lr: float = 1e-4, batch: int = 16, seed: int = 0) -> Imagic:  # fmt: skip
    """Fit the target's text to a picture, then a copy of the denoiser to both, each by the loss that it was trained with (Adam).

    Costs ``text_steps + steps`` training steps of ``batch`` draws of noise.

    Args:
        denoiser: any preconditioning; not changed.
        x: one picture (1, *), or its latents.
        target: what it is to show, batch 1, with sources of tokens; the text begins here, its pooled vectors with it.
        schedule: law of the levels, that of training.
        text_steps: steps of the text. A text that hardly moved leaves all to the weights, and then the target shows the picture as well.
        text_lr: learning rate of the text, chosen for encoders that are trained along.
        steps: steps of the weights: more keep more of the picture, and let it be changed less.
        lr: learning rate of the weights.
        batch: draws of noise per step.
        seed: of noise and levels.

    Raises:
        ValueError: not one picture, or a target without tokens.
    """
    if len(x) != 1 or len(target) != 1 or not target.tokens:
        got = f"{len(x)} pictures and {len(target)} targets of {sorted(target.tokens)}"
        raise ValueError(f"Imagic fits one picture to one target with sources of tokens, got {got}")
    copied = copy.deepcopy(denoiser).requires_grad_(False).eval()
    pooled = {name: target.vectors[name] for name in map(pooled_name, target.tokens) if name in target.vectors}
    tokens, vectors = ({name: t.detach().clone().requires_grad_() for name, t in family.items()} for family in (target.tokens, pooled))
    draws = rng.generator(seed, "imagic")

    def loss() -> Tensor:
        cond = replace(target, tokens=tokens, vectors={**target.vectors, **vectors}).map(lambda t: t.expand(batch, *t.shape[1:]))
        sigma = schedule.draw(batch, device=x.device, generator=draws)
        noise = rng.randn((batch, *x.shape[1:]), draws, device=x.device, dtype=x.dtype)
        estimate = copied(x + expand(sigma, x) * noise, sigma, replace(cond, spans=None))
        return (copied.weight(sigma) * mean_flat((estimate - x).square())).mean()

    _descend(loss, (*tokens.values(), *vectors.values()), text_lr, text_steps)
    tokens, vectors = ({name: leaf.detach() for name, leaf in family.items()} for family in (tokens, vectors))
    copied.requires_grad_(True)
    _descend(loss, copied.parameters(), lr, steps)
    return Imagic(copied.requires_grad_(False), tokens, vectors)


def _descend(loss: Callable[[], Tensor], parameters: Iterable[Tensor], lr: float, steps: int) -> None:
    optimizer = torch.optim.Adam(list(parameters), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss().backward()
        optimizer.step()
