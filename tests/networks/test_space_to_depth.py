"""What a network inside `SpaceToDepth` sees, and what comes back."""

import pytest
import torch
from torch import nn

from diffx import Cond
from diffx.networks import DiffWave, SpaceToDepth
from diffx.networks.border import Conditions


class Watcher(nn.Module):
    """Returns what it is shown, and keeps it."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.channels, self.conditions = channels, Conditions(0, {}, {}, {"known": maps})

    def forward(self, x, noise, cond=None):
        self.x, self.known = x, cond.maps["known"]
        return x


def test_a_channel_of_sound_is_every_factorth_sample():
    inner = Watcher(6, 3)
    x, known = torch.randn(2, 2, 12), torch.randn(2, 1, 12)
    assert torch.equal(SpaceToDepth(inner, 3, axes=1)(x, torch.zeros(2), Cond(maps={"known": known})), x)
    assert torch.equal(inner.x[:, 4], x[:, 1, 1::3]) and torch.equal(inner.known[:, 2], known[:, 0, 2::3])


@pytest.mark.parametrize("lead", [(), (5,)])
def test_a_channel_of_pictures_and_clips_is_one_place_of_every_square(lead):
    inner = Watcher(8, 4)
    x, known = torch.randn(2, 2, *lead, 4, 6), torch.randn(2, 1, *lead, 4, 6)
    assert torch.equal(SpaceToDepth(inner)(x, torch.zeros(2), Cond(maps={"known": known})), x)
    assert torch.equal(inner.x[:, 5], x[:, 1, ..., 0::2, 1::2]) and torch.equal(inner.known[:, 2], known[:, 0, ..., 1::2, 0::2])


@pytest.mark.parametrize(("factor", "axes"), [(1, 1), (3, 1), (2, 3), (8, 2)])
def test_what_does_not_fold_is_refused(factor, axes):
    with pytest.raises(ValueError, match=f"got factor={factor} and axes={axes}"):
        SpaceToDepth(DiffWave(8, width=8, layers=1), factor, axes)


def test_lengths_that_do_not_fold_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, got 10"):
        SpaceToDepth(DiffWave(4, width=8, layers=1), 4, axes=1)(torch.zeros(1, 1, 10), torch.zeros(1))
