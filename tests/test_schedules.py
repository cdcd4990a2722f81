"""Schedules: published numbers of every process, exact inverses, stratified draws, grids."""

from __future__ import annotations

import math

import pytest
import torch

from diffx import rng
from diffx.recipes import recipe_of
from diffx.schedules import (
    DDPM,
    VP,
    Band,
    Cosine,
    DDPMCosine,
    Flow,
    GammaCosine,
    Interpolated,
    Karras,
    Levels,
    LogNormal,
    LogUniform,
    Shifted,
    Sigmoid,
    Table,
    Tangent,
)

SCHEDULES = {
    "karras": Karras(),
    "lognormal": LogNormal(),
    "loguniform": LogUniform(),
    "cosine": Cosine(),
    "tangent": Tangent(),
    "vp": VP(),
    "flow": Flow(),
    "sigmoid": Sigmoid(tau=0.9),
    "gamma_cosine": GammaCosine(),
    "gamma_cosine_part": GammaCosine(0.2, 1, 1),
    "gamma_cosine_tau": GammaCosine(tau=2.0),
    "ddpm": DDPM(),
    "ddpm_latent": DDPM.latent(),
    "ddpm_cosine": DDPMCosine(),
    "levels": Levels((80.0, 5.0, 0.1)),
    "shifted": Shifted.resolution(Cosine(), 256),
    "band": Band(LogNormal(), 0.125, 0.875),
    "interpolated": Interpolated.resolution(Cosine(), 256),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def at(schedule, *u):
    return schedule.sigma(torch.tensor(u, dtype=torch.float64))


def gamma(schedule, *u):
    return 1 / (1 + at(schedule, *u) ** 2)


def log_snr(schedule, *u):
    return -2 * at(schedule, *u).log()


def near(values, expected, **tolerance):
    torch.testing.assert_close(values, torch.tensor(expected, dtype=values.dtype), **({"rtol": 2e-6, "atol": 1e-6} | tolerance))


@every_schedule
def test_the_inverse_is_exact(schedule):
    ends = torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64)
    assert torch.isfinite(ends).all()
    assert 0 < ends[0] < ends[1]
    sigma = torch.linspace(*ends.log(), 501, dtype=torch.float64).exp()
    position = schedule.u(sigma)
    assert position.min() >= 0 and position.max() <= 1
    torch.testing.assert_close(schedule.sigma(position), sigma.clamp(*ends.tolist()), rtol=1e-6, atol=0)
    middle = (position > 0.01) & (position < 0.99)  # near 1 the rounding of u itself shows
    torch.testing.assert_close(schedule.sigma(position)[middle], sigma[middle], rtol=1e-9, atol=0)


@every_schedule
def test_it_rises_and_is_clamped(schedule):
    inside = schedule.u(torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64))
    assert (at(schedule, *torch.linspace(*inside, 1000, dtype=torch.float64).tolist()).diff() > 0).all()
    near(at(schedule, -1.0, 2.0), [schedule.sigma_min, schedule.sigma_max])
    assert schedule.sigma(torch.rand(2, 3)).dtype == torch.float32
    assert schedule.sigma(torch.rand(2, 3)).shape == (2, 3)
    assert schedule.u(torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float64


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 1000])
def test_grids_fall_from_the_top_to_zero(schedule, steps):
    steps = min(steps, len(schedule.table)) if isinstance(schedule, Table) else steps
    grid = schedule.grid(steps)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == torch.float32
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    assert grid[0] == pytest.approx(schedule.sigma_max)


@every_schedule
def test_nested_says_what_grids_do(schedule):
    if isinstance(schedule, Levels):
        schedule = Levels(tuple(1.1**-i for i in range(64)))
    coarse, fine = (schedule.grid(n, dtype=torch.float64) for n in (32, 64))
    assert schedule.nested == torch.allclose(fine[::2], coarse, rtol=1e-9, atol=0)


@every_schedule
def test_draws_are_uniform_in_u_and_stay_in_their_band(schedule):
    sigma = schedule.draw(1000, band=(0.25, 0.5), generator=rng.generator(1))
    low, high = at(schedule, 0.25, 0.5).tolist()
    assert sigma.dtype == torch.float32
    assert sigma.min() >= low * (1 - 1e-6)
    assert sigma.max() <= high * (1 + 1e-6)
    if low > 1.001 * schedule.sigma_min:
        strata = ((schedule.u(sigma.double()) - 0.25) * 4000).floor().clamp(0, 999).long().bincount(minlength=1000)
        assert (strata == 1).float().mean() > 0.99  # float32 levels may slip over an edge


