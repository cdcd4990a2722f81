"""Experts for bands of noise: their tree of jobs, their joining, their training in one run (Balaji et al. 2022, eDiff-I)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..denoiser import Denoiser
from ..experts import Experts
from ..recipes import recipe_of, recorded
from ..recipes.build import build
from ..recipes.load import load
from ..schedules import Band, Bands, node
from .edm import EDM

__all__ = ["Job", "NoiseBandExperts", "expert_tree", "inherit", "joined"]


class NoiseBandExperts(EDM):
    """`EDM` for an ensemble of experts that are trained in one run: every optimizer step belongs to one expert.

    The expert of a step is a function of seed and step, the same on all ranks and in all micro-batches, so a gradient is never averaged
    with the zeros of ranks that trained another one. Idle experts have no gradient, not a zero one: the optimizer leaves them as they are,
    momentum and decay included, and so does their moving average, which counts the images of its own steps. Data-parallel runs need
    ``strategy=ddp_find_unused_parameters_true``.

    Experts that were trained one by one (`inherit`) make such a module, too, when they are joined (`joined`, ``python -m diffx.merge``).

    Args:
        denoiser: the ensemble; its bands say what the training levels are.
        tau: an expert's share of the steps is as its band's mass to this power: 1 as a single network would meet the levels, 0 all alike.
        options: see `EDM`; the schedule is that of the bands.

    Raises:
        TypeError: the denoiser is no `diffx.experts.Experts`.
        ValueError: tau outside [0, 1].
    """

    takes_turns = True
    denoiser: Experts

    def __init__(self, denoiser: Experts, *, tau: float = 0.5, **options: Any) -> None:
        if not isinstance(denoiser, Experts):
            raise TypeError(f"NoiseBandExperts trains diffx.Experts, got {type(denoiser).__name__}; a single expert is trained by EDM")
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        super().__init__(denoiser=denoiser, schedule=denoiser.bands.base, **options)
        self.tau = tau

    def expert(self, step: int) -> int:
        """Whose turn it is in optimizer step ``step``."""
        weights = torch.tensor(self.denoiser.bands.masses, dtype=torch.float64) ** self.tau
        return int(torch.multinomial(weights, 1, generator=rng.generator(self.seed, "expert", step)))

    turn = expert

    def turns(self) -> list[set[str]]:
        """What each expert has for itself; what all share is trained in every step."""
        owners = Counter(id(p) for net in self.denoiser.net for p in net.parameters())
        averaged = self.averaged_parameters()
        return [{name for name, p in averaged.items() if id(p) in mine and owners[id(p)] == 1}
                for mine in ({id(p) for p in net.parameters()} for net in self.denoiser.net)]  # fmt: skip

    def levels(self, n: int) -> Tensor:
        """Levels of the step's own band; of all bands outside of training steps."""
        if self._shared is None:
            return super().levels(n)
        return self.denoiser.bands[self.expert(self.global_step)].sigma(self.positions(n))


@recorded
def inherit(path: str | os.PathLike[str], band: Band, weights: str = "ema") -> Denoiser:
    """The denoiser that an expert begins with: its parent's.

    Args:
        path: checkpoint or run folder of the parent, a module whose schedule is the whole base or a `Band` of it.
        band: what the child will be trained on.
        weights: which of the parent's, see `diffx.load`.

    Raises:
        ValueError: the parent was trained on a band that does not contain the child's.
    """
    parent = load(path, weights)
    own = band_of(parent)
    if not own.contains(band):
        raise ValueError(f"the parent {path} was trained on {own} of {own.base}, which does not contain {band} of {band.base}")
    return parent.denoiser.train()


def band_of(module: EDM) -> Band:
    """The band of levels that a module is trained on."""
    return module.schedule if isinstance(module.schedule, Band) else Band(module.schedule)


def joined(parts: Sequence[EDM]) -> NoiseBandExperts:
    """The ensemble of modules that were trained on one band each.

    Raises:
        ValueError: their bands do not part the schedule, or the modules differ in more than bands and trained weights.
    """
    parts = sorted(parts, key=lambda part: band_of(part).low)
    first = parts[0]
    bands = Bands.joined([band_of(part) for part in parts])
    for part in parts[1:]:
        for what, theirs, mine in (("denoiser", part.denoiser, first.denoiser), ("codec", part.codec, first.codec)):
            if recipe_of(theirs) != recipe_of(mine):
                raise ValueError(f"the {what} of expert {band_of(part)} is {recipe_of(theirs)}, that of {band_of(first)} {recipe_of(mine)}")
        shared = [name for name in first.state_dict() if not name.startswith("denoiser.")]
        if apart := [name for name in shared if not torch.equal(first.state_dict()[name], part.state_dict()[name])]:
            raise ValueError(f"experts share all but the denoiser, but {apart[0]} of {band_of(part)} differs from that of {band_of(first)}")
    recipe = {name: value for name, value in recipe_of(first).items() if name not in ("_target_", "denoiser", "schedule")}
    options = {name: build(value, at=f"module.{name}") for name, value in recipe.items()}
    whole = NoiseBandExperts(Experts(build(recipe_of(first.denoiser.net), at="net"), bands, first.denoiser.precond), **options)
    whole.load_state_dict({name: value for name, value in first.state_dict().items() if not name.startswith("denoiser.")}, strict=False)
    for net, part in zip(whole.denoiser.net, parts, strict=True):
        net.load_state_dict(part.denoiser.net.state_dict())
    return whole.eval()


@dataclass(frozen=True)
class Job:
    """One run of a tree of experts.

    Args:
        name: of the run.
        low, high: the band, as positions on the schedule.
        parent: name of the job whose averaged weights it begins with; None for the root.
        steps: optimizer steps.
        kept: whether it is an expert of the final ensemble, or only a stepping stone.
    """

    name: str
    low: float
    high: float
    parent: str | None
    steps: int
    kept: bool


def expert_tree(steps: int, *, high: int = 9, low: int = 3, between: int | None = None, final: int | None = None,
                skip: Collection[int] = ()) -> list[Job]:  # fmt: skip
    """eDiff-I's branching training as a list of jobs, parents before children.

    A root for all noise; from it a chain of ever thinner bands at the noisy end and one at the clean end, each begun with the one before;
    and the complement of the two ends, begun with the root. The ends and the complement are kept: they share out all noise.

    Args:
        steps: of the root.
        high: halvings at the noisy end; the last band has the mass 2^-high. 0: no expert there.
        low: halvings at the clean end.
        between: steps of each stepping stone; a twentieth of the root's by default.
        final: steps of each kept expert; a fifth of the root's by default.
        skip: levels of the chains that are left out; the next level begins with the one before.

    Raises:
        ValueError: negative depths, or no split at all.
    """
    if high < 0 or low < 0 or high == low == 0:
        raise ValueError(f"a tree of experts needs depths of at least 0, one of them more, got high={high} and low={low}")
    between, final = between or max(1, steps // 20), final or max(1, steps // 5)
    jobs = [Job("root", 0.0, 1.0, None, steps, False)]
    for end, depth in (("high", high), ("low", low)):
        parent = "root"
        for level in range(1, depth + 1):
            if level in skip and level != depth:
                continue
            band = node(level, 2**level - 1 if end == "high" else 0)
            jobs.append(Job(f"{end}{level}", band.low, band.high, parent, final if level == depth else between, level == depth))
            parent = f"{end}{level}"
    edges = 2.0**-low if low else 0.0, 1 - 2.0**-high if high else 1.0
    return [*jobs, Job("rest", *edges, "root", final, True)] if edges[0] < edges[1] else jobs
