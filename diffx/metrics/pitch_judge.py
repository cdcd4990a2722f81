"""A judge of sounds that were asked to have a pitch; it learns nothing, it measures the fundamental frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..audio import cents, note_frequency, pitch
from .figures import Evidence, Figure, Results

__all__ = ["NAMES", "PitchJudge", "pitch_figure"]

NAMES = ("pitch_accuracy", "pitch_folded", "pitch_cents", "level")


class PitchJudge:
    """Whether sounds are in tune.

    Args:
        rate: samples per second.
        low, high: range of frequencies in Hz that is looked at.
        tolerance: cents; 50 is half a semitone.
    """

    def __init__(self, rate: int, *, low: float = 50.0, high: float = 1000.0, tolerance: float = 50.0) -> None:
        self.rate, self.low, self.high, self.tolerance = rate, low, high, tolerance

    def error(self, x: Tensor, note: Tensor, *, folded: bool = False) -> Tensor:
        """Cents (N,) by which sounds ``x`` (N, C, L) miss MIDI notes ``note`` (N,), octaves folded if asked; infinite without a pitch."""
        found = pitch(x, self.rate, low=self.low, high=self.high)
        return cents(found, note_frequency(note), folded=folded).nan_to_num(torch.inf)

    def __call__(self, x: Tensor, note: Tensor) -> dict[str, float]:
        """Shares of ``x`` (N, C, L) in tune with ``note`` (N,), strict and with octaves folded, and the median error in cents."""
        strict, folded = (self.error(x, note, folded=fold).abs() for fold in (False, True))
        shares = [(error < self.tolerance).double().mean().item() for error in (strict, folded)]
        return {"pitch_accuracy": shares[0], "pitch_folded": shares[1], "pitch_cents": strict.median().item()}


def pitch_figure(asked: Tensor, real: Tensor, judge: PitchJudge) -> Figure:
    """The figures of a set of sounds that were asked for notes.

    - ``pitch_accuracy``: share of samples within 50 cents of the note asked for.
    - ``pitch_folded``: the same with octaves counted as equal, since a missing octave is the judge's commonest mistake.
    - ``pitch_cents``: median absolute error.
    - ``level``: dB by which samples are louder than real sounds, by root mean square.

    Each has, as ``held_out``, what real sounds of the same notes score, and the first two what shuffled requests do.

    Args:
        asked: (N,) MIDI note of each sample.
        real: (N, C, L) real sounds of these notes.
        judge: who listens.
    """

    def compute(evidence: Evidence) -> Results:
        found, own = judge(evidence.samples, asked), judge(real, asked)
        by_chance = judge(evidence.samples, asked[rng.permutation(len(asked), evidence.seed, "shuffled notes")])
        results: dict[str, dict[str, Any]] = {name: {"value": found[name], "held_out": own[name]} for name in found}
        for name in ("pitch_accuracy", "pitch_folded"):
            results[name]["shuffled"] = by_chance[name]
        loud = [20 * x.square().mean().sqrt().clamp_min(1e-9).log10().item() for x in (evidence.samples, real)]
        results["level"] = {"value": loud[0] - loud[1], "held_out_db": loud[1]}
        return results

    return Figure(NAMES, compute)
