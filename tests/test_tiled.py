"""`Tiled`: blending loses nothing, a short-sighted network cannot tell tiles from the whole, conditions are cut alike."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from diffx import Cond, Denoiser, sample
from diffx.guidance import Tiled, bind
from diffx.guidance.tiled import blend, tiles
from diffx.networks import EfficientUNet, UNet
from diffx.samplers import Heun


class ShortSighted(nn.Module):
    """Three convolutions: sees three pixels to each side."""

    divisor = 1

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2 if k == 0 else 4, 1 if k == 2 else 4, 3, padding=1) for k in range(3))

    def forward(self, x, noise, cond=None):
        x = torch.cat([x, cond.maps["low_res"]], 1)
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def given(h, w, n=2):
    generator = torch.Generator().manual_seed(h * w)
    x, low = (torch.randn(n, 1, h, w, generator=generator) for _ in range(2))
    return x, torch.tensor([0.5, 2.0])[:n], Cond(maps={"low_res": low})


@pytest.mark.parametrize(("side", "tile", "overlap"), [(64, 16, 4), (40, 16, 6), (17, 16, 0), (50, 12, 11), (8, 16, 4)])
def test_weights_sum_to_one_where_tiles_are_regular_and_cover_all(side, tile, overlap):
    spans = tiles(side, tile, overlap)
    total = torch.zeros(side, dtype=torch.float64)
    for start, stop in spans:
        assert 0 <= start < stop <= side and stop - start == min(tile, side)
        total[start:stop] += blend(start, stop, side, overlap)
    assert (total > 0).all()
    shared = [stop - start for (_, stop), (start, _) in pairwise(spans)]
    if set(shared) <= {overlap} and 2 * overlap <= tile:
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(40, 56), (33, 20), (16, 16)])
def test_a_short_sighted_network_cannot_tell_tiles_from_the_whole(size):
    denoiser = Denoiser(ShortSighted())
    x, sigma, cond = given(*size)
    with torch.no_grad():
        whole, tiled = bind(denoiser, cond)(x, sigma), Tiled(24, overlap=12)(denoiser, cond)(x, sigma)
        torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)
        seams = Tiled(24, overlap=4)(denoiser, cond)(x, sigma)
    assert max(size) <= 24 or not torch.allclose(seams, whole, atol=1e-4)


def test_one_tile_is_the_whole_and_a_sampler_walks_over_tiles():
    net = EfficientUNet(1, width=8, mults=(1,), blocks=1, attention_levels=(), classes=3)
    with torch.no_grad():
        net.head.weight.normal_(std=0.1)
    denoiser, cond = Denoiser(net), Cond(label=torch.tensor([0, 2]))
    noise = torch.randn(2, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        walk = Heun(3)
        whole = walk(bind(denoiser, cond), noise)
        assert torch.equal(walk(Tiled(32, 8)(denoiser, cond), noise), whole)
        drawn = walk(Tiled((16, 12), 8, guide=2.0)(denoiser, cond), noise)
    assert drawn.shape == noise.shape and drawn.isfinite().all() and not torch.equal(drawn, whole)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Tiled(16, 16), "less than a tile"),
    (lambda: Tiled((16, 8), -1), "at least 0"),
    (lambda: Tiled(16, 2)(Denoiser(UNet(1, width=16, mults=(1, 1, 1), blocks=1)), Cond()), "4 divides.*it does not divide 2"),
])  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_overlap_without_tiles_is_refused_on_the_command_line(tmp_path, capsys):
    assert sample.main([f"checkpoint={tmp_path}", "overlap=4"]) == 2
    assert "overlap=4 belongs to tiles; give tile=PIXELS with it" in capsys.readouterr().err
