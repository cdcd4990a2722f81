"""Edits that are walks: on Gaussians, whose ODE is known in closed form, and with oracles of every preconditioning."""

import logging
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gaussians import Counted, Gaussian, column

from diffx import Denoiser, EDMPrecond, EpsPrecond, FlowPrecond, VPrecond, X0Precond, rng
from diffx.denoiser import LogSigma
from diffx.editing import diffedit, difference_mask, img2img, inpaint, invert, magic_mix, repaint, repaint_plan
from diffx.samplers import Ancestral, DPMpp2M, Euler, Heun
from diffx.schedules import Karras
from diffx.tensors import expand

DATA = Gaussian(0.0, 0.5)
OTHER = Gaussian(1.0, 0.5)


def noise_of(x, seed=0):
    return rng.randn(x.shape, rng.generator(seed), dtype=x.dtype)


def pictures(n=3, seed=1):
    return 0.5 * torch.randn(n, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def psnr(x, y):
    return (10 * (4 / (x - y).square().flatten(1).mean(1)).log10()).mean().item()


# img2img --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "first"), [(0.1, 18), (0.5, 10), (0.58, 9), (1.0, 0)])
def test_img2img_starts_at_the_level_of_its_first_step(strength, first):
    """Against the ODE's closed form: no level is skipped and none is walked twice."""
    sampler, x = Euler(20), pictures()
    seen = []

    def denoise(state, sigma):
        seen.append((float(sigma[0]), state))
        return DATA(state, sigma)

    out = img2img(denoise, x, strength, sampler=sampler, generator=rng.generator(0))
    levels = sampler.sigmas()
    assert [level for level, _ in seen] == pytest.approx(levels[first:-1])
    torch.testing.assert_close(seen[0][1], x + levels[first] * noise_of(x))
    share = 1.0
    for a, b in zip(levels[first:-1], levels[first + 1 :], strict=True):
        share *= b / a + (1 - b / a) * 0.25 / (0.25 + a * a)
    torch.testing.assert_close(out, share * (x + levels[first] * noise_of(x)))


def test_img2img_at_strength_0_is_the_data_and_beyond_1_an_error():
    x = pictures()
    assert img2img(DATA, x, 0.0) is x
    with pytest.raises(ValueError, match=r"strength must lie in \(0, 1\], got 1.5"):
        img2img(DATA, x, 1.5)


def test_a_strength_below_one_step_walks_one_and_says_so(caplog):
    counted = Counted(DATA)
    with caplog.at_level(logging.WARNING):
        img2img(counted, pictures(), 0.04, sampler=Euler(20))
    assert counted.calls == 1 and "less than one of 20 steps" in caplog.text


def test_the_stronger_the_further():
    x = pictures(12)
    found = [psnr(img2img(DATA, x, s, sampler=Euler(40), generator=rng.generator(0)), x) for s in (0.1, 0.3, 0.5, 0.7, 1.0)]
    assert found == sorted(found, reverse=True) and found[0] - found[-1] > 10


# MagicMix -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [Euler(20), Heun(20)], ids=["euler", "heun"])
def test_magic_mix_lies_between_two_strengths(sampler):
    x = pictures()

    def mixed(mix):
        return magic_mix(OTHER, x, mix=mix, sampler=sampler, generator=rng.generator(0))

    torch.testing.assert_close(mixed(1.0), img2img(OTHER, x, 0.6, sampler=sampler, generator=rng.generator(0)))
    torch.testing.assert_close(mixed(0.0), img2img(OTHER, x, 0.3, sampler=sampler, generator=rng.generator(0)))
    near = [psnr(mixed(mix), x) for mix in (0.0, 0.5, 1.0)]
    assert near[0] > near[1] > near[2]


@pytest.mark.parametrize("options", [{"mix": 1.2}, {"weakest": 0.7}, {"weakest": 0.0}, {"strongest": 1.1}])
def test_magic_mixes_that_cannot_be(options):
    with pytest.raises(ValueError, match="magic_mix needs mix"):
        magic_mix(DATA, pictures(), **options)


# Inversion ------------------------------------------------------------------------------------------------------------------------------


def round_trip(steps, **options):
    x = pictures(4)
    path = invert(DATA, x, sampler=Euler(steps, Karras()), **options)
    back = Euler(steps, Karras())(DATA, path.noise)
    return psnr(back, x), (back - x).abs().mean().item()


def test_inversion_comes_back_at_order_one():
    found = [round_trip(steps) for steps in (50, 100, 200, 400)]
    assert found[2][0] >= 42
    assert all(0.42 <= later / earlier <= 0.58 for (_, earlier), (_, later) in pairwise(found))


def test_fixed_points_make_inversion_exact():
    assert round_trip(20, fixed_point=10)[1] * 1000 < round_trip(20)[1]


@pytest.mark.parametrize("sampler", [Euler(12), Heun(12)], ids=["euler", "heun"])
def test_a_fixed_point_is_undone_by_the_samplers_own_steps(sampler):
    path = invert(DATA, pictures(), sampler=sampler, fixed_point=40)
    assert list(path.levels) == sampler.sigmas() and len(path.states) == 13
    for i in range(12):
        moved = sampler.step(DATA, path.states[i], path.levels[i], path.levels[i + 1])
        torch.testing.assert_close(moved, path.states[i + 1], atol=1e-9, rtol=0)


def test_heun_inverts_better_than_euler_at_the_same_cost():
    x = pictures(4)

    def error(sampler):
        return (sampler(DATA, invert(DATA, x, sampler=sampler).noise) - x).abs().mean().item()

    assert error(Heun(50)) < 0.2 * error(Euler(100))


def test_an_inverted_gaussian_is_noise_of_its_level():
    """The ODE carries N(0, 0.25) to N(0, 0.25 + s^2) exactly; with fine steps so does inversion."""
    x = column(-1.0, -0.3, 0.2, 0.7)
    path = invert(DATA, x, sampler=Heun(200), strength=0.75)
    expected = x * (1 + path.levels[0] ** 2 / 0.25) ** 0.5
    assert len(path.levels) == 151
    torch.testing.assert_close(path.states[0], expected, rtol=2e-3, atol=0)
    assert torch.equal(path.states[-1], x)


def test_inversion_counts_its_evaluations():
    for options, calls in (({}, 10), ({"fixed_point": 3}, 9 * 4 + 3), ({"strength": 0.5}, 5)):
        counted = Counted(DATA)
        invert(counted, pictures(), sampler=Euler(10), **options)
        assert counted.calls == calls


@pytest.mark.parametrize("sampler", [Ancestral(10), DPMpp2M(10), Heun(10, churn=2.0)], ids=["noise", "memory", "churn"])
def test_inversion_wants_a_way_that_can_be_walked_back(sampler):
    with pytest.raises(ValueError, match="deterministic sampler without memory"):
        invert(DATA, pictures(), sampler=sampler)


def test_rounds_cannot_be_negative():
    with pytest.raises(ValueError, match="at least 0 rounds"):
        invert(DATA, pictures(), fixed_point=-1)


# Every preconditioning ------------------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """A network that says exactly what its preconditioning has it predict about Gaussian data."""

    def __init__(self, precond):
        super().__init__()
        self.precond = precond

    def forward(self, x, noise, cond):
        sigma = (4 * noise).exp()
        scales = self.precond(sigma)
        state = x / expand(scales.inp, x)
        return (DATA(state, sigma) - expand(scales.skip, x) * state) / expand(scales.out, x)


@pytest.mark.parametrize("precond", [EDMPrecond(), EpsPrecond(), VPrecond(), X0Precond(), FlowPrecond()], ids=lambda p: type(p).__name__)
def test_every_edit_is_the_same_for_every_kind_of_network(precond):
    denoise = Denoiser(Oracle(replace(precond, noise=LogSigma())), replace(precond, noise=LogSigma()))
    x, mask, sampler = pictures(), torch.zeros(1, 1, 4, 6), Euler(15)
    mask[..., 3:] = 1

    def edits(model):
        return [
            img2img(model, x, 0.6, sampler=sampler, generator=rng.generator(0)),
            magic_mix(model, x, sampler=sampler, generator=rng.generator(0)),
            invert(model, x, sampler=sampler, fixed_point=2).states[0],
            inpaint(model, x, mask, sampler=sampler, generator=rng.generator(0)),
            repaint(model, x, mask, jump=5, resamples=2, sampler=Ancestral(15), generator=rng.generator(0)),
            diffedit(model, model, x, mask, sampler=sampler),
        ]

    for found, expected in zip(edits(denoise), edits(DATA), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


# Inpainting -----------------------------------------------------------------------------------------------------------------------------


def half(x):
    mask = torch.zeros(1, 1, *x.shape[2:])
    mask[..., x.shape[-1] // 2 :] = 1
    return mask


@pytest.mark.parametrize("method", [inpaint, lambda *a, **k: repaint(*a, jump=5, resamples=3, **k)], ids=["inpaint", "repaint"])
@pytest.mark.parametrize("sampler", [Euler(20), Heun(20), Ancestral(20), DPMpp2M(20)], ids=lambda s: type(s).__name__)
def test_what_is_kept_is_kept_exactly(method, sampler):
    x = pictures()
    out = method(DATA, x, half(x), sampler=sampler, generator=rng.generator(0))
    assert torch.equal(out[..., :3], x[..., :3])
    assert out.isfinite().all() and (out[..., 3:] - x[..., 3:]).abs().max() > 0.1


@pytest.mark.parametrize("method", [inpaint, lambda *a, **k: repaint(*a, jump=4, resamples=2, **k)], ids=["inpaint", "repaint"])
def test_what_is_kept_carries_the_noise_of_the_level_it_is_shown_at(method):
    x = torch.zeros(2000, 1, 1, 2, dtype=torch.float64) + 0.3
    mask = torch.tensor([[[[0.0, 1.0]]]])
    seen = []

    def denoise(state, sigma):
        seen.append((float(sigma[0]), state[..., 0].mean().item(), state[..., 0].std().item()))
        return DATA(state, sigma)

    method(denoise, x, mask, sampler=Ancestral(12), generator=rng.generator(0))
    for sigma, mean, std in seen[1:]:
        assert std == pytest.approx(sigma, rel=0.08) and mean == pytest.approx(0.3, abs=0.1 * max(sigma, 0.1))


def test_independent_values_are_painted_as_if_nothing_was_kept():
    """With independent pixels the painted half is a plain sample of the sampler."""
    x, sampler = pictures(), Euler(20)
    painted = inpaint(DATA, x, half(x), sampler=sampler, generator=rng.generator(0))
    torch.testing.assert_close(painted[..., 3:], sampler(DATA, noise_of(x))[..., 3:])


class Pairs:
    """Two pixels, both N(0, 1), correlated by r: the ideal denoiser is linear."""

    def __init__(self, r):
        self.covariance = torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64)

    def __call__(self, x, sigma):
        gain = self.covariance @ torch.linalg.inv(self.covariance + float(sigma[0]) ** 2 * torch.eye(2, dtype=torch.float64))
        return x @ gain.T


def test_going_back_and_forth_brings_the_painted_part_into_line_with_the_rest():
    """The truth is x2 | x1 = N(r x1, 1 - r^2). Blending misses the slope; RePaint comes close to it."""
    r, n = 0.9, 2000
    x = torch.randn(n, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask, sampler = torch.tensor([[[[0.0, 1.0]]]]), Ancestral(48, Karras(0.02, 20.0))

    def law(out):
        first, second = out[:, 0, 0, 0], out[:, 0, 0, 1]
        slope = (first * second).mean() / first.square().mean()
        return slope.item(), (second - slope * first).std().item()

    blended = law(inpaint(Pairs(r), x, mask, sampler=sampler, generator=rng.generator(1)))
    repainted = law(repaint(Pairs(r), x, mask, jump=3, resamples=8, sampler=sampler, generator=rng.generator(1)))
    assert repainted[0] == pytest.approx(r, abs=0.06) and repainted[1] == pytest.approx(math.sqrt(1 - r * r), abs=0.06)
    assert blended[0] < r - 0.2


def test_the_plan_of_repaint():
    assert repaint_plan(20, 5, 3) == [
        20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 15, 14, 13, 12, 11, 10, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 10, 9, 8, 7, 6, 5, 10,
        9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 5, 4, 3, 2, 1, 0, 5, 4, 3, 2, 1, 0,
    ]  # fmt: skip
    assert repaint_plan(4, 2, 1) == [4, 3, 2, 1, 0]
    plan = repaint_plan(250, 10, 10)
    assert sum(b < a for a, b in pairwise(plan)) == 250 + 9 * 240
    with pytest.raises(ValueError, match="1 <= jump <= steps"):
        repaint_plan(10, 11, 2)


def test_a_soft_mask_mixes_and_a_strength_starts_from_what_is_there():
    x = pictures()
    soft = torch.full((3, 1, 4, 6), 0.5, dtype=torch.float64)
    plain = inpaint(DATA, x, torch.ones(1, 1, 4, 6), sampler=Euler(1), generator=rng.generator(0))
    half_way = inpaint(DATA, x, soft, sampler=Euler(1), generator=rng.generator(0))
    torch.testing.assert_close(half_way, (plain + x) / 2, atol=2e-4, rtol=0)
    weak = inpaint(DATA, x, torch.ones(1, 1, 4, 6), strength=0.4, sampler=Euler(20), generator=rng.generator(0))
    torch.testing.assert_close(weak, img2img(DATA, x, 0.4, sampler=Euler(20), generator=rng.generator(0)))


@pytest.mark.parametrize(
    ("mask", "said"),
    [(torch.ones(1, 1, 4, 5), "1, 4, 6"), (torch.ones(2, 1, 4, 6), "3 or 1"), (2 * torch.ones(1, 1, 4, 6), "got values from 2 to 2")],
)
def test_masks_that_do_not_fit(mask, said):
    with pytest.raises(ValueError, match=said):
        inpaint(DATA, pictures(), mask)


# DiffEdit -------------------------------------------------------------------------------------------------------------------------------


def right_is_different(x, sigma):
    """Agrees with `DATA` on the left; on the right it expects 1."""
    return torch.cat([DATA(x[..., :3], sigma), OTHER(x[..., 3:], sigma)], -1)


def test_the_mask_is_where_two_prompts_disagree():
    x = pictures()
    mask = difference_mask(right_is_different, DATA, x, draws=4, generator=rng.generator(0))
    assert mask.shape == (3, 1, 4, 6) and torch.equal(mask, half(x).to(mask).expand_as(mask))


def test_equal_prompts_give_an_empty_mask_and_change_nothing():
    x = pictures()
    mask = difference_mask(DATA, DATA, x, generator=rng.generator(0))
    assert not mask.any()
    assert torch.equal(diffedit(DATA, DATA, x, mask, sampler=Euler(10)), x)


def test_both_prompts_see_the_same_noise_and_a_seed_fixes_the_mask():
    x, seen = pictures(), []

    def remember(denoise):
        return lambda state, sigma: seen.append(state) or denoise(state, sigma)

    first = difference_mask(remember(right_is_different), remember(DATA), x, draws=3, generator=rng.generator(3))
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True)) and not torch.equal(seen[0], seen[2])
    assert torch.equal(difference_mask(right_is_different, DATA, x, draws=3, generator=rng.generator(3)), first)


def test_diffedit_changes_the_mask_and_nothing_else():
    x = pictures()
    out = diffedit(right_is_different, DATA, x, half(x), strength=0.8, sampler=Euler(40), fixed_point=40)
    assert torch.equal(out[..., :3], x[..., :3])
    moved = out[..., 3:] - x[..., 3:]  # the same noise under a mean of 1
    torch.testing.assert_close(moved, torch.full_like(moved, moved.mean().item()), atol=1e-6, rtol=0)
    assert moved.mean().item() == pytest.approx(1 - 0.5 / Euler(40).sigmas()[8], abs=0.02)


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"draws": 0}, {"clip": 0.0}, {"threshold": 1.0}])
def test_difference_masks_that_cannot_be(options):
    with pytest.raises(ValueError, match="difference_mask needs"):
        difference_mask(DATA, DATA, pictures(), **options)
