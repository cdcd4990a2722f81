"""Published weights: the network of diffusers, the layouts of files, and what does not fit."""

import argparse
import functools
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffx.conditions import Cond
from diffx.interop import fill, load_dit, read_dit, read_weights
from diffx.networks import DiT, dit

SHAPE = {"channels": 4, "out_channels": 8, "size": 8, "width": 48, "depth": 2, "heads": 4, "classes": 10}


def draw(net, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.05)
    return net.eval()


@pytest.fixture(scope="module")
def theirs():
    """A DiT of diffusers in which the embedders of all blocks agree, as in every converted checkpoint."""
    from diffusers import DiTTransformer2DModel

    net = draw(
        DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10
        )
    )
    net.transformer_blocks[1].norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


@pytest.fixture
def published(theirs):
    """What a file of the DiT repository holds: its names, and the frozen table of positions."""
    net = load_dit(DiT(**SHAPE), theirs)
    return {**net.state_dict(), "pos_embed": net.pos_embed.clone()}


def gap(net, theirs, timestep):
    x, label = torch.randn(3, 4, 8, 8), torch.tensor([0, 9, 10])  # 10: the null row
    with torch.no_grad():
        ours = net(x, torch.full((3,), float(timestep)), Cond(label=label))
        return (ours - theirs(x, torch.full((3,), timestep), label).sample).abs().max().item()


def test_at_timestep_0_diffusers_agrees_with_the_published_network(theirs):
    assert gap(load_dit(DiT(**SHAPE), theirs), theirs, 0) < 1e-5


@pytest.mark.parametrize("timestep", [37, 500, 999])
def test_elsewhere_diffusers_disagrees_by_its_sinusoid_and_by_nothing_else(theirs, timestep, monkeypatch):
    """Its frequencies are 10,000^(-j/127); a DiT that is given these instead of the published ones agrees at every timestep."""
    net = load_dit(DiT(**SHAPE), theirs)
    assert gap(net, theirs, timestep) > 1e-3
    monkeypatch.setattr(dit, "sinusoid", functools.partial(dit.sinusoid, endpoint=True))
    assert gap(net, theirs, timestep) < 1e-5


def test_diffusers_repeats_its_embedders_in_every_block(theirs):
    """Which is why it has more parameters than the published network."""
    per_block = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    ours = sum(p.numel() for p in DiT(**SHAPE).parameters())
    assert sum(p.numel() for p in theirs.parameters()) == ours + per_block * (SHAPE["depth"] - 1)


def same(net, published):
    own = net.state_dict()
    return own.keys() == published.keys() - {"pos_embed"} and all(torch.equal(own[name], published[name]) for name in own)


def test_the_names_are_the_published_ones(published):
    embedders = {f"{name}.{kind}" for name in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2") for kind in ("weight", "bias")}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    layers = {f"blocks.{i}.{part}.{kind}" for i in (0, 1) for part in parts for kind in ("weight", "bias")}
    final = {f"final_layer.{part}.{kind}" for part in ("linear", "adaLN_modulation.1") for kind in ("weight", "bias")}
    assert published.keys() == {*embedders, "y_embedder.embedding_table.weight", *layers, *final, "pos_embed"}


def test_a_raw_file_loads_as_it_is(published, tmp_path):
    torch.save(published, tmp_path / "DiT.pt")
    assert same(load_dit(DiT(**SHAPE), tmp_path / "DiT.pt"), published)


def test_a_file_of_the_trainer(published, tmp_path):
    """It holds both kinds of weights, the optimizer and the command line."""
    raw = {name: tensor + 1 for name, tensor in published.items() if name != "pos_embed"}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    args = argparse.Namespace(model="DiT-XL/2", epochs=1400)
    torch.save({"model": raw, "ema": published, "opt": optimizer, "args": args}, tmp_path / "0400000.pt")
    assert same(load_dit(DiT(**SHAPE), tmp_path / "0400000.pt"), published)
    assert same(load_dit(DiT(**SHAPE), tmp_path / "0400000.pt", weights="raw"), raw)
    torch.save({"model": raw}, tmp_path / "raw.pt")
    with pytest.raises(ValueError, match=r"no 'ema' weights .*it holds \['model'\]"):
        load_dit(DiT(**SHAPE), tmp_path / "raw.pt")


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_a_folder_of_diffusers(theirs, published, tmp_path, inner):
    theirs.save_pretrained(tmp_path / inner)
    assert same(load_dit(DiT(**SHAPE), tmp_path), published)


def test_a_network_is_built_from_its_weights(published, tmp_path):
    save_file({name: t.contiguous() for name, t in published.items()}, tmp_path / "dit.safetensors")
    net = read_dit(tmp_path / "dit.safetensors", heads=4)
    assert same(net, published) and net.grid == (4, 4) and net.conditions.classes == 10
    x, noise, cond = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), Cond(label=torch.tensor([1, 2]))
    assert torch.equal(net(x, noise, cond), load_dit(DiT(**SHAPE), published)(x, noise, cond))


