"""Bands of noise: published edges, draws that stay inside, one answer to whose a level is, exact partitions."""

import pytest
import torch

from diffx import rng
from diffx.guidance.contrast import PerBand
from diffx.schedules import DDPM, Band, Bands, Karras, LogNormal, node

BASE = LogNormal()


@pytest.mark.parametrize(("place", "edge", "level"), [
    ((3, 0), "max", 0.075742), ((1, 0), "max", 0.301194), ((2, 3), "min", 0.676642), ((3, 7), "min", 1.197719), ((9, 511), "min", 9.609593),
])  # fmt: skip
def test_edges_of_the_tree(place, edge, level):
    assert getattr(node(*place), f"sigma_{edge}") == pytest.approx(level, rel=1e-5)


def test_draws_in_a_thin_band_are_uniform_inside_it():
    sigma = node(9, 511).draw(100_000, generator=rng.generator(0))
    assert sigma.min() >= 9.6095 and sigma.dtype == torch.float32
    u = ((BASE.u(sigma.double()) - 511 / 512) * 512).sort().values
    even = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert (u - even).abs().max() < 1.63 / 100_000**0.5  # the Kolmogorov-Smirnov bound of level 0.01


def test_bands_drawn_by_their_masses_make_up_the_whole_density():
    bands = Bands(BASE, (0.0, 0.125, 511 / 512, 1.0))
    counts = [round(51_200 * mass) for mass in bands.masses]
    sigma = torch.cat([bands[k].draw(n, generator=rng.generator(k)) for k, n in enumerate(counts)])
    u = BASE.u(sigma.double()).sort().values
    assert (u - (torch.arange(len(u)) + 0.5) / len(u)).abs().max() < 1.63 / len(u) ** 0.5


@pytest.mark.parametrize("base", [BASE, Karras(), LogNormal(-0.8, 1.2)])
def test_every_level_drawn_in_a_band_is_that_bands_own(base):
    """In float32, edges included; an edge itself belongs to the noisier side."""
    bands = Bands(base, (0.0, 0.1, 1 / 3, 0.7, 511 / 512, 1.0))
    for k in range(len(bands)):
        u = torch.cat([torch.tensor([0.0, 1.0, 1 - 2**-24]), torch.rand(10_000, generator=rng.generator(k))])
        assert (bands.index(bands[k].sigma(u)) == k).all()
    assert bands.index(torch.tensor(bands.sigmas)).tolist() == [1, 2, 3, 4]
    assert bands.index(torch.tensor([1e-9, 1e9])).tolist() == [0, 4]


def test_evaluations_per_expert_on_a_karras_grid():
    """A five-hundredth of the training levels does a third of the sampling: why that expert pays off."""
    bands = Bands(BASE, (0.0, 1 / 8, 511 / 512, 1.0))
    assert bands.index(Karras().grid(32)[:-1]).bincount().tolist() == [6, 15, 11]


def test_blocks_of_timesteps():
    table = DDPM()
    bands = Bands.of_timesteps(table, 10)
    levels = table.table[[0, 99, 100, 999]]
    assert bands.index(levels.float()).tolist() == [0, 0, 1, 9] and len(bands) == 10


def test_bands_from_levels_and_from_parts():
    bands = Bands.at_levels(BASE, [0.1, 2.0])
    assert bands.sigmas == pytest.approx((0.1, 2.0)) and sum(bands.masses) == pytest.approx(1)
    assert Bands.joined([bands[2], bands[0], bands[1]]) == bands
    assert Bands.uniform(BASE, 4).masses == (0.25,) * 4


def test_containment():
    assert node(1, 1).contains(node(3, 7)) and not node(1, 0).contains(node(3, 7))
    assert not node(1, 1).contains(node(3, 7, LogNormal(0, 1)))


def test_one_guidance_scale_per_band():
    bands = Bands(BASE, (0.0, 0.5, 1.0))
    scale, edge = PerBand(bands, (1.0, 3.0)), bands.sigmas[0]
    assert [scale(0.99 * edge), scale(edge), scale(1.01 * edge)] == [1.0, 3.0, 3.0]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Band(BASE, 0.5, 0.5), "low < high"),
    (lambda: Band(BASE, 0.5, 0.5 + 1e-7), "mass"),
    (lambda: Bands(BASE, (0.0, 0.5)), "rise from 0 to 1"),
    (lambda: Bands(BASE, (0.0, 0.6, 0.5, 1.0)), "rise from 0 to 1"),
    (lambda: Bands.joined([node(1, 0), node(2, 3)]), "gap or overlap"),
    (lambda: Bands.joined([node(1, 0), node(1, 1, LogNormal(0, 1))]), "gap or overlap"),
    (lambda: node(2, 4), r"0 <= i < 2\^l"),
    (lambda: PerBand(Bands.uniform(BASE, 2), (1.0,)), "2 bands, got 1"),
])  # fmt: skip
def test_bad_bands_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
