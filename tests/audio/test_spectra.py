"""Short-time spectra, their inverse, the mel bank and phases found again."""

import math

import pytest
import torch

from diffx.audio import STFT, from_mel, griffin_lim, mel_bank, mel_scale
from diffx.metrics import spectral_convergence

RATE = 8000


def tone(length: int = 7936) -> torch.Tensor:
    """Three partials that die away."""
    t = torch.arange(length) / RATE
    return (sum(a * torch.sin(2 * math.pi * f * t) for a, f in ((1, 220), (0.5, 440), (0.25, 660))) * torch.exp(-3 * t))[None, None]


@pytest.mark.parametrize(("n_fft", "hop", "window"), [(512, 128, None), (254, 64, None), (1024, 100, 400), (64, 32, None), (255, 31, 201)])
def test_there_and_back(n_fft, hop, window):
    stft, x = STFT(n_fft, hop, window), torch.randn(2, 2, hop * 40)
    spectra = stft(x)
    assert spectra.shape == (2, 2, stft.bins, 40) == (2, 2, n_fft // 2 + 1, stft.columns(x.shape[-1]))
    torch.testing.assert_close(stft.inverse(spectra), x, atol=1e-5, rtol=0)
    y = torch.randn(1, 1, stft.shortest)
    torch.testing.assert_close(stft.inverse(stft(y)), y, atol=1e-5, rtol=0)


def test_a_sine_has_the_magnitude_of_its_amplitude():
    x = 0.3 * torch.sin(2 * math.pi * 1000 * torch.arange(8192) / RATE)
    column = STFT(512, 128)(x).abs()[:, 30]
    assert column.argmax() == 1000 / RATE * 512 and column.max() == pytest.approx(0.3, abs=1e-3)


def test_columns_are_those_of_torch():
    x = torch.randn(3, 2048)
    ours = STFT(256, 64)(x) * torch.hann_window(256).sum() / 2
    padded = torch.nn.functional.pad(x[:, None], (96, 96), mode="reflect")[:, 0]
    for k in (0, 7, 31):
        column = torch.fft.rfft(padded[:, 64 * k : 64 * k + 256] * torch.hann_window(256))
        torch.testing.assert_close(ours[:, :, k], column, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("length", "nearest"), [(2049, 2048), (2000, 1984), (64, 128), (1, 128)])
def test_other_lengths_are_refused_with_the_nearest_that_serves(length, nearest):
    stft = STFT(254, 64)
    with pytest.raises(ValueError, match=f"multiple of hop=64 and at least 128 samples long, got {length}; .* {nearest}"):
        stft(torch.zeros(1, 1, length))
    assert stft(torch.zeros(1, 1, nearest)).shape[-1] == nearest // 64


@pytest.mark.parametrize("sizes", [(256, 200), (256, 64, 512), (256, 64, 100), (8, 0)])
def test_transforms_without_a_way_back_are_refused(sizes):
    with pytest.raises(ValueError, match="2 hop <= window <= n_fft"):
        STFT(*sizes)


def test_the_mel_bank_is_the_formula_of_htk():
    """Against the triangles written out for single bands; corners 2595 log10(1 + f / 700) apart by one step of the scale."""
    bins, bands, low, high = 257, 20, 100.0, 3500.0
    bank = mel_bank(bins, bands, RATE, low, high)
    assert mel_scale(700 * (10**0.5 - 1)) == pytest.approx(2595 / 2) and bank.shape == (bands, bins)
    step = (mel_scale(high) - mel_scale(low)) / (bands + 1)
    for band in (0, 7, 19):
        left, top, right = (700 * (10 ** ((mel_scale(low) + step * (band + k)) / 2595) - 1) for k in range(3))
        for i in range(bins):
            f = i * RATE / 2 / (bins - 1)
            height = (f - left) / (top - left) if f <= top else (right - f) / (right - top)
            assert bank[band, i] == pytest.approx(max(0.0, height), abs=1e-5)


def test_the_mel_bank_agrees_with_transformers():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(8821, 512, 0.0, 10_000.0, 44_100, norm=None, mel_scale="htk")
    torch.testing.assert_close(mel_bank(8821, 512, 44_100, 0.0, 10_000.0), torch.from_numpy(theirs).T.float(), atol=1e-5, rtol=0)


def test_mel_magnitudes_survive_the_way_back():
    bank = mel_bank(257, 64, RATE)
    smooth = torch.rand(2, 64, 7) + 1
    torch.testing.assert_close(bank @ from_mel(smooth, bank), smooth, atol=2e-2, rtol=0)
    mel = bank @ STFT(512, 128)(tone()).abs()[0, 0]
    found = from_mel(mel, bank)
    assert found.min() >= 0 and (bank @ found - mel).norm() / mel.norm() < 2e-2
    clamped = from_mel(mel, bank, rounds=0)
    assert (bank @ clamped - mel).norm() > 3 * (bank @ found - mel).norm(), "the updates are what makes lines fit"


def test_a_bank_with_empty_bands_is_refused():
    with pytest.raises(ValueError, match="bands hold no frequency"):
        mel_bank(65, 128, RATE)
    with pytest.raises(ValueError, match="0 <= low < high <= 4000"):
        mel_bank(257, 20, RATE, 100.0, 5000.0)


def test_griffin_lim_converges_and_momentum_helps():
    x, stft = tone(), STFT(512, 128)
    magnitude = stft(x).abs()

    def error(iterations: int, momentum: float) -> float:
        y = griffin_lim(magnitude, stft, iterations=iterations, momentum=momentum)
        return spectral_convergence(y, x).item()

    plain = [error(rounds, 0.0) for rounds in (1, 2, 4, 8, 16, 32)]
    assert plain == sorted(plain, reverse=True) and plain[-1] <= 0.2
    assert error(32, 0.99) <= 0.14 and error(100, 0.99) < error(32, 0.99)


def test_phases_depend_on_nothing_but_the_magnitude():
    stft = STFT(128, 32)
    magnitude = stft(torch.randn(3, 1, 1024)).abs()
    whole = griffin_lim(magnitude, stft, iterations=4)
    torch.testing.assert_close(whole[1:2], griffin_lim(magnitude[1:2], stft, iterations=4))
    assert (griffin_lim(magnitude, stft, iterations=4, seed=1) - whole).abs().max() > 1e-2
    assert torch.equal(griffin_lim(torch.zeros(1, 65, 32), stft, iterations=2), torch.zeros(1, 1024)), "silence stays silence"
    for options in ({"momentum": 1.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="momentum must lie"):
            griffin_lim(magnitude, stft, **options)
