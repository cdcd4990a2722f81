"""Sound as pictures and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffx import media
from diffx.audio import Spectrogram, cents, note_frequency, open_spectrogram, pitch, save_spectrogram
from diffx.codecs import Codec
from diffx.data import Strings
from diffx.metrics import log_spectral_distance
from diffx.recipes import recipe_of

SMALL = {"sample_rate": 8000, "n_fft": 254, "hop": 64}


@pytest.fixture(scope="module")
def strings():
    batch = Strings(8, items=32).train.fetch(np.arange(32), 0)
    return batch["x"], batch["note"]


@pytest.mark.parametrize("fold", [1, 4])
def test_strings_keep_their_pitch(strings, fold):
    x, note = strings
    codec = Spectrogram(**SMALL, power=0.5, reference=0.6, fold=fold, iterations=64, mean=0.4, std=0.5)
    z = codec.encode(x)
    assert isinstance(codec, Codec) and z.shape == (32, fold**2, 128 // fold, 32 // fold) == (32, *codec.shape((1, 2048)))
    back = codec.decode(z)
    assert back.shape == x.shape and (cents(pitch(back, 8000), note_frequency(note)).abs() < 50).all()
    assert log_spectral_distance(back, x, floor=0.1).mean() < 0.2 * log_spectral_distance(torch.randn_like(x) * 0.18, x, floor=0.1).mean()


def test_the_picture_is_the_formula():
    """White silence, black at the reference, frequency upwards, time to the right."""
    t = torch.arange(2048) / 8000
    x = torch.where(t < 0.128, 0.25 * torch.sin(2 * torch.pi * 1000 * t), 0.0)[None, None]
    picture = Spectrogram(8000, 256, 64, power=0.5, reference=1.0).picture(Spectrogram(8000, 256, 64).magnitude(x))
    row = 128 - 1000 * 256 // 8000
    assert picture[0, 0, row, 5] == pytest.approx(1 - 2 * 0.25**0.5, abs=1e-3) and (picture[0, 0, :, -5:] == 1).all()
    assert picture[0, 0, :, 5].argmin() == row


@pytest.mark.parametrize("mels", [None, 64])
def test_eight_bits_cost_little(strings, mels):
    """Magnitude to grey byte and back."""
    codec = Spectrogram(8000, 512, 128, mels=mels)
    magnitude = codec.magnitude(strings[0])
    magnitude = magnitude / magnitude.amax((1, 2, 3), keepdim=True)
    again = codec.level(media.to_uint8(codec.picture(magnitude)) / 127.5 - 1)
    loud = magnitude > 1e-3
    assert ((again - magnitude).abs() / magnitude)[loud].median() < 0.02


def test_riffusions_constants():
    codec = Spectrogram.riffusion()
    assert codec.shape((2, 225_792)) == (2, 512, 512) and codec.rows == 512 and codec.stft.bins == 8821
    assert recipe_of(codec)["mels"] == 512


def test_a_clip_of_unknown_loudness_comes_back_at_a_fixed_peak(strings):
    codec = Spectrogram(**SMALL, iterations=4)
    back = codec.decode(codec.encode(torch.cat([strings[0][:2], 0.01 * strings[0][:2]])))
    assert (back.abs().amax((1, 2)) - 0.9).abs().max() < 1e-5
    torch.testing.assert_close(back[:2], back[2:], atol=5e-2, rtol=0)


@pytest.mark.parametrize("reference", [None, 0.5])
def test_silence_is_white_and_comes_back_silent(reference):
    codec = Spectrogram(**SMALL, reference=reference, iterations=2)
    white = codec.encode(torch.zeros(2, 1, 2048))
    assert (white == 1).all() and not codec.decode(white).any()


def test_a_picture_carries_its_constants(tmp_path, strings):
    codec = Spectrogram(**SMALL, power=0.5, mels=40, iterations=4)
    for channels in (1, 2):
        x = strings[0][:2].view(2 // channels, channels, 2048)
        picture = codec.picture(codec.magnitude(x))[0]
        path = save_spectrogram(picture, tmp_path / "deep" / "x.png", codec)
        again, told = open_spectrogram(path)
        assert told == codec and (again - picture).abs().max() <= 1 / 255 + 1e-6
        assert told.sound(again[None]).shape == (1, channels, 2048)
    assert np.asarray(Image.open(path))[..., 0].max() == 0, "of two channels none is red"
    Image.new("L", (4, 4)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="no text chunk"):
        open_spectrogram(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"expected a picture \(1 or 2, 40, W\)"):
        save_spectrogram(torch.zeros(3, 40, 8), tmp_path / "x.png", codec)


@pytest.mark.parametrize(("options", "shape", "message"), [
    ({}, (1, 2049), "multiple of hop=64"), ({}, (1, 64), "at least 128 samples"), ({"fold": 4}, (1, 2112), "hop x fold = 256.*is 2048"),
    ({}, (1, 8, 8), r"takes sounds \(C, L\)"),
])  # fmt: skip
def test_lengths_are_checked(options, shape, message):
    with pytest.raises(ValueError, match=message):
        Spectrogram(**SMALL, **options).encode(torch.zeros(1, *shape))


@pytest.mark.parametrize(("options", "message"), [
    ({"power": 0}, "power must lie"), ({"std": 0}, "std and reference"), ({"reference": -1}, "reference be positive"),
    ({"fold": 3}, "fold=3 does not divide the 128 rows"), ({"hop": 200}, "2 hop <= window"),
])  # fmt: skip
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Spectrogram(**{**SMALL, **options})
