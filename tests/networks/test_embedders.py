"""Embeddings of noise level, label and vectors against their formulas."""

import math

import pytest
import torch

from diffx.conditions import Cond
from diffx.networks import SongUNet, UNet
from diffx.networks.embedders import FourierEmbedding, LabelEmbedding, NoiseEmbedding, one_hot, sinusoid


@pytest.mark.parametrize(("endpoint", "last"), [(False, 10_000 ** -(3 / 4)), (True, 10_000**-1)])
def test_sinusoid(endpoint, last):
    noise = torch.tensor([0.0, 1.0, 997.0], dtype=torch.float64)
    waves = sinusoid(noise, 8, endpoint=endpoint)
    assert torch.equal(waves[0], torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64))
    torch.testing.assert_close(waves[:, 0], noise.cos())
    torch.testing.assert_close(waves[:, 4], noise.sin())
    torch.testing.assert_close(waves[:, 7], (noise * last).sin())


def test_integer_levels_are_told_apart_under_autocast_and_in_half_precision():
    levels = torch.arange(990, 1000)
    exact = sinusoid(levels.double(), 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sinusoid(levels, 64), exact, atol=1e-4, rtol=0)
        emb = NoiseEmbedding(64, 32)
        out = emb(levels)
    assert out.diff(dim=0).abs().amax(1).min() > 0.01
    assert emb.bfloat16()(levels).dtype == torch.bfloat16


def test_fourier_features():
    emb = FourierEmbedding(4096, scale=16.0)
    assert emb.frequencies.std().item() == pytest.approx(16, rel=0.05)
    out = emb(torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(out[1, :2048], (2 * math.pi * 0.3 * emb.frequencies).cos())
    torch.testing.assert_close(out.square().sum(1), torch.full((2,), 2048.0))


def test_labels_are_rows_and_the_null_label_is_zero():
    emb = LabelEmbedding(3, 5)
    label = torch.tensor([2, 0, 3, 1])
    out = emb(Cond(label=label, keep={"label": torch.tensor([True, True, True, False])}), 4)
    assert torch.equal(out, torch.stack([emb.rows.weight[2], emb.rows.weight[0], torch.zeros(5), torch.zeros(5)]))
    out.sum().backward()
    assert torch.equal(emb.rows.weight.grad, torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 5))


def test_one_hot_labels_have_mean_square_one_and_the_null_label_is_zero():
    label = Cond(label=torch.tensor([1, 4, 2]), keep={"label": torch.tensor([True, True, False])})
    assert torch.equal(one_hot(label, 4, torch.zeros(3)), torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]))
    assert torch.equal(one_hot(Cond(), 4, torch.zeros(3)), torch.zeros(3, 4))


def test_song_has_the_sines_first():
    net = SongUNet(width=16, mults=(1,), blocks=1, attention_levels=(), classes=4)
    seen = []
    net.first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.nn.init.zeros_(net.label.weight)
    net.embed(torch.tensor([0.7]), Cond())
    assert seen[0][0, 0].item() == pytest.approx(math.sin(0.7)) and seen[0][0, 8].item() == pytest.approx(math.cos(0.7))


@pytest.mark.parametrize("make", [UNet, SongUNet])
def test_a_zero_vector_is_no_vector(make):
    net = make(width=16, mults=(1,), blocks=1, attention_levels=(), vectors={"augment": 9})
    noise = torch.zeros(2)
    zero, some = (net.embed(noise, Cond(vectors={"augment": v})) for v in (torch.zeros(2, 9), torch.ones(2, 9)))
    assert torch.equal(zero, net.embed(noise, Cond())) and (zero - some).abs().max() > 1e-3
