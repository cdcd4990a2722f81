"""DiT: patches and positions, the published block, sizes and grids, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffx.conditions import Cond
from diffx.networks import AttentionController, DiT, attention_control
from diffx.networks.layers import Context
from diffx.networks.patches import patchify, position_table, unpatchify


def small(**options):
    return DiT(**{"channels": 3, "size": 8, "width": 16, "depth": 2, "heads": 2, "classes": 4, **options})


def awake(**options):
    torch.manual_seed(0)
    net = small(**options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.2)
    return net


def call(net, x):
    return net(x, torch.linspace(-1, 1, len(x)), Cond(label=torch.arange(len(x)) % 4))


def test_patches_are_put_together_again():
    x = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    tokens = patchify(x, 4)
    assert tokens.shape == (2, 6, 48) and torch.equal(unpatchify(tokens, 4, (2, 3)), x)
    assert torch.equal(tokens[1, 4].view(4, 4, 3), x[1, :, 4:8, 4:8].permute(1, 2, 0))  # second row, second column


def test_positions_are_those_of_the_published_code():
    """NumPy, written after its description: the mesh is made columns first, so the first half of the width knows the column."""
    columns, rows = np.meshgrid(np.arange(5.0), np.arange(3.0))
    frequency = 1 / 10_000 ** (np.arange(4) / 4)
    halves = [np.concatenate([np.sin(p.reshape(-1, 1) * frequency), np.cos(p.reshape(-1, 1) * frequency)], 1) for p in (columns, rows)]
    table = position_table(torch.arange(3.0).double(), torch.arange(5.0).double(), 16)
    torch.testing.assert_close(table, torch.from_numpy(np.concatenate(halves, 1)), atol=1e-12, rtol=0)


def test_a_width_that_four_does_not_divide():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        position_table(torch.arange(2.0), torch.arange(2.0), 6)


def test_a_fresh_network_is_closed():
    """Gates, modulations and head are zero: every block is the identity."""
    net, x = small(), torch.randn(4, 3, 8, 8)
    for part in (*net.blocks, net.final_layer):
        assert not part.adaLN_modulation[1].weight.any() and not part.adaLN_modulation[1].bias.any()
    assert torch.equal(call(net, x), torch.zeros_like(x))
    nn.init.normal_(net.final_layer.linear.weight)
    tokens = net.x_embedder(x) + net.pos_embed
    expected = unpatchify(net.final_layer.linear(F.layer_norm(tokens, (16,), eps=1e-6)), 2, (4, 4))
    torch.testing.assert_close(call(net, x), expected)


def test_initial_laws():
    net = small(width=256, heads=4, depth=1, classes=1000)
    for layer, std in ((net.t_embedder.mlp[2], 0.02), (net.y_embedder.embedding_table, 0.02)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    for weight in (net.blocks[0].attn.qkv.weight, net.blocks[0].mlp.fc1.weight, net.x_embedder.proj.weight.flatten(1)):
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / sum(weight.shape)), rel=0.02)


def test_the_embedding_of_patches_is_the_strided_convolution():
    net, x = awake(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net.x_embedder(x), net.x_embedder.proj(x).flatten(2).transpose(1, 2))


def by_hand(net, x, noise, label):
    """The published equations, one after the other, with torch's own attention and no code of the network's forward."""
    waves = noise[:, None] * 10_000 ** (-torch.arange(128.0, dtype=x.dtype) / 128)
    c = F.silu(net.t_embedder.mlp(torch.cat([waves.cos(), waves.sin()], 1)) + net.y_embedder.embedding_table.weight[label])
    h = F.conv2d(x, net.x_embedder.proj.weight, net.x_embedder.proj.bias, stride=2).flatten(2).mT + net.pos_embed
    for block in net.blocks:
        b1, s1, g1, b2, s2, g2 = block.adaLN_modulation[1](c).unsqueeze(1).split(16, 2)
        y = F.layer_norm(h, (16,), eps=1e-6) * (1 + s1) + b1
        attended, _ = F.multi_head_attention_forward(
            *[y.transpose(0, 1)] * 3, 16, 2, block.attn.qkv.weight, block.attn.qkv.bias, None, None, False, 0.0,
            block.attn.proj.weight, block.attn.proj.bias, need_weights=False,
        )  # fmt: skip
        h = h + g1 * attended.transpose(0, 1)
        y = F.layer_norm(h, (16,), eps=1e-6) * (1 + s2) + b2
        h = h + g2 * block.mlp.fc2(F.gelu(block.mlp.fc1(y), approximate="tanh"))
    shift, scale = net.final_layer.adaLN_modulation[1](c).unsqueeze(1).split(16, 2)
    out = net.final_layer.linear(F.layer_norm(h, (16,), eps=1e-6) * (1 + scale) + shift)
    return torch.einsum("bhwpqc->bchpwq", out.view(len(x), 4, 4, 2, 2, -1)).reshape(len(x), -1, 8, 8)


def test_forward_is_the_published_equations():
    net, x, noise = awake(out_channels=6), torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0.0, 37.0, 999.0]).double()
    label = torch.tensor([0, 4, 3])  # 4: the null label
    torch.testing.assert_close(net(x, noise, Cond(label=label)), by_hand(net, x, noise, label), atol=1e-10, rtol=0)


def test_the_null_label_is_the_last_row_of_the_table():
    net, x, noise = awake(), torch.randn(2, 3, 8, 8).double(), torch.zeros(2)
    assert net.y_embedder.embedding_table.weight.shape == (5, 16)
    label = torch.tensor([1, 2])
    mixed = net(x, noise, Cond(label=label, keep={"label": torch.tensor([True, False])}))
    torch.testing.assert_close(mixed, net(x, noise, Cond(label=torch.tensor([1, 4]))))
    torch.testing.assert_close(net(x, noise), net(x, noise, Cond(label=torch.tensor([4, 4]))))


def test_stretched_positions_span_the_trained_grid_and_counted_ones_continue():
    stretch, count = small(other_sizes="stretch"), small(other_sizes="count")
    own = stretch.pos_embed.view(4, 4, 16)
    torch.testing.assert_close(stretch.positions((8, 4)).view(8, 4, 16)[::2], own, atol=1e-6, rtol=0)
    torch.testing.assert_close(count.positions((6, 9)).view(6, 9, 16)[:4, :4], own, atol=1e-6, rtol=0)
    between = stretch.positions((8, 8)).view(8, 8, 16)[1, 3]
    torch.testing.assert_close(between, position_table(torch.tensor([0.5]), torch.tensor([1.5]), 16)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("other_sizes", ["stretch", "count"])
def test_one_network_takes_buckets_of_any_aspect(other_sizes):
    net = awake(other_sizes=other_sizes)
    for size in ((4, 16), (16, 4), (8, 8), (2, 10)):
        assert call(net, torch.randn(2, 3, *size).double()).shape == (2, 3, *size)


def test_an_oblong_table_is_laid_out_rows_first():
    """A network for 4 x 8 equals one for 8 x 8 that counts, and sees rows where that one sees rows."""
    oblong, counting = awake(size=(4, 8)), awake(other_sizes="count")
    counting.load_state_dict(oblong.state_dict())
    x = torch.randn(2, 3, 4, 8).double()
    torch.testing.assert_close(call(oblong, x), call(counting, x), atol=1e-5, rtol=0)
    assert (call(oblong, x).mT - call(awake(size=(8, 4)), x.mT)).abs().max() > 1e-3


def test_positions_are_no_part_of_the_state():
    assert not [name for name in small().state_dict() if "pos" in name]


def test_a_network_built_without_memory_is_complete_after_initialise():
    with torch.device("meta"):
        net = small()
    net = net.to_empty(device="cpu")
    net.initialise()
    assert torch.equal(net.pos_embed, small().pos_embed) and not call(net, torch.randn(2, 3, 8, 8)).any()


def test_a_controller_that_attends_to_oneself_only_cuts_the_tokens_apart():
    class Oneself(AttentionController):
        def probs(self, probs, site):
            assert site.grid == (4, 4) and site.layer in ("blocks.0.attn", "blocks.1.attn")
            return torch.eye(probs.shape[-1], dtype=probs.dtype).expand_as(probs)

    net, x = awake(), torch.randn(1, 3, 8, 8).double()
    other = x.clone()
    other[..., 6:, 6:] += 1
    with attention_control(Oneself()):
        moved = (call(net, other) - call(net, x)).abs()
    assert moved[..., 6:, 6:].min() > 0 and not moved[..., :6, :].any() and not moved[..., :6].any()
    assert (call(net, other) - call(net, x)).abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_gradients(dtype):
    net, x = awake().float(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        call(net, x).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((9, 8), r"divisible by 2, got \(9, 8\); the nearest valid size is \(10, 8\)"),
        ((8, 12), r"grid of \(4, 6\) tokens, but the position table is laid out for \(4, 4\), that is for size \(8, 8\)"),
    ],
)
def test_sizes_that_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        call(small(), torch.randn(2, 3, *size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 18}, "divisible by heads = 2 and by 4, got 18"),
        ({"width": 20, "heads": 3}, "divisible by heads = 3"),
        ({"size": 9}, r"size must be divisible by patch = 2, got \(9, 9\)"),
        ({"other_sizes": "crop"}, "'refuse', 'stretch' or 'count', got 'crop'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range(label):
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 4\) \(4 = null class\), got {label}"):
        small()(torch.randn(1, 3, 8, 8), torch.zeros(1), Cond(label=torch.tensor([label])))


# Text -------------------------------------------------------------------------------------------------------------------------------------


def told(net, tokens=None, mask=None, **options):
    """An output with or without tokens; the mask is over the source."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = {} if tokens is None else {"tokens": {"text": tokens}, "masks": {} if mask is None else {"text": mask}}
    return net(x, torch.tensor([-1.0, 1.0]), Cond(label=torch.tensor([0, 3]), **given, **options))


