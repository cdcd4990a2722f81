"""The U-Nets: agreement with an independent implementation, and what they answer to misuse."""

import pytest
import torch
from torch import nn

from diffx.conditions import Cond
from diffx.networks import MLP, SongUNet, UNet, levels_at
from diffx.networks.layers import Norm, Pointwise, Resample


def copy_norm_linear(ours: nn.Module, theirs: nn.Module) -> None:
    ours.weight.copy_(theirs.weight.reshape(ours.weight.shape))
    ours.bias.copy_(theirs.bias)


def copy_res(ours, theirs) -> None:
    pairs = {"norm1": "norm1", "conv1": "conv1", "modulation": "time_emb_proj", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"}
    for mine, other in pairs.items():
        if getattr(ours, mine) is not None:
            copy_norm_linear(getattr(ours, mine), getattr(theirs, other))


def copy_attention(ours, theirs) -> None:
    copy_norm_linear(ours.norm, theirs.group_norm)
    copy_norm_linear(ours.out, theirs.to_out[0])
    parts = (theirs.to_q, theirs.to_k, theirs.to_v)
    ours.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
    ours.qkv.bias.copy_(torch.cat([p.bias for p in parts]))


def copy_row(row, block) -> None:
    for i, (ours, theirs) in enumerate(zip(row, block.resnets, strict=True)):
        copy_res(ours.res, theirs)
        if ours.attention is not None:
            copy_attention(ours.attention, block.attentions[i])


def test_equals_diffusers_with_the_same_weights():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.UNet2DModel(
        block_out_channels=(128, 128, 256), down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=64,
    ).eval()  # fmt: skip
    net = UNet(width=128, mults=(1, 1, 2), blocks=1, attention_levels=(1,), scale_shift=False, resample="conv").eval()
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in peer.parameters())
    with torch.no_grad():
        copy_norm_linear(net.noise.first, peer.time_embedding.linear_1)
        copy_norm_linear(net.noise.second, peer.time_embedding.linear_2)
        for ours, theirs in ((net.stem, peer.conv_in), (net.norm, peer.conv_norm_out), (net.head, peer.conv_out)):
            copy_norm_linear(ours, theirs)
        for row, block in zip([*net.body.encoder, *net.body.decoder], [*peer.down_blocks, *peer.up_blocks], strict=True):
            copy_row(row, block)
        for i in range(2):
            copy_norm_linear(net.body.down[i].conv, peer.down_blocks[i].downsamplers[0].conv)
            copy_norm_linear(net.body.up[i].conv, peer.up_blocks[i].upsamplers[0].conv)
            copy_res(net.body.middle[i].res, peer.mid_block.resnets[i])
        copy_attention(net.body.middle[0].attention, peer.mid_block.attentions[0])
        x, noise = torch.randn(2, 3, 8, 12), torch.tensor([3.0, 977.0])
        torch.testing.assert_close(net(x, noise), peer(x, noise).sample, atol=1e-5, rtol=1e-5)


def test_levels_are_counted_from_full_resolution():
    assert levels_at(64, (32, 16, 8)) == (1, 2, 3) and levels_at(24, (24, 3)) == (0, 3)
    net = UNet(width=16, mults=(1, 1, 1), blocks=(1, 2, 1), attention_levels=(0, -1))
    attends = [[block.attention is not None for block in row] for row in net.body.encoder]
    assert attends == [[True], [False, False], [True]]
    assert [[block.attention is not None for block in row] for row in net.body.decoder] == [[True] * 2, [False] * 3, [True] * 2]


def test_song_attends_once_per_decoder_level():
    net = SongUNet(width=16, mults=(1, 1), blocks=2, attention_levels=(0,))
    assert [[b.attention is not None for b in row] for row in net.body.decoder] == [[False] * 3, [False, False, True]]
    assert [b.attention is not None for b in net.body.middle] == [True, False]


def test_cross_attention_has_its_own_levels():
    net = UNet(width=16, mults=(1, 1), blocks=1, tokens={"t5": 4}, attention_levels=(), cross_levels=(0,))
    assert [[(b.attention is not None, b.cross is not None) for b in row] for row in net.body.encoder] == [
        [(False, True)],
        [(False, False)],
    ]
    assert net.body.middle[0].cross is not None


@pytest.mark.parametrize(("of", "whole"), [("channels", True), ("elements", False)])
def test_dropout_drops_what_it_says(of, whole):
    net = UNet(3, width=32, mults=(1,), blocks=1, attention_levels=(), dropout=0.5, dropout_of=of)
    block = net.body.encoder[0][0].res
    seen = {}
    block.conv2.register_forward_pre_hook(lambda module, args: seen.update(h=args[0]))
    x, noise = torch.randn(4, 3, 8, 8), torch.zeros(4)
    net.train()(x, noise)
    zero = (seen["h"] == 0).flatten(2).float().mean(2)
    assert bool(((zero == 0) | (zero == 1)).all()) is whole and 0.3 < zero.mean() < 0.7
    net.eval()(x, noise)
    assert (seen["h"] != 0).all()


