"""Any diffusers scheduler as a sampler: foreign conventions are converted here and nowhere else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoise
from ..recipes import recorded
from ..rng import Generators
from ..schedules import Levels
from .sampler import Level, Sampler, Step, level

__all__ = ["Scheduler"]

FLOW_TOP = 1e4  # stands in for the infinite level of a flow at t = 1, as in `diffx.schedules.Flow`


@recorded
class Scheduler(Sampler):
    """Solve with a scheduler of the diffusers library, e.g. UniPC, DEIS or one that belongs to a published pipeline.

    The levels, the frame of the state (sigma, variance preserving or flow) and the prediction type are read from the scheduler; the denoise
    function sees the sigma frame as everywhere else, and its x0 estimate is converted into the output the scheduler is configured for.
    The scheduler that is passed in is never touched: each run works on a fresh copy. What differs from using it by hand:

    - clipping and dynamic thresholding inside the scheduler are off; they are guides (`diffx.guidance`), not part of a solver;
    - the state starts at exactly ``sigmas[0] * noise``, not at the ``init_noise_sigma`` some classes give;
    - churn of schedulers that offer it is never used, because it acts after the network was evaluated; `Heun` does it right;
    - FlowMatchEuler walks t = 1, (N - 1)/N, ..., 1/N, so that none of its N evaluations is spent on the last thousandth;
    - a schedule on which DDIM would land between its own grid points is refused.

    Args:
        scheduler: an instance, a class or a partial of one; the latter two can be written into a recipe.
        steps: passed to ``set_timesteps``; second-order schedulers evaluate about twice as often.
        skip: leave out this many evaluations at the noisy end.

    Raises:
        ValueError: fewer than one step, a grid the scheduler cannot follow, or nothing left after ``skip``.
        TypeError: not a diffusers scheduler of a kind that is understood.
    """

    scheduler: Any
    skip: int
    __eq__ = object.__eq__  # the fields of the base class do not tell two schedulers apart
    __hash__ = object.__hash__

    def __init__(self, scheduler: Any, steps: int = 18, skip: int = 0) -> None:
        for name, value in (("scheduler", scheduler), ("steps", steps), ("skip", skip)):
            object.__setattr__(self, name, value)
        super().__post_init__()
        sigmas = self.sigmas()[:-1]
        falling = [s for i, s in enumerate(sigmas) if s > 0 and s < min(sigmas[:i], default=math.inf)]
        object.__setattr__(self, "schedule", Levels(tuple(falling)))

    def partial(self, strength: float) -> Self:
        """Leave out the first part of the steps, as in `Sampler.partial`; only for schedulers with one evaluation per step."""
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength}; at strength 0 the data itself is the answer")
        evaluations = len(self._prepared().timesteps)
        if evaluations != self.steps:
            raise ValueError(
                f"{evaluations} evaluations in {self.steps} steps: this scheduler cannot start in the middle; use Euler or Heun"
            )
        return type(self)(self.scheduler, self.steps, self.steps - max(1, math.floor(self.steps * strength + 1e-9)))

    def sigmas(self) -> list[float]:
        """The levels at which the network is evaluated, then 0."""
        return [*_levels(self._prepared())[self.skip :], 0.0]

    def step(self, denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
        raise TypeError("a diffusers scheduler steps only along its own grid; call the sampler, or use Euler for a free step")

    def begin(self) -> Step:
        """A step function that drives a fresh copy of the scheduler."""
        scheduler = self._prepared()
        levels = [*_levels(scheduler), 0.0]
        frame, convert = _frame(scheduler), _output(scheduler)
        keywords = inspect.signature(scheduler.step).parameters
        if self.skip and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.skip)
        index = self.skip

        def step(denoise: Denoise, x: Tensor, sigma: Level, sigma_next: Level, generator: Generators = None) -> Tensor:
            nonlocal index
            if sigma != levels[index]:
                raise ValueError(f"a diffusers scheduler walks only its own grid: expected level {levels[index]}, got {sigma}")
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, scheduler.timesteps[index])  # some classes warn or fail in `step` without this call
            out = convert(x, denoise(x, level(sigma, x)), sigma)
            options = {"generator": generator} if "generator" in keywords else {}
            state = scheduler.step(out, scheduler.timesteps[index], x * frame(sigma), return_dict=False, **options)[0]
            index += 1
            return state / frame(levels[index])

        return step

    def _prepared(self) -> Any:
        """A private copy of the scheduler with its grid set."""
        scheduler = self.scheduler() if callable(self.scheduler) else self.scheduler
        if not (hasattr(scheduler, "config") and hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
            raise TypeError(f"expected a diffusers scheduler (instance, class or partial), got {type(scheduler).__name__}")
        off = {name: False for name in ("clip_sample", "thresholding") if name in scheduler.config}
        scheduler = type(scheduler).from_config(scheduler.config, **off)
        if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps))
        else:
            scheduler.set_timesteps(self.steps)
        _check_grid(scheduler, self.steps)
        if not 0 <= self.skip < len(scheduler.timesteps):
            raise ValueError(f"skip must leave at least one of {len(scheduler.timesteps)} evaluations, got {self.skip}")
        return scheduler


def _kind(scheduler: Any) -> str:
    """The frame the scheduler keeps its state in."""
    config, name = scheduler.config, type(scheduler).__name__
    if hasattr(scheduler, "precondition_outputs"):
        return "edm"
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" or name.startswith("FlowMatch"):
        return "flow"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise TypeError(f"{name} is neither an EDM nor a flow scheduler nor one with a table of alphas_cumprod")
    return "vp" if float(scheduler.init_noise_sigma) == 1 else "sigma"


def _levels(scheduler: Any) -> list[float]:
    """The level of every evaluation, from the scheduler's own numbers."""
    timesteps, kind = scheduler.timesteps, _kind(scheduler)
    if not hasattr(scheduler, "sigmas"):
        share = scheduler.alphas_cumprod.double()[timesteps.long()]
        return ((1 - share) / share).sqrt().tolist()
    sigmas = torch.as_tensor(scheduler.sigmas).double()[: len(timesteps)]
    if hasattr(scheduler, "sigmas_interpol"):  # these evaluate their second stage between two levels
        between, back = torch.as_tensor(scheduler.sigmas_interpol).double(), int(hasattr(scheduler, "sigmas_down"))
        sigmas = torch.stack([between[i - back] if i % 2 else s for i, s in enumerate(sigmas)])
    if kind == "flow":
        sigmas = (sigmas / (1 - sigmas)).clamp(max=FLOW_TOP)
    return sigmas.tolist()


