"""`Cascade`: a chain of models, each shown the samples of the one before (Ho et al. 2022, arXiv:2106.15282)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import rng
from .conditions import Cond

__all__ = ["Cascade"]


class Cascade:
    """A base model and stages that refine its samples: larger pictures, more frames, whatever a stage reads and gives.

    A stage is anything with ``shape`` and ``sample(n, cond, seed=, ...)``, trained on its own. One after the first also has ``source``, the
    name of the map by which it is shown the samples of the stage before, and ``low_shape``, their shape. Stages are told those of the
    conditions that their networks take.

    Args:
        stages: the base first.

    Raises:
        ValueError: no stage, or one that does not read what the one before gives.
    """

    def __init__(self, stages: Sequence[Any]) -> None:
        self.stages = list(stages)
        if not self.stages:
            raise ValueError("a cascade needs at least one stage, got none")
        for k, (before, stage) in enumerate(zip(self.stages, self.stages[1:], strict=False), 1):
            if not hasattr(stage, "source"):
                raise ValueError(f"stage {k} ({type(stage).__name__}) reads no samples of a stage before; use SuperResolution")
            if tuple(stage.low_shape) != tuple(before.shape):
                raise ValueError(f"stage {k} reads samples of shape {tuple(stage.low_shape)}, stage {k - 1} gives {tuple(before.shape)}")

    def sample(self, n: int, cond: Cond = Cond(), *, seed: int = 0, start: int = 0, stop: int | None = None,
               given: Tensor | None = None, options: Mapping[int, Mapping[str, Any]] | None = None) -> list[Tensor]:  # fmt: skip
        """Samples of every stage that ran, each ``(n, *stage.shape)``; the last one is the result.

        Every stage draws from seeds of its own, so a cascade that is stopped and started again where it stopped gives what it would have
        given in one go. Sample ``i`` is a function of ``seed + i``.

        Args:
            n: number of samples.
            cond: conditions of all stages.
            seed: of sample 0, at least 0.
            start: first stage to run.
            stop: last stage to run; the last of all by default.
            given: samples of the stage before ``start``, needed unless that is 0.
            options: stage number -> further options of its ``sample``, such as guidance, sampler, level.

        Raises:
            ValueError: no such stages, samples that are missing, superfluous or of the wrong shape.
        """
        last = len(self.stages) - 1 if stop is None else stop
        if not 0 <= start <= last < len(self.stages):
            raise ValueError(f"there are stages 0 to {len(self.stages) - 1}, got start = {start} and stop = {last}")
        wanted = (n, *self.stages[start - 1].shape) if start else None
        if (None if given is None else tuple(given.shape)) != wanted:
            got = "none" if given is None else f"samples of shape {tuple(given.shape)}"
            raise ValueError(f"stage {start} begins with {f'samples of shape {wanted}' if wanted else 'nothing'}, got {got}")
        made: list[Tensor] = []
        for k in range(start, last + 1):
            told = _known(self.stages[k], cond)
            if given is not None:
                told = replace(told, maps={**told.maps, self.stages[k].source: given.clamp(-1, 1)})
            given = self.stages[k].sample(n, told, seed=seed + k * rng.STRIDE, **(options or {}).get(k, {}))
            made.append(given)
        return made


def _known(stage: Any, cond: Cond) -> Cond:
    """Those conditions that the network of a stage takes; all of them where it does not say."""
    denoiser = getattr(stage, "denoiser", None)
    if denoiser is None:
        return cond

    def kept(family: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in family.items() if denoiser.takes(name)}

    return replace(cond, label=cond.label if denoiser.takes("label") else None, spans=cond.spans if cond.tokens else None,
                   **{family: kept(getattr(cond, family)) for family in ("tokens", "masks", "vectors", "maps", "keep")})  # fmt: skip
