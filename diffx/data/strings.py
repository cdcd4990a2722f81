"""`Strings`: plucked strings, sound that needs no files and whose pitch is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .. import rng
from ..audio import note_frequency, note_name, pitch_vector
from ..recipes import recorded
from .module import DataModule
from .source import Batch

__all__ = ["StringSource", "Strings", "pluck"]

PEAK = 0.9
SHORTEST = 8  # samples: a loop below holds no filter


def pluck(excitation: np.ndarray, periods: np.ndarray, length: int, decay: float) -> np.ndarray:
    """Strings by the loop of Karplus & Strong (1983): a burst that goes round a delay line and is smoothed and damped every time.

    A round takes exactly one period. The smoothing, the mean of two neighbours, delays by half a sample; what is left of the period is an
    integer delay and a fraction between 1 and 2 samples by Lagrange's cubic (Jaffe & Smith 1983, with a better interpolation).

    Args:
        excitation: (B, E) what is put into the line, at the beginning.
        periods: (B,) in samples, at least 8.
        length: samples to make.
        decay: gain of one round, in (0, 1].

    Returns:
        (B, length) float64.
    """
    line = np.floor(periods - 0.5).astype(int) - 1  # whole samples of delay
    taps = decay * _loop(periods - 0.5 - line)  # (B, 5)
    margin = int(line.max()) + taps.shape[1]
    sound = np.zeros((len(periods), margin + length))
    sound[:, margin : margin + excitation.shape[1]] = excitation[:, :length]
    rows = np.arange(len(periods))[:, None]
    block = int(line.min())  # as long as nothing in the block hears the block itself
    for start in range(margin, margin + length, block):
        times = np.arange(start, min(start + block, margin + length))
        for tap in range(taps.shape[1]):
            sound[:, times] += taps[:, tap, None] * sound[rows, times - line[:, None] - tap]
    return sound[:, margin:]


def _loop(delay: np.ndarray) -> np.ndarray:
    """Taps (B, 5) of the loop's filter: Lagrange's cubic at ``delay`` (B,) in [1, 2), and the mean of neighbours."""
    nodes = np.arange(4)
    cubic = np.stack([np.prod([(delay - j) / (k - j) for j in nodes if j != k], 0) for k in nodes], 1)
    return 0.5 * (np.pad(cubic, ((0, 0), (0, 1))) + np.pad(cubic, ((0, 0), (1, 0))))


class StringSource:
    """A source of plucked strings; batches as in `Strings`.

    Args:
        notes: MIDI notes; item ``i`` is note ``i`` modulo their number.
        rate: samples per second.
        length: samples of a clip.
        items: number of clips.
        decay: gain of one round.
        key: names the clips; they are a pure function of it and of the index.
    """

    def __init__(self, notes: Sequence[float], rate: int, length: int, items: int, decay: float, key: tuple[int | str, ...]) -> None:
        self.notes = torch.tensor([float(note) for note in notes])
        self.rate, self.length, self.items, self.decay, self.key = rate, length, items, decay, key
        self.classes = len(notes)
        self.class_names = tuple(map(note_name, notes))
        self._periods = rate / note_frequency(self.notes).numpy()

    def __len__(self) -> int:
        """Number of clips."""
        return self.items

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Pluck the strings at ``indices``; the epoch plays no part."""
        label = torch.from_numpy(indices % self.classes)
        periods = self._periods[label.numpy()]
        burst = np.zeros((len(indices), int(np.ceil(periods.max()))))
        for row, (index, period) in enumerate(zip(indices.tolist(), periods, strict=True)):
            some = torch.rand(int(np.ceil(period)), generator=rng.generator(*self.key, index), dtype=torch.float64).numpy()
            burst[row, : len(some)] = some - some.mean()  # no constant part goes round
        sound = pluck(burst, periods, self.length, self.decay)
        sound *= PEAK / np.abs(sound).max(1, keepdims=True)
        note = self.notes[label]
        return {
            "x": torch.from_numpy(sound.astype(np.float32))[:, None],
            "label": label,
            "text": [f"a plucked string at {self.class_names[row]}" for row in label.tolist()],
            "note": note,
            "pitch": pitch_vector(note),
            "index": torch.from_numpy(indices),
        }


@recorded
class Strings(DataModule):
    """Plucked strings at fixed notes, made on demand: every clip is a pure function of (world, index), its pitch exact.

    A burst of noise goes round a delay line, see `pluck`; clips differ in the burst. Batches hold "x" ``(B, 1, length)`` with peak .9,
    "label" (place in ``notes``), "text" such as "a plucked string at A2", "note" ``(B,)`` (MIDI), "pitch" ``(B, 3)`` (`pitch_vector`).

    Args:
        batch_size: samples per rank and micro-batch.
        notes: MIDI notes, fractions allowed; the class of a clip is its place here. By default A2, C3, D3, E3, G3, A3, C4 and D4.
        sample_rate: samples per second.
        length: samples of a clip.
        items: training clips.
        val_items: validation clips, others; 0 = no validation.
        decay: gain of one round of the loop, in (0, 1].
        world: names the set of clips, so that another ``seed`` means another order of the same ones.
        num_workers, seed: as in `DataModule`.

    Raises:
        ValueError: no notes, a note so high that its period has fewer than 8 samples or so low that it does not fit into a clip twice,
            or numbers out of range.
    """

    def __init__(
        self, batch_size: int = 16, *, notes: Sequence[float] = (45, 48, 50, 52, 55, 57, 60, 62), sample_rate: int = 8000,
        length: int = 2048, items: int = 10_000, val_items: int = 512, decay: float = 0.996, world: int = 0, num_workers: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        if not notes or items < 1 or val_items < 0 or sample_rate < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"notes, items and sample_rate must be positive, val_items not negative and decay in (0, 1]; got {len(notes)} notes, "
                f"{items}, {sample_rate}, {val_items} and {decay}"
            )
        periods = [sample_rate / float(note_frequency(note)) for note in notes]
        if min(periods) < SHORTEST or length < 2 * max(periods):
            raise ValueError(
                f"periods must have at least {SHORTEST} samples and fit into a clip of {length} twice; these notes have "
                f"{min(periods):.1f} to {max(periods):.1f} at {sample_rate} Hz: change notes, sample_rate or length"
            )
        self.notes, self.sample_rate, self.length, self.decay, self.world = tuple(notes), sample_rate, length, decay, world
        self.items, self.val_items = items, val_items

    @property
    def pitch_range(self) -> dict[str, float]:
        """``{"low", "high"}`` in Hz that a judge looks at: an octave more on both sides, as far as clips allow."""
        low, high = (float(note_frequency(note)) for note in (min(self.notes), max(self.notes)))
        return {"low": max(low / 2.2, 2.1 * self.sample_rate / self.length), "high": min(high * 2.2, self.sample_rate / 4)}

    def sources(self) -> tuple[StringSource, StringSource | None]:
        """The two sets of clips."""
        made = [
            StringSource(self.notes, self.sample_rate, self.length, items, self.decay, ("strings", part, self.world))
            for part, items in (("train", self.items), ("val", self.val_items))
        ]
        return made[0], made[1] if self.val_items else None
