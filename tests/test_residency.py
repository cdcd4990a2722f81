"""Experts that take turns on a device, and batches that a network sees in parts."""

import pytest
import torch
from technique_list import edm, labels, unet
from torch import nn

from diffx import EDM, Denoiser, Euler, LogNormal
from diffx.experts import Experts
from diffx.guidance import Split
from diffx.networks import LowRank
from diffx.residency import offloaded, own_tensors
from diffx.schedules import Bands

BANDS = Bands(LogNormal(), (0.0, 0.25, 0.9, 1.0))


class Smooth(nn.Module):
    """A network small enough for many samples and steps."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, x, noise, cond):
        return self.conv(x) + self.shift + noise.view(-1, 1, 1, 1)


def ensemble(net=None, own=("*",)):
    experts = Experts(net or Smooth(), BANDS, own=own)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in experts.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return EDM(experts, shape=(1, 8, 8), sampler=Euler(32))


def size(tensors):
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_64_samples_in_parts_of_16_move_each_expert_once(kind, tmp_path):
    module = ensemble()
    names, values = list(module.state_dict()), {name: value.clone() for name, value in module.state_dict().items()}
    plain = module.sample(64, seed=0, guidance=Split(16))
    with offloaded(module, "cpu", folder=tmp_path if kind == "disk" else None) as residents:
        turns = module.sample(64, seed=0, guidance=Split(16))
        assert list(module.state_dict()) == names
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(turns, plain)
    assert residents.loads == 3  # two changes
    assert residents.peak <= 1.05 * max(size(tensors) for tensors in own_tensors(module.denoiser.networks))
    assert len(list(tmp_path.iterdir())) == (3 if kind == "disk" else 0)
    assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.sample(64, seed=0, guidance=Split(16)), plain)


def test_a_folder_may_be_used_again_while_weights_are_mapped_from_it(tmp_path):
    module = ensemble()
    plain = module.sample(2, seed=0)
    for _ in range(2):
        with offloaded(module, "cpu", folder=tmp_path):
            assert torch.equal(module.sample(2, seed=0), plain)
    assert torch.equal(module.sample(2, seed=0), plain)


def test_ahead_brings_the_next_one_early_and_never_a_third():
    module = ensemble()
    plain = module.sample(2, seed=0)
    with offloaded(module, "cpu", ahead=True) as residents:
        assert torch.equal(module.sample(2, seed=0), plain)
    each = size(own_tensors(module.denoiser.networks)[0])
    assert (residents.loads, residents.peak) == (3, 2 * each)


def test_what_experts_share_does_not_move():
    module = ensemble(LowRank(unet(), rank=2), LowRank.own)
    own = own_tensors(module.denoiser.networks)
    assert 0 < size(own[0]) < 0.5 * size(module.denoiser.networks[0].parameters())
    plain = module.sample(2, seed=0)
    with offloaded(module, "cpu") as residents:
        assert torch.equal(module.sample(2, seed=0), plain)
    assert residents.peak == size(own[0])


def test_it_takes_experts():
    with pytest.raises(TypeError, match=r"got Denoiser; a single network is moved by module\.to"), offloaded(edm(), "cpu"):
        pass


class Count(nn.Module):
    """A network that remembers how many samples it saw at once."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, noise, cond):
        self.seen.append((len(x), None if cond.label is None else cond.label.tolist()))
        return 0 * x


def test_split_shows_a_network_so_many_rows_with_their_own_conditions():
    net = Count()
    module = EDM(Denoiser(net), shape=(1, 8, 8), sampler=Euler(1))
    module.sample(5, labels(5), seed=0, guidance=Split(2))
    rows = labels(5).label.tolist()
    assert net.seen == [(2, rows[:2]), (2, rows[2:4]), (1, rows[4:])]
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        Split(0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_split_changes_nothing_else(scale):
    module = edm().double()
    whole, split = (module.sample(5, labels(5), seed=0, sampler=Euler(4), guidance=guide) for guide in (scale, Split(2, scale)))
    torch.testing.assert_close(whole, split, atol=1e-6, rtol=0)
