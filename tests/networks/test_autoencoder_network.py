"""The convolutional autoencoder: shapes, liveness of all its parts, and how far a pixel reaches."""

import pytest
import torch

from diffx.networks import ConvAutoencoder


@pytest.mark.parametrize(("mults", "factor"), [((1,), 1), ((1, 2), 2), ((1, 2, 2, 3), 8)])
def test_shapes_and_factor(mults, factor):
    net = ConvAutoencoder(3, 5, 8, mults, blocks=2)
    moments = net.encode(torch.randn(2, 3, 16, 24))
    assert net.factor == factor and moments.shape == (2, 10, 16 // factor, 24 // factor)
    assert net.decode(moments[:, :5]).shape == (2, 3, 16, 24)


def test_every_parameter_learns():
    net = ConvAutoencoder(1, 2, 8, (1, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.rand(4, 1, 8, 8)
    for _ in range(2):  # the closing convolutions start at zero, so what stands before them learns from the second step on
        optimizer.zero_grad()
        (net.decode(net.encode(x).chunk(2, 1)[0]) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in net.named_parameters() if not p.grad.abs().max() > 0]
    assert silent == [], "the rows of the log variance share their tensors with those of the mean"


def test_samples_do_not_see_each_other():
    net = ConvAutoencoder(1, 2, 8, (1, 2))
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(net.decode(net.encode(x)[:, :2])[1:2], net.decode(net.encode(x[1:2])[:, :2]))


def test_it_is_translation_equivariant_up_to_its_borders():
    """No attention, no positions, and zero padding only at the edge: a picture moved by one factor moves its latents by one."""
    net = ConvAutoencoder(1, 2, 8, (1, 2)).double()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)):
        norm.eps = 1e9  # the statistics see the borders; without them what is left is local
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[..., 24:40, 24:40] = torch.randn(16, 16, dtype=torch.float64)
    moved = net.encode(x.roll((2, 2), (2, 3)))
    torch.testing.assert_close(moved[..., 8:-8, 8:-8], net.encode(x).roll((1, 1), (2, 3))[..., 8:-8, 8:-8], atol=1e-9, rtol=0)