@every_schedule
def test_schedules_are_values_with_a_recipe(schedule):
    assert recipe_of(schedule)["_target_"] == f"diffx.schedules.{type(schedule).__name__}"
    with pytest.raises(AttributeError):
        schedule.factor = 3


def test_64_draws_hit_64_equal_bins_once_over_two_ranks_and_two_micro_batches():
    schedule = LogNormal()
    draws = [schedule.draw(16, slice=(i, 4), generator=rng.generator("step", 7)) for i in range(4)]
    bins = (schedule.u(torch.cat(draws).double()) * 64).floor().long()
    assert bins.sort().values.tolist() == list(range(64))
    assert all(part.sort().values.tolist() != part.tolist() for part in bins.view(4, 16))


def test_stratification_steadies_the_batch_mean():
    schedule, generator = LogNormal(0, 1), rng.generator(0)
    means = torch.stack([schedule.draw(64, generator=generator).log().mean() for _ in range(2000)])
    assert means.std().item() == pytest.approx(0.0080, rel=0.1)  # 0.125 for independent draws


def test_karras_grid():
    near(Karras().grid(5), [80, 17.52783, 2.51522, 0.16975, 0.002, 0], atol=1e-5)
    published = [80, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.58535, 0.29644,
                 0.13952, 0.05995, 0.02293, 0.00753, 0.002, 0]  # fmt: skip
    near(Karras().grid(18), published, rtol=1e-6, atol=5.1e-6)


def test_vp():
    near(at(VP(), 1.0, 1e-3, 1e-5, 0.5), [152.1670, 0.0104860, 0.00100050, 3.412918], atol=1e-7)
    assert VP(cutoff=1e-3).sigma_min == pytest.approx(0.0104860, rel=1e-5)


def test_discrete_tables():
    linear, latent, cosine = DDPM().table, DDPM.latent().table, DDPMCosine().table
    near(linear[[0, -1]], [0.01000050, 157.40728])
    near(latent[[0, -1]], [0.0291672, 14.614641])
    near(cosine[[0, -1]], [0.00642541, 20291.17])
    near(1 / (1 + linear[-1:] ** 2), [4.03583e-5], atol=1e-10)
    near(-2 * linear[-1:].log(), [-10.11767], atol=1e-5)
    near(1 / (1 + cosine[[0, 499]] ** 2), [0.9999587158, 0.4938435904], rtol=1e-9, atol=0)
    near(cosine[-2:-1], [641.6623])


