"""Null-text inversion: real pictures reconstructed under strong guidance (Mokady et al. 2022, arXiv:2211.09794)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Carry, Guidance, classifier_free
from ..guidance.binding import Pair
from ..samplers import Euler
from ..tensors import expand, mean_flat
from .inversion import Inversion

__all__ = ["NullText", "null_text_inversion"]


@dataclass(frozen=True, eq=False)
class NullText(Guidance):
    """Classifier-free guidance whose null text was fitted to one batch of pictures, step by step: a guide like any other.

    A condition of several times the batch, such as sources and targets of an edit behind one another, repeats the null texts.

    Args:
        scale: the guidance scale that they were fitted for.
        levels: N falling levels; an evaluation takes the null text of the nearest one.
        tokens: source -> (N, B, L, D) states.
    """

    scale: float
    levels: Sequence[float]
    tokens: Mapping[str, Tensor]

    def at(self, step: int, cond: Cond) -> Cond:
        """What ``cond`` is contrasted with in a step: all of it hidden, but for the null text instead of the sources of tokens."""
        rows = {name: states[step] for name, states in self.tokens.items()}
        return _null(cond, {name: states.repeat(len(cond) // len(states), 1, 1) for name, states in rows.items()})

    def pair(self, denoiser: Denoiser, cond: Cond, carry: Carry | None = None) -> Pair:
        if wrong := [name for name, states in self.tokens.items() if len(cond) % states.shape[1]]:
            raise ValueError(f"the null text was fitted to {self.tokens[wrong[0]].shape[1]} pictures, got conditions for {len(cond)}")

        def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            level = float(sigma[0])
            step = min(range(len(self.levels)), key=lambda i: abs(math.log(self.levels[i] / level)))
            guided = classifier_free(denoiser, cond, self.at(step, cond), self.scale, carry)(x, sigma)
            return guided, guided

        return pair


def null_text_inversion(denoiser: Denoiser, cond: Cond, path: Inversion, empty: Mapping[str, Tensor], *,
                        guidance: float = 7.5, iterations: int = 10, lr: float | None = None,
                        tolerance: tuple[float, float] = (1e-5, 2e-5)) -> NullText:  # fmt: skip
    """Fit the null text of every step so that guided DDIM comes back along an inversion.

    Step i, from level a to b, starts where the fitted step before it ended. Adam descends the mean square between the result of the guided
    step and the state of the inversion at b, beginning with the null text of the step before; the best one met is kept, so that no step
    ends worse than it began. Costs, per step, one evaluation with the condition, up to ``iterations + 1`` with the null text, all but the
    last differentiated, and a guided one. Weights are not touched.

    Args:
        denoiser: any preconditioning; its network must be differentiable with respect to tokens.
        cond: the prompt of the pictures, batch B, with sources of tokens.
        path: inversion of the pictures with ``cond`` and without guidance, by the levels of `Euler`.
        empty: source -> (B or 1, L, D), the null text to begin with: the states of the empty string.
        guidance: the scale that is to be used, not 1.
        iterations: most steps of Adam for one step of the sampler.
        lr: learning rate; falls linearly to half of it in the last step. By default 0.13 times the root mean square of ``empty``.
        tolerance: (e, f): step i stops as soon as the loss is below e + f i.

    Returns:
        A guide; see `NullText`. Sampling from ``path.noise`` with it, `Euler` and ``cond`` gives the reconstruction.

    Raises:
        ValueError: a guidance of 1, which has no null text, or sources that ``cond`` does not have.
    """
    if guidance == 1 or not empty or (set(empty) - set(cond.tokens)):
        raise ValueError(f"null-text inversion needs a guidance other than 1 and null texts of sources among {sorted(cond.tokens)}; got "
                         f"guidance={guidance} and {sorted(empty)}")  # fmt: skip
    batch, steps = len(path.states[0]), len(path.levels) - 1
    tokens = {name: states.detach().expand(batch, *states.shape[1:]) for name, states in empty.items()}
    rms = torch.cat([states.flatten() for states in tokens.values()]).square().mean().sqrt()
    rate = 0.13 * float(rms) if lr is None else lr
    kept: list[dict[str, Tensor]] = []
    state, euler = path.states[0], Euler(1)
    for i, (a, b) in enumerate(pairwise(path.levels)):
        level = state.new_full((batch,), a)
        with torch.no_grad():
            told = denoiser(state, level, cond)

        def lost(tokens: Mapping[str, Tensor], state: Tensor = state, level: Tensor = level, told: Tensor = told, i: int = i) -> Tensor:
            null = denoiser(state, level, _null(cond, tokens))
            guided = torch.lerp(null, told, guidance)
            moved = euler.step(lambda x, sigma: guided, state, path.levels[i], path.levels[i + 1])
            return mean_flat((moved - path.states[i + 1]).square())

        tokens = _fitted(lost, tokens, rate * (1 - i / (2 * steps)), iterations, tolerance[0] + tolerance[1] * i)
        kept.append(tokens)
        with torch.no_grad():
            state = euler.step(classifier_free(denoiser, cond, _null(cond, tokens), guidance), state, a, b)
    return NullText(guidance, path.levels[:-1], {name: torch.stack([step[name] for step in kept]) for name in tokens})


def _fitted(
    lost: Callable[[Mapping[str, Tensor]], Tensor], tokens: Mapping[str, Tensor], lr: float, iterations: int, enough: float
) -> dict[str, Tensor]:
    """The tokens after descent; each sample keeps the best of its own."""
    leaves = {name: states.clone().requires_grad_() for name, states in tokens.items()}
    best, least = dict(tokens), None
    optimizer = torch.optim.Adam(list(leaves.values()), lr=lr)
    for iteration in range(iterations + 1):
        with torch.enable_grad():
            loss = lost(leaves)
            total = loss.sum()
        found = loss.detach()
        better = torch.ones_like(found, dtype=torch.bool) if least is None else found < least
        least = found if least is None else torch.minimum(least, found)
        best = {name: torch.where(expand(better, states), leaves[name].detach(), states) for name, states in best.items()}
        if iteration == iterations or bool((least < enough).all()):
            return best
        for leaf, grad in zip(leaves.values(), torch.autograd.grad(total, list(leaves.values())), strict=True):
            leaf.grad = grad
        optimizer.step()
    return best


def _null(cond: Cond, tokens: Mapping[str, Tensor]) -> Cond:
    """Everything hidden but the sources of ``tokens``, which say what they are given to say."""
    hidden = cond.hidden()
    keep = {name: flag for name, flag in hidden.keep.items() if name not in tokens}
    masks = {name: mask for name, mask in cond.masks.items() if name not in tokens}
    return replace(hidden, tokens={**cond.tokens, **tokens}, masks=masks, keep=keep, spans=None)