def test_text_enters_by_attention_after_the_self_attention_by_hand():
    """One head, so that the formula fits on a line; null token first, keys and values from a normalised linear map of the states."""
    net = awake(heads=1, tokens={"text": 6})
    cross, x, states = net.blocks[1].cross, torch.randn(2, 16, 16, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    context = Context(torch.zeros(2, 16).double(), torch.zeros(2), {"text": states}, None, None)
    q = F.linear(F.layer_norm(x, (16,), eps=1e-6), cross.query.weight, cross.query.bias)
    k, v = torch.cat([cross.null.expand(2, 1, -1), cross.kv["text"](states)], 1).chunk(2, -1)
    read = (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
    torch.testing.assert_close(cross(x, context, (4, 4)), x + F.linear(read, cross.out.weight, cross.out.bias))


def test_a_fresh_network_does_not_hear_text_and_can_learn_to():
    net = small(tokens={"text": 6}).double()
    nn.init.normal_(net.final_layer.linear.weight)
    states = torch.randn(2, 3, 6, dtype=torch.float64)
    assert torch.equal(told(net, states), told(net, states + 1))
    told(net, states).square().sum().backward()
    assert all(block.cross.out.weight.grad.abs().max() > 0 for block in net.blocks)


def test_hidden_absent_and_masked_text_are_one():
    net, states = awake(tokens={"text": 6}), torch.randn(2, 3, 6, dtype=torch.float64)
    absent = told(net)
    torch.testing.assert_close(told(net, states, keep={"text": torch.zeros(2, dtype=torch.bool)}), absent)
    torch.testing.assert_close(told(net, states, torch.zeros(2, 3, dtype=torch.bool)), absent)
    assert (told(net, states) - absent).abs().max() > 1e-3


def test_without_sources_there_is_no_such_layer():
    assert small().state_dict().keys() == {name for name in small(tokens={"text": 6}).state_dict() if ".cross." not in name}


def test_a_clip_of_one_frame_has_the_positions_of_a_picture():
    picture = DiT(3, size=8, width=16, depth=1, heads=2)
    clip = DiT(3, size=(4, 8, 8), patch=(1, 2, 2), width=16, depth=1, heads=2)
    table = clip.pos_embed.unflatten(1, (4, 16))
    start = torch.cat([torch.zeros(8), torch.ones(8)])  # the waves of time at 0
    torch.testing.assert_close(table[:, 0] - start, picture.pos_embed)
    torch.testing.assert_close(table[:, 3] - table[:, 1], (table[:, 3] - table[:, 1])[:, :1].expand(-1, 16, -1))


def test_patches_of_clips_equal_a_strided_convolution():
    net = DiT(2, size=(4, 8, 8), patch=(2, 4, 2), width=16, depth=1, heads=2)
    x = torch.randn(3, 2, 4, 8, 8)
    torch.testing.assert_close(net.x_embedder(x), net.x_embedder.proj(x).flatten(2).mT, atol=1e-5, rtol=0)
