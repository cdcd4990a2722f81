"""DiffWave and the U-Net of Dance Diffusion: receptive field, resampling, agreement with the formulas."""

import pytest
import torch

from diffx.conditions import Cond
from diffx.networks import DanceUNet, DiffWave
from diffx.networks.dance_unet import Rate


def awake(net):
    torch.manual_seed(0)
    with torch.no_grad():
        torch.nn.init.normal_(net.head.weight)
    return net.double().eval()


@pytest.mark.parametrize(("layers", "cycle", "reach"), [(30, 10, 3069), (6, 3, 14), (5, 12, 31)])
def test_the_receptive_field_is_the_sum_of_dilations(layers, cycle, reach):
    """The output in the middle depends on exactly the samples within ``reach`` of it: their derivatives, and no others, are not zero."""
    net = awake(DiffWave(width=8, layers=layers, cycle=cycle))
    torch.nn.init.constant_(net.stem.bias, 10.0)  # behind the first ReLU everything is alive
    length = 2 * reach + 101
    x = torch.randn(1, 1, length, dtype=torch.float64, requires_grad=True)
    net(x, torch.zeros(1))[0, 0, length // 2].backward()
    at = x.grad[0, 0].nonzero()[:, 0] - length // 2
    assert net.reach == reach and torch.equal(at, torch.arange(-reach, reach + 1))


def test_a_spectrogram_speaks_to_its_own_samples():
    net = awake(DiffWave(width=4, layers=2, cycle=1, tokens={"mel": 6}, stretch=(4, 4)))
    x, mel = torch.randn(1, 1, 160, dtype=torch.float64), torch.randn(1, 10, 6, dtype=torch.float64)
    other = mel.clone()
    other[:, 5] += 1
    with torch.no_grad():
        out, changed = (net(x, torch.zeros(1), Cond(tokens={"mel": m})) for m in (mel, other))
    at = (out - changed).abs()[0, 0].nonzero()[:, 0]
    assert at.min() > 80 - 16 - 8 and at.max() < 96 + 16 + 8
    with pytest.raises(ValueError, match="needs a spectrogram of 10 columns"):
        net(x, torch.zeros(1), Cond(tokens={"mel": mel[:, 1:]}))
    with pytest.raises(ValueError, match="divisible by 16, got 150; the nearest valid size is 144"):
        net(x[..., :150], torch.zeros(1), Cond(tokens={"mel": mel}))


def test_the_step_embedding_takes_fractions():
    net = DiffWave(width=4, layers=1)
    emb = net.embed(torch.tensor([3.0, 3.5, 4.0]), Cond())
    assert (emb[0] - emb[1]).abs().max() > 1e-3 and (emb[1] - emb[2]).abs().max() > 1e-3


def test_diffwave_refuses_what_it_cannot_be_told():
    with pytest.raises(ValueError, match="one source of tokens"):
        DiffWave(tokens={"mel": 80, "text": 12})
    with pytest.raises(ValueError, match="positive numbers"):
        DiffWave(cycle=0)


@pytest.mark.parametrize("up", [False, True])
def test_the_cubic_filter_keeps_constants_and_slow_waves(up):
    rate = Rate(up)
    constant = torch.ones(1, 3, 64)
    torch.testing.assert_close(rate(constant), torch.ones(1, 3, 128 if up else 32), atol=1e-5, rtol=0)
    wave = torch.sin(torch.arange(256) * 2 * torch.pi / 128)[None, None]
    back = Rate(False)(Rate(True)(wave))
    torch.testing.assert_close(back[..., 8:-8], wave[..., 8:-8], atol=2e-2, rtol=0)


def test_the_attending_levels_of_dance_diffusion():
    with torch.device("meta"):
        net = DanceUNet()
    level, attending = net.below, []
    while level is not None:
        attending.append(len(level.before) == 6)
        level = level.below
    assert attending == [False] * 7 + [True] * 6 and net.divisor == 2**13
    with pytest.raises(ValueError, match="the length must be divisible by 8, got 30; the nearest valid size is 32"):
        DanceUNet(1, widths=(8, 8, 8, 8), attention=0)(torch.zeros(1, 1, 30), torch.zeros(1))
    with pytest.raises(ValueError, match="at least two levels"):
        DanceUNet(1, widths=(8,))
