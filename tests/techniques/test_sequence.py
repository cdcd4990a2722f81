"""Diffusion of what has a time, on sound: what is shown in training, latents with a slower time, and sound longer than the model's."""

import pytest
import torch
from technique_list import sequence

from diffx import Denoiser, Euler, Heun
from diffx.audio import Spectrogram
from diffx.codecs import KL
from diffx.continuation import extended
from diffx.networks import ConvAutoencoder, UNet, WaveUNet
from diffx.techniques import SequenceDiffusion

PICTURE = Spectrogram(sample_rate=8000, n_fft=254, hop=64, power=0.5, reference=0.4, fold=2)


def shown(module, n=4000):
    x = torch.rand(n, *module.shape)
    _, cond = module.train().inputs({"x": x, "label": torch.zeros(n, dtype=torch.int64)})
    assert torch.equal(cond.maps["given"], x * cond.maps["known"])
    return cond.maps["known"][:, 0]


def latent(**options):
    """A model of latents at a quarter of the rate."""
    torch.manual_seed(0)
    codec = KL(ConvAutoencoder(1, 2, 8, (1, 1, 1), axes=1), latent="mean", dtype="float64")
    net = WaveUNet(channels=2, widths=(8, 8), factors=(2,), **options)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return SequenceDiffusion(Denoiser(net), shape=(1, 32), codec=codec, sampler=Heun(4))


def test_half_show_a_beginning_and_half_any_moments_in_stretches_of_all_lengths():
    known = shown(sequence())
    counts = known.sum(1).long()
    torch.testing.assert_close(counts.bincount(minlength=16) / len(known), torch.full((16,), 1 / 16), atol=0.015, rtol=0)
    beginning = (known == (torch.arange(16) < counts[:, None])).all(1)
    some = (counts > 0) & (counts < 16)
    assert 0.5 < beginning[some].float().mean() < 0.62
    edges = known.diff(dim=1).abs().sum(1)[some & ~beginning]
    assert (edges <= 2).float().mean() > 0.2 and (edges >= 6).float().mean() > 0.1  # one gap or piece; scattered


def test_a_moment_of_latents_is_known_where_all_that_it_stands_for_is():
    module = latent()
    x = torch.rand(2, 1, 32) * 2 - 1
    known = torch.arange(32) < 18  # four whole latents and half of the fifth
    whole = module.complete(x, known, weight=0.0, seed=1)
    code = module.codec.encode(x)
    seen = []
    plain = module.codec.decode
    module.codec.decode = lambda z: seen.append(z) or plain(z)
    assert torch.equal(module.complete(x, known, weight=0.0, seed=1), whole) and whole.shape == x.shape
    torch.testing.assert_close(seen[0][:, :, :4], code[:, :, :4], atol=1e-5, rtol=0)
    assert (seen[0][:, :, 4] - code[:, :, 4]).abs().min() > 1e-3


def test_latents_that_are_drawn_are_drawn_by_the_seed():
    module = latent()
    module.codec.latent = "sample"
    x, known = torch.rand(2, 1, 32) * 2 - 1, torch.arange(32) < 16
    torch.manual_seed(1)
    one = module.complete(x, known, seed=3)
    state = torch.get_rng_state()
    assert torch.equal(module.complete(x, known, seed=3), one) and not torch.equal(module.complete(x, known, seed=4), one)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [sequence, latent], ids=["samples", "latents"])
def test_sound_goes_on_beyond_the_length_of_the_model(make):
    module = make()
    start = module.sample(2, seed=0)
    longer = module.extend(start, 3, overlap=8, seed=1, sampler=Euler(3))
    length = module.shape[1]
    assert longer.shape == (2, 1, length + 2 * (length - 8)) and torch.equal(longer[..., :length], start)
    again = extended(lambda window, known, number: module.complete(window, known, seed=1 + number * 2**32, sampler=Euler(3)), start, 2, 8)
    assert again.shape[2] == 2 * length - 8
    filled = module.infill(start[..., :5], 4, seed=2, weight=0.0)
    assert filled.shape == (2, 1, 17)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceDiffusion(Denoiser(WaveUNet(widths=(8, 8), factors=(2,), maps={"known": 1})), shape=(1, 16)), "'known' alone"),
        (lambda: SequenceDiffusion(Denoiser(UNet(channels=4, width=8)), shape=(1, 1024), codec=PICTURE), "as many axes"),
        (lambda: sequence().complete(torch.zeros(1, 2, 16), torch.zeros(16, dtype=torch.bool)), r"\(n, 1, T, \*\) with 3 axes"),
        (lambda: sequence().complete(torch.zeros(1, 1, 16), torch.zeros(15, dtype=torch.bool)), "known must be bool"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