def _frame(scheduler: Any) -> Callable[[float], float]:
    """What the sigma-frame state is multiplied with: noise std of the scheduler's state over sigma."""
    kind = _kind(scheduler)
    if kind == "vp":
        return lambda sigma: (1 + sigma**2) ** -0.5
    if kind == "flow":
        return lambda sigma: 1 / sigma if sigma >= FLOW_TOP else 1 / (1 + sigma)
    return lambda sigma: 1.0


def _output(scheduler: Any) -> Callable[[Tensor, Tensor, float], Tensor]:
    """(x, x0, sigma) -> the network output for which the scheduler's own conversion gives x0."""
    kind, target = _kind(scheduler), scheduler.config.get("prediction_type", "epsilon")
    if kind == "edm":
        sd = scheduler.config.sigma_data
        sign = -1 if target == "v_prediction" else 1
        return lambda x, x0, s: sign * (x0 - sd**2 / (s**2 + sd**2) * x) * ((s**2 + sd**2) ** 0.5 / (s * sd))
    if kind == "flow" or target == "flow_prediction":
        return lambda x, x0, s: (x - x0) / s - x0
    if target == "v_prediction":
        return lambda x, x0, s: ((x - x0) / s - s * x0) / (1 + s**2) ** 0.5
    if target == "sample":
        return lambda x, x0, s: x0
    if target == "epsilon":
        return lambda x, x0, s: (x - x0) / s
    raise TypeError(
        f"prediction type must be epsilon, v_prediction, sample or flow_prediction, got {target!r} in {type(scheduler).__name__}"
    )


def _check_grid(scheduler: Any, steps: int) -> None:
    """DDIM moves by length // steps whatever its grid says: refuse grids it would leave."""
    if hasattr(scheduler, "sigmas") or hasattr(scheduler, "previous_timestep") or hasattr(scheduler, "step_index"):
        return
    if hasattr(scheduler, "prk_timesteps"):
        return
    length, times = scheduler.config.num_train_timesteps, scheduler.timesteps.tolist()
    if any(a - length // steps != b for a, b in pairwise(times)):
        raise ValueError(
            f"{type(scheduler).__name__} moves by {length}//{steps} timesteps and would leave its own grid; choose steps that divide "
            f"{length} with timestep_spacing 'leading' or 'trailing', or use diffx.samplers.Euler, the same method on any grid"
        )
