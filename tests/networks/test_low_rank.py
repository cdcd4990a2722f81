"""`LowRank`: nothing at first, only corrections learn, and folded weights are the corrected ones."""

import copy

import pytest
import torch
from network_list import NETWORKS, output
from technique_list import pictures

from diffx import Denoiser
from diffx.experts import Experts
from diffx.networks import DiT, LowRank, UNet
from diffx.recipes import recipe_of
from diffx.recipes.build import build
from diffx.schedules import Bands, LogNormal
from diffx.techniques import NoiseBandExperts


def moved(net):
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return net


@pytest.mark.parametrize("name", ["unet_all", "dit_all", "rin_all", "uvit_all", "wave_unet_all", "efficient_all", "mlp"])
def test_a_fresh_correction_changes_nothing_and_a_folded_one_stays(name):
    case = NETWORKS[name]
    plain = case.awake()
    x, noise = case.data()
    cond = case.cond(plain)
    low = LowRank(plain, rank=2).eval()
    with torch.no_grad():
        torch.testing.assert_close(output(low, x, noise, cond), output(plain, x, noise, cond), atol=1e-6, rtol=0)
        changed = output(moved(low), x, noise, cond)
        assert not torch.allclose(changed, output(plain, x, noise, cond), atol=1e-3)
        folded = low.folded().eval()
        torch.testing.assert_close(output(folded, x, noise, cond), changed, atol=1e-5, rtol=1e-5)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert low.conditions is not None and low.net is not plain


def test_the_parameters_that_learn():
    net = DiT(3, size=8, width=16, depth=2, heads=2)
    low = LowRank(net, rank=3, layers=["*.attn.*"])
    learning = {name: p for name, p in low.named_parameters() if p.requires_grad}
    layers = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Linear) and ".attn." in name}
    assert len(learning) == 2 * len(layers)
    assert sum(p.numel() for p in learning.values()) == sum(3 * (m.in_features + m.out_features) for m in layers.values())
    assert all(p.requires_grad for p in net.parameters())


def test_the_rank_of_a_correction():
    net = UNet(3, width=16, mults=(1,), blocks=1)
    before = copy.deepcopy(net.state_dict())
    folded = moved(LowRank(net, rank=2)).folded()
    change = (folded.body.encoder[0][0].res.conv1.weight - before["body.encoder.0.0.res.conv1.weight"]).flatten(1)
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2
    assert torch.equal(folded.norm.weight, before["norm.weight"])


def test_experts_that_share_all_but_their_corrections():
    net = LowRank(UNet(1, width=16, mults=(1,), blocks=1, classes=10), rank=2)
    experts = Experts(net, Bands(LogNormal(), (0.0, 0.5, 1.0)), own=LowRank.own)
    module = NoiseBandExperts(experts, shape=(1, 8, 8), seed=2)
    trained = module.trained_parameters()
    assert all(".weight.0." in name for name in trained) and len(trained) % 2 == 0
    before = {name: p.clone() for name, p in module.named_parameters()}
    own = [{name: p for name, p in net.named_parameters() if p.requires_grad} for net in experts.net]
    assert own[0].keys() == own[1].keys() and not {id(p) for p in own[0].values()} & {id(p) for p in own[1].values()}
    assert all(a is b for (_, a), (_, b) in zip(experts.net[0].named_parameters(), experts.net[1].named_parameters(), strict=True)
               if not a.requires_grad)  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=0.1)
    for k in (0, 1):
        optimizer.zero_grad()
        module.denoiser(pictures(4)["x"], experts.bands[k].sigma(torch.full((4,), 0.5))).square().sum().backward()
        optimizer.step()
        changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        assert changed and all(name.startswith(f"denoiser.net.{k}.") for name in changed)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}


def test_the_recipe_rebuilds_it():
    low = moved(LowRank(UNet(3, width=16, mults=(1,), blocks=1), rank=2, scale=0.5))
    twin = build(dict(recipe_of(low)))
    twin.load_state_dict(low.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(Denoiser(twin)(x, torch.ones(2)), Denoiser(low)(x, torch.ones(2)))


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 0}, "rank must be at least 1"), ({"layers": ["nothing.*"]}, "no layer's name fits")]
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LowRank(UNet(3, width=16, mults=(1,), blocks=1), **options)
