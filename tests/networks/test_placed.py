"""`Placed`: rows are told apart, columns are not."""

import math

import pytest
import torch
from torch import nn

from diffx.networks import Placed, UNet
from diffx.networks.border import Conditions


class Echo(nn.Module):
    """A network that answers with the places it was told."""

    channels = 1
    conditions = Conditions(maps={"place": 8})

    def forward(self, x, noise, cond):
        return cond.maps["place"]


def test_as_many_cosines_as_rows_tell_all_rows_apart():
    """They and the constant are the cosine basis over the rows, which is orthogonal; along a row nothing changes."""
    told = Placed(Echo())(torch.zeros(2, 1, 9, 4), torch.zeros(2))
    assert told.shape == (2, 8, 9, 4) and (told == told[:1, :, :, :1]).all() and told.abs().max() <= 1
    basis = torch.cat([torch.full((1, 9), 2**-0.5), told[0, :, :, 0]]) * math.sqrt(2 / 9)
    torch.testing.assert_close(basis.T @ basis, torch.eye(9), atol=1e-5, rtol=0)


def test_the_same_patch_is_answered_by_its_row():
    """In columns a network of convolutions without attention stays blind to where it is."""
    torch.manual_seed(0)
    net = Placed(UNet(1, width=8, mults=(1,), blocks=1, attention_levels=(), maps={"place": 8}))
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
        out = net(torch.zeros(1, 1, 32, 32), torch.zeros(1))[0, 0]
    inner = out[8:24, 8:24]
    assert inner.std(1).max() < 1e-4 < inner.std(0).min()


def test_a_network_without_the_map_is_refused():
    with pytest.raises(ValueError, match=r"UNet reads no map 'place', only \['low'\]"):
        Placed(UNet(1, width=8, mults=(1,), blocks=1, maps={"low": 1}))
