"""Fundamental frequencies, notes and their names."""

import math

import pytest
import torch

from diffx.audio import cents, note_frequency, note_name, pitch, pitch_vector


def saw(frequency: float, rate: int = 8000, length: int = 2048, partials: int = 8) -> torch.Tensor:
    t = torch.arange(length, dtype=torch.float64) / rate
    return sum(torch.sin(2 * math.pi * k * frequency * t + k) / k for k in range(1, partials + 1))


def test_notes():
    assert note_frequency(69) == 440 and note_frequency(45) == pytest.approx(110) and note_frequency(60.0) == pytest.approx(261.6256)
    assert [note_name(note) for note in (60, 61, 69, 44.6, 0)] == ["C4", "C#4", "A4", "A2", "C-1"]
    helix = pitch_vector(torch.tensor([60, 66, 72]))
    torch.testing.assert_close(helix, torch.tensor([[1.0, 0, 0], [-1, 0, 0.5], [1, 0, 1]]), atol=1e-6, rtol=0)


def test_cents():
    up = torch.tensor([440.0, 880.0, 220.0, 466.1638, 830.0])
    torch.testing.assert_close(cents(up, torch.full((5,), 440.0))[:4], torch.tensor([0, 1200, -1200, 100.0]).double(), atol=1e-2, rtol=0)
    folded = cents(up, torch.full((5,), 440.0), folded=True)
    torch.testing.assert_close(folded[:4], torch.tensor([0, 0, 0, 100.0]).double(), atol=1e-2, rtol=0)
    assert -600 <= folded[4] < 0


@pytest.mark.parametrize("frequency", [60.0, 110.0, 146.83, 261.63, 400.0])
def test_pitch_of_harmonic_sounds(frequency):
    sounds = torch.stack(
        [saw(frequency), 0.01 * saw(frequency), saw(frequency) * torch.exp(-torch.arange(2048) / 500), saw(frequency) + 0.3]
    )
    error = cents(pitch(sounds[:, None], 8000), torch.full((4,), frequency)).abs()
    assert error.max() < 8, error


def test_pitch_is_heard_in_either_channel_and_not_in_silence():
    both = torch.stack([torch.stack([saw(110.0), torch.zeros(2048)]), torch.zeros(2, 2048)])
    found = pitch(both, 8000)
    assert cents(found[:1], torch.tensor([110.0])).abs() < 5 and found[1].isnan()


def test_ranges_are_checked():
    with pytest.raises(ValueError, match="at least 320 samples, got 200"):
        pitch(torch.zeros(1, 200), 8000)
    with pytest.raises(ValueError, match="low and high must leave lags"):
        pitch(torch.zeros(1, 2000), 8000, low=900, high=100)
