"""RIN's network: what is carried, the interface as a set, texts that are read, sizes and patches, bad input."""

import pytest
import torch
from network_list import output
from torch.nn import functional as F

from diffx.conditions import Cond
from diffx.networks import RIN, attention_control
from diffx.networks.attention import AttentionController
from diffx.networks.embedders import sinusoid
from diffx.networks.patches import patchify, unpatchify

TINY = {"size": 8, "patch": 2, "width": 16, "latents": 5, "latent_width": 24, "blocks": 2, "depth": 2, "heads": 3, "read_heads": 2}


def awake(**options):
    """A network whose zero weights are drawn, so that all of it shows."""
    torch.manual_seed(0)
    net = RIN(3, **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return net


def data(n=3, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *size, generator=generator), torch.linspace(100, 900, n)


def test_a_fresh_network_answers_alike_whatever_it_is_handed():
    """Bitwise: the scale of the LayerNorm through which latents join is 0, and becomes part of the answer as it is learnt."""
    net, (x, noise) = RIN(3, **TINY), data()
    torch.nn.init.normal_(net.head.weight)
    out, latents = net(x, noise)
    told, again = net(x, noise, carry=torch.randn_like(latents))
    assert torch.equal(out, told) and torch.equal(latents, again) and out.std() > 0.1
    torch.nn.init.ones_(net.carried_norm.weight)
    assert not torch.allclose(net(x, noise, carry=torch.randn_like(latents))[0], out)


def test_nothing_is_handed_on_as_zeros():
    net, (x, noise) = awake(), data()
    out, latents = net(x, noise)
    assert latents.shape == (3, 5, 24)
    assert torch.equal(net(x, noise, carry=torch.zeros_like(latents))[0], out)


def test_the_interface_is_a_set_of_patches_with_positions():
    """Patches that change places together with their positions leave the latents alone and change places in the output."""
    net, (x, noise) = awake(), data()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    out, latents = net(x, noise)
    moved = unpatchify(patchify(x, 2)[:, order], 2, (4, 4))
    with torch.no_grad():
        net.positions.copy_(net.positions[:, order])
    there, same = net(moved, noise)
    torch.testing.assert_close(same, latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(patchify(there, 2), patchify(out, 2)[:, order], atol=1e-5, rtol=0)


def test_the_equations_of_one_round():
    """Read, think, write, written out with plain softmaxes for one block."""
    net, (x, noise) = awake(blocks=1, depth=1, heads=1, read_heads=1), data()
    block = net.blocks[0]

    def attention(part, x, memory=None):
        x = part.norm(x)
        memory = x if memory is None else memory
        q, k, v = part.query(x), part.key(memory), part.value(memory)
        return part.out((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)

    waves = sinusoid(noise, 6)
    waves = (waves - waves.mean(1, keepdim=True)) / (waves.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    time = net.noise.second(F.silu(net.noise.first(waves)))[:, None]
    zeros = torch.zeros(3, 5, 24)
    z = torch.cat([net.slots.expand(3, -1, -1), time], 1) + net.carried_norm(zeros + net.carried(zeros))
    h = net.stem_norm(net.stem(patchify(x, 2))) + net.positions
    z = z + attention(block.read, z, h)
    z = z + block.read_mlp(z)
    z = z + attention(block.compute[0], z)
    z = z + block.compute_mlp[0](z)
    h = h + attention(block.write, h, z)
    h = h + block.write_mlp(h)
    out, latents = net(x, noise)
    torch.testing.assert_close(latents, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, unpatchify(net.head(net.head_norm(h)), 2, (4, 4)), atol=1e-5, rtol=1e-5)


def test_masked_words_are_not_read():
    net, (x, noise) = awake(tokens={"words": 7, "bytes": 4}), data()
    words, letters, mask = torch.randn(3, 4, 7), torch.randn(3, 2, 4), torch.tensor([[True, True, False, False]] * 3)
    other = torch.where(mask[..., None], words, 9.0)
    told = Cond(tokens={"words": words, "bytes": letters}, masks={"words": mask})
    assert torch.equal(
        output(net, x, noise, told), output(net, x, noise, Cond(tokens={"words": other, "bytes": letters}, masks={"words": mask}))
    )
    short = Cond(tokens={"words": words[:, :2], "bytes": letters})
    torch.testing.assert_close(output(net, x, noise, told), output(net, x, noise, short), atol=1e-5, rtol=0)
    assert (output(net, x, noise, told) - output(net, x, noise)).abs().max() > 1e-4


def test_a_controller_sees_every_layer_and_knows_its_keys():
    seen = {}

    class Watch(AttentionController):
        def probs(self, probs, site):
            seen[site.layer] = (site.kind, site.grid, site.n_prefix, {name: (s.start, s.stop) for name, s in site.key_slices.items()})
            assert probs.sum(-1).allclose(torch.ones(()))
            return probs

    net, (x, noise) = awake(blocks=1, depth=1, tokens={"words": 7}), data()
    cond = Cond(tokens={"words": torch.randn(3, 4, 7)})
    plain = output(net, x, noise, cond)
    with attention_control(Watch()):
        torch.testing.assert_close(output(net, x, noise, cond), plain, atol=1e-5, rtol=0)
    assert seen == {
        "blocks.0.read": ("cross", (), 5, {"grid": (0, 16), "words": (16, 20)}),
        "blocks.0.compute.0": ("self", (), 5, {"latents": (0, 5)}),
        "blocks.0.write": ("cross", (4, 4), 0, {"latents": (0, 5)}),
    }


def test_videos_are_cut_into_boxes():
    """Frames, rows, columns; and a video of one frame under boxes of one frame is a picture."""
    net = awake(size=(4, 8, 8), patch=(2, 4, 4))
    assert net.grid == (2, 2, 2)
    x, noise = data(size=(4, 8, 8))
    out, latents = net(x, noise)
    assert out.shape == x.shape and latents.shape == (3, 5, 24)
    boxes = patchify(x, (2, 4, 4))
    assert torch.equal(boxes[:, 1].view(3, 2, 4, 4, 3).permute(0, 4, 1, 2, 3), x[:, :, :2, :4, 4:])
    assert torch.equal(unpatchify(boxes, (2, 4, 4), (2, 2, 2)), x)
    still, picture = awake(size=(1, 8, 8), patch=(1, 2, 2)), awake()
    still.load_state_dict(picture.state_dict())
    x, noise = data()
    torch.testing.assert_close(output(still, x[:, :, None], noise)[:, :, 0], output(picture, x, noise), atol=1e-6, rtol=0)


def test_positions_are_stretched_over_other_sizes():
    net = awake(other_sizes="stretch")
    assert output(net, *data(size=(16, 4))).shape == (3, 3, 16, 4)
    with torch.no_grad():
        net.positions.copy_(torch.linspace(0, 1, 4).repeat_interleave(4)[None, :, None].expand_as(net.positions))  # the row's number
    twice = net._positions(torch.zeros(1, 3, 16, 8), (8, 4)).view(8, 4, 16)
    torch.testing.assert_close(twice[1:-1, 0, 0], torch.linspace(1 / 12, 11 / 12, 6))  # inner rows lie on the same line


def test_standardised_input_has_no_scale():
    net, (x, noise) = awake(standardise=True), data()
    torch.testing.assert_close(output(net, 3 * x, noise), output(net, x, noise), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": 2}, "at least 3 latents.*got 2"),
        ({"size": 9}, r"size \(9, 9\) and patch \(2, 2\)"),
        ({"size": (8, 8), "patch": (2, 2, 2)}, r"size \(8, 8\) and patch \(2, 2, 2\)"),
        ({"latent_width": 20}, "divisible by 8 and by heads = 3"),
        ({"read_heads": 5}, "read_heads = 5; got 24 and 16"),
        ({"other_sizes": "crop"}, "'refuse' or 'stretch', got 'crop'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        RIN(3, **{**TINY, **options})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((9, 8), r"divisible by 2, got \(9, 8\); the nearest valid size is"),
        ((16, 16), r"grid of \(8, 8\).*laid out for \(4, 4\).*size \(8, 8\)"),
    ],
)
def test_sizes_that_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        awake()(*data(size=size))


def test_a_carry_of_other_samples():
    with pytest.raises(ValueError, match=r"carry must hold the latents \(3, 5, 24\).*got \(2, 5, 24\)"):
        awake()(*data(), carry=torch.zeros(2, 5, 24))


def test_unknown_sizes_by_name():
    with pytest.raises(ValueError, match="published names are"):
        RIN.published("rin_1024")