def test_a_table_is_its_own_grid_and_counts_timesteps():
    schedule = DDPM()
    torch.testing.assert_close(schedule.grid(1000, dtype=torch.float64)[:-1], schedule.table.flip(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.grid(40, dtype=torch.float64)[:-1], schedule.table.flip(0)[::25], rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.index(schedule.table), torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-9)
    between = (schedule.table[3] * schedule.table[4]).sqrt()
    assert schedule.index(between).item() == pytest.approx(3.5)


def test_levels_are_walked_as_given():
    sigmas = (80.0, 3.3, 0.7, 0.01)
    assert Levels(sigmas).grid(4, dtype=torch.float64).tolist() == pytest.approx([*sigmas, 0], rel=1e-14)
    assert Levels((5.0,)).grid(1).tolist() == [5, 0]


def test_cosine():
    near(log_snr(Cosine(), 0.0, 0.25, 0.5, 0.75, 1.0), [20, 1.762619, 0, -1.762619, -20])
    near(log_snr(Cosine(-15, 15), 0.25), [1.761183])


def test_gamma_schedules():
    near(gamma(Sigmoid(tau=0.9), 0.0, 0.25, 0.5, 0.75, 1.0), [1, 0.866370, 0.5, 0.133630, 1e-9])
    near(gamma(Sigmoid(tau=0.9), 0.1, 0.9), [0.967218, 0.032782])
    near(gamma(Sigmoid(), 0.25, 0.5, 0.75), [0.850854, 0.5, 0.149146])
    near(gamma(GammaCosine(), 0.25, 0.5, 0.75), [0.853553, 0.5, 0.146447])
    near(gamma(GammaCosine(0.2, 1, 1), 0.25, 0.5, 0.75), [0.723607, 0.381966, 0.105573])


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_gamma_schedules_follow_their_definition(tau):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    s, e = -3.0, 2.0
    curve, ends = torch.sigmoid((t * (e - s) + s) / tau), torch.sigmoid(torch.tensor([s, e], dtype=torch.float64) / tau)
    near(gamma(Sigmoid(s, e, tau), *t.tolist()), ((ends[1] - curve) / (ends[1] - ends[0])).tolist(), rtol=1e-9, atol=1e-9)
    s, e = 0.1, 0.8
    c = lambda t: torch.cos((torch.as_tensor(t, dtype=torch.float64) * (e - s) + s) * math.pi / 2) ** (2 * tau)  # noqa: E731
    near(gamma(GammaCosine(s, e, tau), *t.tolist()), ((c(t) - c(1)) / (c(0) - c(1))).tolist(), rtol=1e-9, atol=1e-9)


def test_three_published_shifts_are_one():
    base = Cosine()
    near(log_snr(Shifted.resolution(base, 256), 0.3) - log_snr(base, 0.3), [-2.772589])
    near(log_snr(Shifted.input_scale(Sigmoid(), 0.5), 0.5), [-1.386294])
    shifted = Shifted.time(Flow(), 3)
    near(at(shifted, 0.5), [3.0])
    near(log_snr(shifted, 0.5) - log_snr(Flow(), 0.5), [-2.197225])
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    near(shifted.sigma(t), (3 * t / (1 + 2 * t) / (1 - 3 * t / (1 + 2 * t))).tolist(), rtol=1e-12)
    assert not Shifted(Karras(), 2).nested
    near(Shifted(Karras(), 2).grid(5), (2 * Karras().grid(5)).tolist())


def test_the_blend_of_two_shifts_keeps_the_clean_end():
    """Log-SNR at 256 pixels between references 256 (clean) and 32 (noisy); at u = 1/4 a blend the other way round would give -1.3580."""
    base = Cosine(-15.0, 15.0)
    blend = Interpolated.resolution(base, 256)
    near(log_snr(base, 0.0, 0.25, 0.5, 0.75, 1.0), [15, 1.76118, 0, -1.76118, -15], rtol=1e-5, atol=1e-9)
    near(log_snr(blend, 0.25, 0.5), [0.72146, -2.07944], rtol=1e-4)
    near(log_snr(blend, 0.0), [15.0])
    near(log_snr(Shifted.resolution(base, 128), 0.5), [-1.386294])
    near(log_snr(Interpolated(base, 4.0, 4.0), 0.3), log_snr(Shifted(base, 4.0), 0.3).tolist())


def test_averaged_blocks_of_a_shifted_picture_are_a_small_picture_under_the_plain_schedule():
    """What the resolution shift is made for: blocks of (64 / 16)^2 pixels, log-SNR 0.7 of the small picture."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(200, 1, 16, 16, generator=generator)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    base = Cosine()
    u = base.u(torch.tensor(math.exp(-0.35)))
    sigma = Shifted.resolution(base, 64, reference=16).sigma(u)
    noise = sigma * torch.randn(large.shape, generator=generator)
    averaged = torch.nn.functional.avg_pool2d(large + noise, 4)
    ratio = small.var() / (averaged - small).var()
    assert ratio.log().item() == pytest.approx(0.7, abs=0.02)


def test_lognormal_quantiles_and_bands():
    near(at(LogNormal(), *torch.special.ndtr(torch.tensor([-1.96, 0, 1.96]).double()).tolist()), [0.0286672, 0.3011942, 3.164516])
    near(at(LogNormal(), 1 / 8, 1 / 2, 3 / 4, 7 / 8, 511 / 512), [0.075742, 0.301194, 0.676642, 1.197719, 9.609593], rtol=1e-5)


def test_lognormal_is_logit_normal_in_flow_time():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    sigma = LogNormal(0.3, 0.9).sigma(u)
    torch.testing.assert_close((sigma / (1 + sigma)), torch.sigmoid(0.3 + 0.9 * torch.special.ndtri(u)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Karras(sigma_min=0),
        lambda: Karras(sigma_min=2, sigma_max=1),
        lambda: LogNormal(std=0),
        lambda: Cosine(5, 5),
        lambda: VP(cutoff=0),
        lambda: Flow(sigma_max=math.inf),
        lambda: Sigmoid(tau=0),
        lambda: GammaCosine(start=1, end=0),
        lambda: DDPM(beta_end=1e-5),
        lambda: DDPMCosine(length=1),
        lambda: Levels((1.0, 2.0)),
        lambda: Levels(()),
        lambda: Levels((1.0, 0.0)),
        lambda: Shifted(Karras(), 0),
        lambda: Interpolated(Karras(), 2.0, 1.0),
        lambda: Karras().grid(0),
        lambda: Levels((2.0, 1.0)).grid(5),
        lambda: Flow().grid(20_000),
        lambda: Karras().draw(4, band=(0.5, 0.5)),
        lambda: Karras().draw(4, band=(0.5, 1.5)),
        lambda: Karras().draw(4, slice=(2, 2)),
    ],
)
def test_bad_numbers_are_refused(make):
    with pytest.raises(ValueError, match=r"got|must|needs"):
        make()
