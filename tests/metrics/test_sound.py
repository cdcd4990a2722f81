"""Distances of sounds, and the judge of pitch."""

import math

import numpy as np
import pytest
import torch

from diffx import Cond
from diffx.data import Strings
from diffx.metrics import (
    LogMel,
    PitchJudge,
    evaluate,
    frechet,
    log_spectral_distance,
    multi_resolution_stft,
    si_sdr,
    spectral_convergence,
)


@pytest.fixture(scope="module")
def strings():
    batch = Strings(8, items=64).train.fetch(np.arange(64), 0)
    return batch["x"], batch["note"]


def test_equal_sounds_are_at_no_distance(strings):
    x, _ = strings
    for distance in (log_spectral_distance, spectral_convergence):
        assert distance(x, x).shape == (64,) and distance(x, x).max() == 0 < distance(x, x.roll(1, 0)).min()
    long = torch.cat([x, x], 2)
    assert multi_resolution_stft(long, long).max() == 0
    assert (si_sdr(x, x) == 120).all()


def test_the_log_distance_of_a_louder_sound_is_the_log_of_the_factor(strings):
    noise = torch.randn(3, 1, 2048)
    torch.testing.assert_close(log_spectral_distance(3 * noise, noise), torch.full((3,), math.log(3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(spectral_convergence(1.5 * noise, noise), torch.full((3,), 0.5), atol=1e-5, rtol=0)


def test_si_sdr_is_the_ratio_of_orthogonal_parts_whatever_the_scale():
    t = torch.arange(4000) / 4000
    signal, noise = torch.sin(2 * math.pi * 40 * t)[None, None], 0.1 * torch.cos(2 * math.pi * 40 * t)[None, None]
    for scale in (1.0, 0.01, -3.0):
        assert si_sdr(scale * (signal + noise), signal).item() == pytest.approx(20, abs=1e-3)
    with pytest.raises(ValueError, match="silent reference"):
        si_sdr(signal, torch.zeros_like(signal))
    with pytest.raises(ValueError, match="one shape"):
        si_sdr(signal, signal[..., 1:])


def test_si_sdr_agrees_with_torchmetrics(strings):
    torchmetrics = pytest.importorskip("torchmetrics.functional.audio")
    x, _ = strings
    noisy = x + 0.1 * torch.randn_like(x)
    theirs = torchmetrics.scale_invariant_signal_distortion_ratio(noisy.double(), x.double(), zero_mean=True)[:, 0]
    torch.testing.assert_close(si_sdr(noisy, x), theirs, atol=1e-3, rtol=1e-4)


def test_log_mel_statistics_tell_sets_apart_and_not_when_they_begin(strings):
    x, note = strings
    features = LogMel(8000)
    assert features(x).shape == (64, 64) and features(x[:, :, :2000]).isfinite().all()
    low, high = features(x[note < 52]), features(x[note > 54])
    assert frechet(features(x[:32]), features(x[32:])) < 0.5 * frechet(low, high)
    sustained = torch.sin(2 * math.pi * 200 * torch.arange(4096) / 8000)
    early, late = features(sustained[None, None, :2048]), features(sustained[None, None, 13:2061])
    assert (early - late).abs().max() < 0.3 < (early - features(torch.randn(1, 1, 2048))).abs().max()


def test_the_judge_hears_notes_and_octaves(strings):
    x, note = strings
    judge = PitchJudge(8000, low=40, high=700)
    assert judge(x, note) == {"pitch_accuracy": 1, "pitch_folded": 1, "pitch_cents": pytest.approx(0.5, abs=1)}
    octave = judge(x, note + 12)
    assert octave["pitch_accuracy"] == 0 and octave["pitch_folded"] == 1 and octave["pitch_cents"] == pytest.approx(1200, abs=2)
    wrong = judge(x, note + 1)
    assert wrong["pitch_accuracy"] == wrong["pitch_folded"] == 0
    assert judge(torch.zeros(2, 1, 2048), note[:2]) == {"pitch_accuracy": 0, "pitch_folded": 0, "pitch_cents": math.inf}


class Player:
    """A module that plays the notes it is asked for, ``shift`` places on in the request."""

    def __init__(self, shift=0, noise=False):
        self.shift, self.noise = shift, noise

    def condition(self, batch):
        return Cond(label=batch["label"], vectors={"x": batch["x"].flatten(1)})

    def sample(self, n, cond=Cond(), **options):
        x = cond.vectors["x"].view(n, 1, 2048).roll(self.shift, 0)
        return torch.randn(n, 1, 2048) * 0.3 if self.noise else x


def test_sounds_are_judged_by_the_notes_they_were_asked_for(tmp_path):
    claim = {"samples": 48, "pitch_accuracy": ">= 0.7", "pitch_folded": ">= 0.9"}
    data = Strings(8, items=64, val_items=48)
    right, wrong, noise = (evaluate(player, data, n=48, claim=claim) for player in (Player(), Player(1), Player(noise=True)))
    assert right["kept"] is True and wrong["kept"] is False and noise["kept"] is False
    figures = right["figures"]
    assert figures["pitch_accuracy"] == {"value": 1, "held_out": 1, "shuffled": pytest.approx(1 / 8, abs=0.12)}
    assert figures["level"]["value"] == pytest.approx(0, abs=1e-6) and "accuracy" not in figures and "frechet" not in figures
    assert "bare values" in right["skipped"]["frechet"] and right["features"] == [{"name": "mel"}]
    assert wrong["figures"]["pitch_accuracy"]["value"] == 0
    assert wrong["figures"]["frechet_mel"]["value"] == pytest.approx(figures["frechet_mel"]["value"]), "the same set of sounds"
    assert noise["figures"]["frechet_mel"]["value"] > 5 * figures["frechet_mel"]["value"]
    report = evaluate(Player(), data, n=8, folder=tmp_path)
    assert report["files"]["grid"].endswith(".png")
