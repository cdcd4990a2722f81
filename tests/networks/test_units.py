"""Activation checkpointing changes no bit of outputs and gradients, and keeps less."""

from __future__ import annotations

import functools

import pytest
import torch
from network_list import NETWORKS, output

from diffx import EDM, Denoiser, fit
from diffx.networks import DiT, TokenTransformer, UNet, checkpoint_activations, units


def gradients(net, inputs, handed=None):
    """Output and gradients under one draw of dropout."""
    net.zero_grad()
    torch.manual_seed(3)
    out = output(net, *inputs, **(handed or {}))
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def kept(net, inputs):
    """Bytes that the forward pass keeps for the backward pass, beside the weights."""
    weights, seen = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = output(net, *inputs)
    del out
    return sum(seen.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_bit_changes(name):
    case = NETWORKS[name]
    net = case.awake().train()
    inputs = (*case.data(), case.cond(net))
    handed = case.handed()
    plain = gradients(net, inputs, handed)
    assert checkpoint_activations(net) == checkpoint_activations(net) > 0
    again = gradients(net, inputs, handed)
    assert len(plain) == len(again) and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_dropout_is_drawn_again_alike():
    net = UNet(3, width=16, mults=(1, 2), blocks=1, dropout=0.3, head_dim=8).train()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    inputs = (torch.randn(2, 3, 8, 8), torch.zeros(2))
    plain = gradients(net, inputs)
    assert any(not torch.equal(a, b) for a, b in zip(plain, gradients(net.eval(), inputs), strict=True))
    checkpoint_activations(net.train())
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(net, inputs), strict=True))


def test_less_is_kept():
    torch.manual_seed(0)
    x, noise = torch.randn(4, 3, 16, 16), torch.zeros(4)
    for net, limit in ((DiT(3, size=16, width=64, depth=8, heads=2), 0.15), (UNet(3, width=32, mults=(1, 2), blocks=2), 0.5)):
        before = kept(net, (x, noise))
        checkpoint_activations(net)
        assert kept(net, (x, noise)) < limit * before, type(net).__name__


def test_the_switch_of_an_experiment(tmp_path, capsys):
    words = ["experiment=digits/edm", "small=true", f"runs={tmp_path}", "activation_checkpointing=true"]
    assert fit.main([*words, "--check"]) == 0
    assert fit.main([*words[:-1], "activation_checkpointing=2", "--check"]) == 2
    assert "activation_checkpointing must be bool" in capsys.readouterr().err
    module = EDM(Denoiser(UNet(3, width=16, mults=(1,), blocks=1)), shape=(3, 8, 8))
    module.checkpoint_activations()
    assert all(isinstance(unit.forward, functools.partial) for unit in units(module.denoiser.net))
    with pytest.raises(ValueError, match="Linear is no stack of blocks"):
        EDM(Denoiser(torch.nn.Linear(2, 2)), shape=(2,)).checkpoint_activations()


def test_nothing_is_computed_twice_without_gradients():
    net = DiT(3, size=8, width=16, depth=2, heads=2)
    calls = []
    next(units(net)).register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(net)
    with torch.no_grad():
        net(torch.randn(2, 3, 8, 8), torch.zeros(2))
    assert len(calls) == 1


def test_blocks_of_foreign_networks_count_by_their_class_names():
    class Foreign(torch.nn.Module):
        _no_split_modules = ("Linear",)

        def __init__(self):
            super().__init__()
            self.rows = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))

    net = torch.nn.ModuleDict({"foreign": Foreign(), "other": torch.nn.Bilinear(2, 2, 2)})
    assert list(units(net)) == [net["foreign"].rows[0], net["foreign"].rows[2]]
    assert not list(units(torch.nn.Linear(2, 2))) and len(list(units(TokenTransformer(5, (8, 8), width=16, depth=3, heads=2)))) == 3