def test_published_widths_tell_the_heads():
    net = draw(DiT.published("S/8", depth=1, size=16, classes=3))
    twin = read_dit({**net.state_dict(), "pos_embed": net.pos_embed})
    assert twin.blocks[0].attn.heads == 6 and twin.grid == (2, 2) and twin.out_channels == 8


def test_what_cannot_be_read_off_must_be_given(published):
    del published["pos_embed"]
    with pytest.raises(ValueError, match=r"heads and size cannot be read off these weights \(width 48\); give heads=..., size=..."):
        read_dit(published)


def test_weights_for_one_resolution_go_into_a_network_for_another(published):
    assert same(load_dit(DiT(**{**SHAPE, "size": 16}), published), published)


def test_weights_that_do_not_fit_are_reported_and_change_nothing(published):
    net = draw(DiT(**SHAPE), seed=1)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    del published["blocks.1.mlp.fc1.bias"]
    published["blocks.2.mlp.fc1.bias"] = torch.zeros(192)
    published["y_embedder.embedding_table.weight"] = torch.zeros(5, 48)
    with pytest.raises(ValueError, match="do not fit DiT") as error:
        load_dit(net, published)
    for part in (
        "missing: blocks.1.mlp.fc1.bias",
        "not known to the network: blocks.2.mlp.fc1.bias",
        "of another shape: y_embedder.embedding_table.weight (5, 48), here (11, 48)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_unknown_names_of_diffusers_are_reported(theirs):
    state = {**theirs.state_dict(), "transformer_blocks.0.attn2.to_q.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"not known to the network: transformer_blocks\.0\.attn2\.to_q\.weight"):
        load_dit(DiT(**SHAPE), state)


def test_blocks_with_embedders_of_their_own_are_no_dit(theirs):
    state = theirs.state_dict()
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] = torch.ones(48)
    with pytest.raises(ValueError, match=r"the blocks hold different norm1\.emb\.timestep_embedder\.linear_1\.bias"):
        load_dit(DiT(**SHAPE), state)


def test_positions_of_another_layout(published):
    published["pos_embed"] = published["pos_embed"].roll(24, 2)  # rows first
    with pytest.raises(ValueError, match="positions are laid out differently"):
        load_dit(DiT(**SHAPE), published)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": {}, "args": Evil()}, "evil.pt")
    with pytest.raises(ValueError, match="never unpickled"):
        read_weights("evil.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"conv.weight": torch.zeros(1)}, "neither the published layout of DiT nor that of diffusers"),
        ({"x_embedder.proj.weight": 3}, "x_embedder.proj.weight is something else"),
    ],
)
def test_what_is_no_dit(source, message):
    with pytest.raises(ValueError, match=message):
        load_dit(DiT(**SHAPE), source)


def test_requests_that_cannot_be_met(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_weights(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match='"ema" or "raw"'):
        read_weights({}, "best")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="no mapping from names to tensors but a Tensor"):
        read_weights(tmp_path / "tensor.pt")


def test_fill_serves_every_network():
    net, twin = draw(nn.Linear(2, 3), 1), nn.Linear(2, 3)
    fill(twin, read_weights(net))
    assert torch.equal(twin.weight, net.weight)