def test_no_dropout_by_default():
    net = UNet(width=16, mults=(1, 2), blocks=1).train()
    nn.init.normal_(net.head.weight)
    x, noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    assert torch.equal(net(x, noise), net(x, noise))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_and_up_is_the_adjoint_of_down(taps):
    down, up = Resample("down", taps).double(), Resample("up", taps).double()
    x, y = torch.randn(2, 5, 8, 12, dtype=torch.float64), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    assert down(x).shape == y.shape and up(y).shape == x.shape
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum() / 4)
    ramp = torch.arange(8.0).double().expand(1, 1, 8, 8)
    torch.testing.assert_close(down(ramp)[0, 0, 2, 1:-1], torch.tensor([2.5, 4.5], dtype=torch.float64))
    torch.testing.assert_close(up(torch.ones_like(ramp))[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12, dtype=torch.float64))


def test_the_short_filter_is_the_general_one():
    x = torch.randn(2, 3, 8, 8)
    kernel = torch.full((3, 1, 2, 2), 0.25)
    torch.testing.assert_close(Resample("down")(x), nn.functional.conv2d(x, kernel, stride=2, groups=3))
    torch.testing.assert_close(Resample("up")(x), nn.functional.conv_transpose2d(x, 4 * kernel, stride=2, groups=3))


def test_pointwise_is_a_1x1_convolution():
    layer, x = Pointwise(5, 7), torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight[:, :, None, None], layer.bias))


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 4), (128, 32), (192, 32), (144, 24), (512, 32)])
def test_group_counts(channels, groups):
    assert Norm(channels).num_groups == groups


TALKATIVE = {"classes": 10, "vectors": {"size": 2}, "tokens": {"t5": 8}, "maps": {"low": 3}}
GIVEN = {"maps": {"low": torch.zeros(2, 3, 8, 8)}}
MISUSE = {
    "label 11": ({"label": torch.tensor([3, 11])}, r"labels must lie in \[0, 10\) \(10 = null class\), got 11"),
    "label -1": ({"label": torch.tensor([-1, 3])}, "got -1"),
    "batch": ({"label": torch.tensor([1, 2, 3]), "maps": {"low": torch.zeros(3, 3, 8, 8)}}, "x holds 2 samples, the conditions 3"),
    "unknown vector": ({"vectors": {"fps": torch.zeros(2, 1)}}, r"takes no vectors 'fps'; it knows \['label', 'size', 't5', 'low'\]"),
    "unknown source": ({"tokens": {"clip": torch.zeros(2, 4, 8)}}, "takes no tokens 'clip'"),
    "unknown map": ({"maps": {**GIVEN["maps"], "depth": torch.zeros(2, 1, 8, 8)}}, "takes no maps 'depth'"),
    "wrong family": ({"vectors": {"t5": torch.zeros(2, 8)}}, "takes no vectors 't5'"),
    "vector length": ({"vectors": {"size": torch.zeros(2, 3)}}, r"'size' must have 2 axes and 2 values on axis 1, got shape \(2, 3\)"),
    "token width": ({"tokens": {"t5": torch.zeros(2, 4, 9)}}, r"'t5' must have 3 axes and 8 values on axis 2"),
    "map channels": ({"maps": {"low": torch.zeros(2, 1, 8, 8)}}, "'low' must have 4 axes and 3 values on axis 1"),
    "map size": ({"maps": {"low": torch.zeros(2, 3, 4, 4)}}, r"it is \(4, 4\) and x is \(8, 8\)"),
    "map missing": ({"maps": {}}, "needs the map 'low' with 3 channels"),
}


@pytest.mark.parametrize(("given", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_conditions_are_checked(given, message):
    net = UNet(width=16, mults=(1, 2), blocks=1, **TALKATIVE)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(2, 3, 8, 8), torch.zeros(2), Cond(**{**GIVEN, **given}))


@pytest.mark.parametrize("make", [lambda: UNet(width=16, mults=(1, 1, 1), blocks=1), lambda: SongUNet(width=16, mults=(1, 1, 1), blocks=1)])
def test_data_is_checked(make):
    net = make()
    with pytest.raises(ValueError, match=r"divisible by 4, got \(30, 9\); the nearest valid size is \(32, 8\)"):
        net(torch.zeros(1, 3, 30, 9), torch.zeros(1))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"one level per sample, \(2,\), got \(1,\)"):
        net(torch.zeros(2, 3, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"takes no label \(classes=0\); it takes no conditions"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1), Cond(label=torch.zeros(1, dtype=torch.long)))


def test_the_mlp_checks_its_data():
    with pytest.raises(ValueError, match=r"2 numbers per sample, got shape \(4, 3\)"):
        MLP(2)(torch.zeros(4, 3), torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": (16, 8)}, "attention_levels counts the 3 levels.*got 16.*levels_at"),
        ({"cross_levels": (-4,)}, "cross_levels counts"),
        ({"width": 40, "mults": (1, 2, 2)}, "head_dim=64 does not divide the 80 channels"),
        ({"heads": 3}, "heads=3 does not divide the 256 channels"),
        ({"dropout": 1.0}, r"probability in \[0, 1\)"),
        ({"dropout_of": "rows"}, "dropout_of is"),
        ({"resample": "pool"}, "resample is 'block' or 'conv'"),
        ({"vectors": {"text": 3}, "tokens": {"text": 4}}, r"unique.*\['text'\]"),
        ({"blocks": (1, 2)}, "blocks names 2 levels, mults 3"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        UNet(**options)


def test_sides_that_halving_never_meets():
    with pytest.raises(ValueError, match=r"maps of side \[24, 12, 6, 3\], not \[16\]"):
        levels_at(24, (12, 16))
    with pytest.raises(ValueError, match="even number of filter taps"):
        Resample("down", (1, 2, 1))
