"""Degradations: they begin with the data, blur composes and keeps means, holes only grow; the ways back, and where generation starts."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from diffx import rng
from diffx.degradations import (
    Blur,
    Custom,
    Degradation,
    Desaturate,
    Fade,
    GaussianMask,
    GaussianStart,
    HotNoise,
    Improved,
    Naive,
    OneShot,
    Pixelate,
    check_degradation,
)  # fmt: skip
from diffx.recipes import recipe_of


def darker(x, level):
    return x - 0.1 * level.view(-1, 1, 1, 1)


EVERY = {
    "blur": Blur(6),
    "blur_reflect": Blur(6, 0.3, "exponential", border="reflect"),
    "blur_linear": Blur(6, 0.1, "linear"),
    "pixelate": Pixelate(3),
    "mask": GaussianMask(6),
    "mask_anywhere": GaussianMask(6, centred=False),
    "fade": Fade(6, -1.0),
    "desaturate": Desaturate(6),
    "hot": HotNoise(6),
    "custom": Custom(6, darker),
}
every = pytest.mark.parametrize("degradation", EVERY.values(), ids=EVERY.keys())


def data(n=3, size=(3, 8, 16)):
    return torch.rand(n, *size, generator=torch.Generator().manual_seed(n)) * 2 - 1


def at(level, n=3):
    return torch.full((n,), level)


@every
def test_level_0_is_the_data_and_levels_are_those_of_each_sample(degradation):
    x = data()
    parameters = degradation.parameters(x)
    check_degradation(degradation, x.shape[1:])
    assert torch.equal(degradation(x, at(0), parameters), x)
    levels = torch.tensor([0, 1, degradation.steps])
    mixed = degradation(x, levels, parameters)
    for row, level in enumerate(levels):
        torch.testing.assert_close(mixed[row], degradation(x, at(int(level)), parameters)[row], atol=1e-6, rtol=0)
    assert (degradation(x, at(degradation.steps), parameters) - x).abs().mean() > 0.05


@every
@pytest.mark.parametrize("level", [-1, 7])
def test_levels_out_of_range_are_refused(degradation, level):
    with pytest.raises(ValueError, match=rf"levels must lie in \[0, {degradation.steps}\], got {level}"):
        degradation(data(), torch.tensor([0, 1, level]))


def test_blurs_compose_and_keep_means():
    x = data().double()
    for border in ("circular", "reflect"):
        blur = Blur(9, 0.5, border=border)
        torch.testing.assert_close(blur(blur(x, at(4)), at(5)), blur(x, at(9)), atol=1e-12, rtol=0)
        torch.testing.assert_close(blur(x, at(9)).mean((2, 3)), x.mean((2, 3)), atol=1e-12, rtol=0)


def test_a_blur_is_a_convolution_with_a_gaussian():
    """Of a single bright pixel: the Gaussian itself, where it is wide enough to be sampled."""
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1
    blurred = Blur(4, 1.0)(x, at(4, 1))[0, 0]
    r = torch.arange(33, dtype=torch.float64) - 16
    bell = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * 4)) / (2 * torch.pi * 4)
    torch.testing.assert_close(blurred, bell, atol=1e-6, rtol=0)


def test_laws_of_blur():
    constant, linear, exponential = (Blur(3, 0.5, law, 0.1).variances() for law in ("constant", "linear", "exponential"))
    torch.testing.assert_close(constant, 0.25 * torch.tensor([0.0, 1, 2, 3]).double())
    torch.testing.assert_close(linear, 0.25 * torch.tensor([0.0, 1, 5, 14]).double())
    torch.testing.assert_close(exponential[1:], 0.25 * torch.tensor([0.0, 0.2, 0.4]).double().exp().cumsum(0))


def test_mirrored_borders_do_not_leak_to_the_other_side():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 0] = 1
    assert Blur(4, 0.5)(x, at(4, 1))[..., -1].max() > 0.05 and Blur(4, 0.5, border="reflect")(x, at(4, 1))[..., -1].max() < 1e-4


def test_pixels_are_means_of_squares():
    x = data()
    coarse = Pixelate(3)(x, at(2))
    torch.testing.assert_close(coarse[..., ::4, ::4], avg_pool2d(x, 4))
    assert torch.equal(coarse[..., 1::4, 3::4], coarse[..., ::4, ::4])
    with pytest.raises(ValueError, match="divisible by 8, got \\(8, 12\\)"):
        Pixelate(3)(data(size=(1, 8, 12)), at(1))


def test_holes_grow_around_one_place():
    mask, x = GaussianMask(6, centred=False), torch.ones(20, 1, 9, 9)
    parameters = mask.parameters(x, rng.sample_generators(0, 20))
    shares = torch.stack([mask(x, at(level, 20), parameters) for level in range(7)])
    assert (shares.diff(dim=0) <= 0).all() and (shares >= 0).all()
    middle = shares[1].flatten(1).argmin(1)
    assert torch.equal(middle, (parameters["middle"] @ torch.tensor([9.0, 1.0])).long()) and len(middle.unique()) > 10
    assert all(torch.equal(shares[level].flatten(1).gather(1, middle[:, None]), torch.zeros(20, 1)) for level in range(1, 7))


def test_colours_turn_gray():
    x = data()
    gray = Desaturate(4)(x, at(4))
    torch.testing.assert_close(gray[:, 0], gray[:, 1])
    torch.testing.assert_close(Desaturate(4)(x, at(2)), (x + gray) / 2)
    with pytest.raises(ValueError, match="only colour pictures"):
        Desaturate(4)(x[:, :1], at(1))


class Shifted(Degradation):
    """x + level e with one e for all data."""

    def apply(self, x, level, parameters):
        return x + 0.3 * level.view(-1, 1, 1, 1)


def test_errors_of_a_restorer_vanish_where_steps_do_not_depend_on_it():
    x, degradation = data(), Shifted(20)
    garbage = torch.randn(20, *x.shape)

    def restore(state, level):
        return garbage[int(level[0]) - 1]

    worst = degradation(x, at(20))
    *_, improved = Improved().states(worst, 20, restore, degradation)
    *_, naive = Naive().states(worst, 20, restore, degradation)
    torch.testing.assert_close(improved, x, atol=1e-5, rtol=0)
    assert (naive - x).abs().mean() > 0.5


@every
@pytest.mark.parametrize("walk", [Improved(), Naive(), OneShot()], ids=["improved", "naive", "one_shot"])
def test_with_an_oracle_every_way_ends_at_the_data(degradation, walk):
    x = data()
    parameters = degradation.parameters(x)
    steps = degradation.steps
    states = list(walk.states(degradation(x, at(steps), parameters), steps, lambda z, s: x, lambda z, s: degradation(z, s, parameters)))
    torch.testing.assert_close(states[-1], x, atol=1e-4, rtol=0)
    assert len(states) == (1 if isinstance(walk, OneShot) else steps)


def test_hot_noise_and_the_improved_way_are_ddim():
    """A step of Algorithm 2 is DDIM's with the noise that the estimate leaves, where the degradation uses that noise."""
    hot, x, steps = HotNoise(8), data(), 8
    state, clean = hot(x, at(5), {"noise": torch.randn_like(x)}), data(3) * 0.5
    a, b = (torch.tensor(level / steps * torch.pi / 2) for level in (5, 4))
    noise = (state - a.cos() * clean) / a.sin()
    (moved, *_) = Improved().states(state, 5, lambda z, s: clean, lambda z, s: hot(z, s, {"noise": noise}))
    torch.testing.assert_close(moved, b.cos() * clean + b.sin() * noise, atol=1e-5, rtol=0)


