"""U-ViT: what the transformer and the skips each carry, folded pictures, sizes, bad input."""

import pytest
import torch

from diffx.networks import UViT
from diffx.recipes.build import build
from diffx.recipes.compose import compose

TINY = {"size": 16, "width": 8, "mults": (1, 2), "blocks": 1, "middle": 16, "depth": 1, "heads": 2}


def awake(**options):
    torch.manual_seed(0)
    net = UViT(3, **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return net


def test_only_the_transformer_sees_far():
    """Without it a pixel's answer depends on its surroundings; with it, on the farthest corner."""
    x, noise = torch.randn(1, 3, 64, 64, requires_grad=True), torch.zeros(1)
    net = awake(size=64)
    for part in net.modules():  # statistics of the whole map would carry far, too
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = lambda h: h
    far = {}
    for name in ("with", "without"):
        (gradient,) = torch.autograd.grad(net(x, noise)[0, 0, 0, 0], x)
        far[name] = gradient[0, :, 48:, 48:].abs().max().item()
        torch.nn.init.zeros_(net.layers[0].attn.proj.weight)
        torch.nn.init.zeros_(net.layers[0].attn.proj.bias)
    assert far["with"] > 0 and far["without"] == 0


def test_details_travel_along_the_skips():
    """A checkerboard of single pixels does not survive halving; it reaches the output nevertheless."""
    net, noise = awake(), torch.zeros(1)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    plain, fine = net(torch.zeros(1, 3, 16, 16), noise), net(board.expand(1, 3, 16, 16), noise)
    assert (fine - plain).abs().max() > 1e-2
    seen = []
    net.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for level in net.down:  # the identity instead of convolutions: only the halving is left
            for block in level.blocks:
                block.forward = lambda x, context: x
        net.stem.forward = lambda x: x.repeat(1, 3, 1, 1)[:, :8]
        net(torch.zeros(1, 3, 16, 16), noise)
        net(board.expand(1, 3, 16, 16), noise)
    torch.testing.assert_close(seen[0], seen[1])


def test_folded_pictures_have_the_grid_of_smaller_ones():
    net = awake(patch=2)
    assert net.grid == (2, 2) and net.divisor == 8 and net.stem.in_channels == 12
    assert net(torch.randn(2, 3, 16, 16), torch.zeros(2)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 18}, r"patch \* 2\^levels = 4, got \(18, 18\)"),
        ({"heads": 3}, "middle = 16 must be divisible by heads = 3"),
        ({"other_sizes": "count"}, "'refuse' or 'stretch', got 'count'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        UViT(3, **{**TINY, **options})


@pytest.mark.parametrize(
    ("size", "message"), [((18, 16), "divisible by 4"), ((32, 32), r"grid of \(8, 8\).*laid out for \(4, 4\).*\(16, 16\)")]
)
def test_sizes_that_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        awake()(torch.zeros(1, 3, *size), torch.zeros(1))


def test_the_experiment_on_imagenet_has_the_count_it_says():
    module = compose("imagenet/uvit_256", ["data.root=pictures"]).tree["module"]
    with torch.device("meta"):
        made = build(module["denoiser"])
    assert sum(p.numel() for p in made.parameters()) == 365_684_620 and made.net.grid == (16, 16)
