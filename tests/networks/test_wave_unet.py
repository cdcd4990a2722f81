"""The U-Net over waveforms: counts, lengths, what it answers to misuse."""

import pytest
import torch

from diffx.conditions import Cond
from diffx.networks import WaveUNet


def test_its_small_form_has_the_parameters_of_the_experiments():
    with torch.device("meta"):
        assert sum(p.numel() for p in WaveUNet(classes=8).parameters()) == 680_145


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8])
def test_every_factor_keeps_the_length(factor):
    net = WaveUNet(1, widths=(8, 8), factors=(factor,))
    x = torch.randn(2, 1, factor * 7)
    assert net.body(net.stem(x), context(net, x)).shape == (2, 8, factor * 7)


def context(net, x):
    from diffx.networks.layers import Context

    return Context(net.embed(torch.zeros(len(x)), Cond()), torch.zeros(len(x)), {}, None, None)


def test_other_lengths_are_refused_with_the_nearest_that_serves():
    net = WaveUNet(classes=8)
    with pytest.raises(ValueError, match="the length must be divisible by 64, got 2049; the nearest valid size is 2048"):
        net(torch.zeros(1, 1, 2049), torch.zeros(1))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, L\), got \(1, 2, 64\)"):
        net(torch.zeros(1, 2, 64), torch.zeros(1))


def test_a_low_rate_signal_must_have_the_length_of_x():
    net = WaveUNet(widths=(8, 8), factors=(4,), maps={"low": 1})
    assert net(torch.zeros(2, 1, 32), torch.zeros(2), Cond(maps={"low": torch.zeros(2, 1, 32)})).shape == (2, 1, 32)
    with pytest.raises(ValueError, match=r"it is \(8,\) and x is \(32,\)"):
        net(torch.zeros(2, 1, 32), torch.zeros(2), Cond(maps={"low": torch.zeros(2, 1, 8)}))


@pytest.mark.parametrize(("options", "message"), [
    ({"factors": (4, 4)}, "widths names 4 levels, factors 2 steps"), ({"blocks": (1, 1)}, "blocks 2 levels"),
    ({"kernel": 4}, "kernel must be odd"),
    ({"factors": (4, 1, 4)}, "factors at least 2"), ({"attention_levels": (7,)}, "attention_levels counts the 4 levels"),
    ({"tokens": {"t5": 8}, "cross_levels": ()}, r"no level attends to the tokens \['t5'\]"),
])  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        WaveUNet(**options)