def test_the_start_has_mean_and_covariance_of_its_class():
    torch.manual_seed(0)
    mix = torch.randn(2, 8, 8)
    label = torch.arange(40_000) % 2
    x = torch.einsum("nij,nj->ni", mix[label], torch.randn(40_000, 8)) + label[:, None]
    start = GaussianStart((2, 2, 2), classes=2)
    for rows in range(0, 40_000, 10_000):
        start.update(x[rows : rows + 10_000].view(-1, 2, 2, 2), label[rows : rows + 10_000])
    drawn = start.draw(40_000, label).flatten(1)
    for k in range(2):
        torch.testing.assert_close(drawn[label == k].mean(0), x[label == k].mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(drawn[label == k].T.cov(), x[label == k].T.cov(), atol=0.6, rtol=0.05)
    pooled = start.draw(40_000, None).flatten(1)
    torch.testing.assert_close(pooled.T.cov(), x.T.cov(), atol=0.6, rtol=0.05)


def test_large_pictures_start_on_a_grid():
    start = GaussianStart((3, 64, 32), grid=8)
    start.update(torch.full((2, 3, 64, 32), 0.25), None)
    torch.testing.assert_close(start.draw(1, None), torch.full((1, 3, 64, 32), 0.25))
    assert start.grid == (8, 4)
    with pytest.raises(ValueError, match="covariance of 3072 numbers is too large"):
        GaussianStart((3, 64, 64), grid=32)


def test_a_class_that_was_never_seen_cannot_be_drawn():
    start = GaussianStart((1, 2, 2), classes=2)
    start.update(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long))
    start.draw(2, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="train first"):
        start.draw(2, torch.tensor([0, 1]))


def test_a_function_is_named_in_the_recipe():
    assert recipe_of(Custom(6, darker)) == {
        "_target_": "diffx.degradations.Custom", "steps": 6, "function": {"_target_": f"{__name__}.darker", "_partial_": True},
    }  # fmt: skip
    with pytest.raises(TypeError, match=r"callable as D\(x, level\), got None"):
        Custom(6)


class Brighter(Degradation):
    def apply(self, x, level, parameters):
        return x + 0.1 * (level.view(-1, 1, 1, 1) + 1)


class Cut(Degradation):
    def apply(self, x, level, parameters):
        return x[..., :4] if level.max() else x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_degradation(Brighter(4), (1, 8, 8)), "level 0 must leave the data untouched, but Brighter.* by up to 0.1"),
        (lambda: check_degradation(Cut(4), (1, 8, 8)), r"keeps the shape of the data, \(1, 8, 8\)"),
        (
            lambda: check_degradation(Custom(4, lambda x, level: x + 1), (1, 8, 8)),
            "level 0 must leave the data untouched, but .* by up to 1",
        ),
        (lambda: Blur(0), "at least 1 step, got steps=0"),
        (lambda: Blur(std=0.0), "std must be positive"),
        (lambda: Blur(law="cubic"), "'constant', 'linear' or 'exponential'.*'cubic'"),
        (lambda: GaussianMask(growth=-1.0), "growth at least 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_start_that_would_fill_the_memory():
    with pytest.raises(ValueError, match=r"covariances of 1000 classes, 768 numbers each, take 4\.7 GB"):
        GaussianStart((3, 16, 16), classes=1000, grid=18)
