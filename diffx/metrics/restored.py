"""Figures of modules that bring data back from less: how near to the original, how legible, and how much nearer than the naive way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .features import Features, Pixels, extract
from .figures import JUDGE_PIXELS, Evidence, Figure, Results, Unsuited
from .frechet import frechet, gathered
from .judge import ClassJudge
from .real import take

__all__ = ["psnr", "restored_figures"]


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of data in [-1, 1], ``10 log10(4 / mse)`` with the mean over all items and values; at most 120."""
    mse = float((x.double() - y.double()).square().mean())
    return 10 * math.log10(4 / max(mse, 4e-12))


def restored_figures(
    module: Any, real: Mapping[str, Any], sampler: Any = None, chunk: int = 250, features: Features | None = None
) -> tuple[Figure, ...]:
    """The figures of what a module makes of degraded, shrunk or encoded held-out items; none, unless it has a method ``restorations``.

    - ``psnr``: to the items themselves, in dB, see `psnr`.
    - ``psnr_gain``: by how many dB that is more than the naive way gives.
    - ``frechet_ratio``: Frechet distance to the training items, divided by that of the naive way. Both distances are details.
    - ``restored_accuracy``: share in which a judge of training items sees the item's class, with its share on the items themselves.

    Args:
        module: with ``restorations(x (B, *), cond, sampler=...) -> {"own": (B, *), "naive": (B, *)}``, as `ColdDiffusion`,
            `SuperResolution` and the autoencoders have.
        real: the held-out items, names -> columns as in a batch; empty where only the names of the figures are wanted.
        sampler: the way back; the module's own by default.
        chunk: items restored at once.
        features: what is compared by the Frechet distances; bare values, pixels, by default.
    """
    if not hasattr(module, "restorations"):
        return ()

    @cache
    def back() -> dict[str, Tensor]:
        parts = []
        for rows in torch.arange(len(real["x"])).split(chunk):
            batch = take(real, rows)
            batch = {key: value.to(module.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            parts.append(module.restorations(batch["x"], module.condition(batch), sampler=sampler))
        return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in ("own", "naive")}

    def nearness(evidence: Evidence) -> Results:
        assert evidence.held_out is not None
        own, naive = (psnr(back()[name], evidence.held_out) for name in ("own", "naive"))
        return {"psnr": {"value": own, "on": _counted(evidence)}, "psnr_gain": {"value": own - naive, "naive": naive}}

    def law(evidence: Evidence) -> Results:
        assert evidence.held_out is not None
        seen = features or Pixels()
        reference = gathered(extract(seen, evidence.train))
        own, naive = (frechet(extract(seen, back()[name]), reference) for name in ("own", "naive"))
        held_out = frechet(extract(seen, evidence.held_out), reference)
        return {"frechet_ratio": {"value": own / naive, "own": own, "naive": naive, "items": held_out}}

    def legibility(evidence: Evidence) -> Results:
        assert evidence.held_out is not None and evidence.held_out_labels is not None and evidence.train_labels is not None
        if evidence.train[0].numel() > JUDGE_PIXELS:
            raise Unsuited(f"the judge looks at pixels and takes at most {JUDGE_PIXELS} numbers an item, got {evidence.train[0].numel()}")
        judge = ClassJudge(seed=evidence.seed).fit(evidence.train.clamp(-1, 1), evidence.train_labels)
        read, naive, unspoilt = (judge.accuracy(x, evidence.held_out_labels) for x in (*back().values(), evidence.held_out.clamp(-1, 1)))
        return {"restored_accuracy": {"value": read, "naive": naive, "held_out": unspoilt, "on": _counted(evidence)}}

    return (
        Figure(("psnr", "psnr_gain"), nearness, needs=("held_out",)),
        Figure(("frechet_ratio",), law, needs=("held_out",)),
        Figure(("restored_accuracy",), legibility, needs=("held_out", "held_out_labels", "train_labels")),
    )


def _counted(evidence: Evidence) -> str:
    return f"{len(evidence.held_out) if evidence.held_out is not None else 0} held-out items"
