"""`Blind`: pictures are spoilt as much as meant, keep their place and colour, and their chance is the default generator's."""

import pytest
import torch

from diffx.data import Shapes
from diffx.degradations import Blind
from diffx.resizing import enlarge, shrink


@pytest.fixture(scope="module")
def pictures():
    data = Shapes(batch_size=48, size=32)
    data.setup("fit")
    x = next(iter(data.train_dataloader()))["x"]
    return x.float() / 127.5 - 1


def decibels(a, b):
    return (10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))).mean()


@pytest.mark.parametrize("factor", [2, 4])
def test_spoils_more_than_shrinking_and_keeps_colours(pictures, factor):
    torch.manual_seed(0)
    plain = shrink(pictures, factor)
    spoilt, half = (Blind(strength)(pictures, (factor, factor)) for strength in (1.0, 0.5))
    assert spoilt.shape == plain.shape and spoilt.abs().max() <= 1
    lost, less = (decibels(enlarge(plain, (32, 32)), pictures) - decibels(enlarge(low, (32, 32)), pictures) for low in (spoilt, half))
    assert 2 < less < lost < 10
    assert ((spoilt - plain) / 2).mean((0, 2, 3)).abs().max() < 0.03


def test_nothing_moves():
    """The centre of a disc, over many chains; shrinking by plain nearest neighbours would move it by up to half a pixel."""
    place = torch.arange(64) - 31.5
    disc = ((place[:, None] ** 2 + place**2) < 20**2).float().expand(32, 3, 64, 64) * 2 - 1
    torch.manual_seed(0)
    low = (Blind()(disc, (4, 4)) + 1) / 2
    small = torch.arange(16) - 7.5
    mass = low.sum((1, 2, 3))
    x, y = (low * small).sum((1, 2, 3)) / mass, (low * small[:, None]).sum((1, 2, 3)) / mass
    assert torch.stack([x, y]).abs().max() < 0.25


def test_is_a_function_of_the_default_generator(pictures):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(Blind()(pictures[:4], (2, 2)))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_grey_pictures_and_precision(pictures):
    assert Blind()(pictures[:2, :1].double(), (2, 4)).shape == (2, 1, 16, 8)
    assert Blind()(pictures[:2, :1].double(), (2, 2)).dtype == torch.float64


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Blind(0), r"strength must lie in \(0, 1\], got 0"),
    (lambda: Blind()(torch.zeros(1, 4, 8, 8), (2, 2)), r"1 or 3, H, W\)"),
    (lambda: Blind()(torch.zeros(1, 3, 8, 9), (2, 2)), "factors that divide"),
])  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
