"""Guidance on Gaussians with closed forms, evaluation counts, order of composition, and the carry."""

from __future__ import annotations

import pytest
import torch
from gaussians import Conditional, Counted, Gaussian, column
from torch import nn

from diffx import rng
from diffx.conditions import Cond
from diffx.denoiser import Denoiser, EDMPrecond, EpsPrecond, X0Precond
from diffx.guidance import (
    Autoguidance,
    Carry,
    ClassifierFree,
    DynamicThreshold,
    Interval,
    Piecewise,
    Plain,
    Rescale,
    StaticThreshold,
    as_guide,
    bind,
    classifier_free,
)
from diffx.recipes import recipe_of
from diffx.samplers import Euler, Heun


def labels(n):
    return Cond(label=torch.arange(n))


def level(n, sigma=1.0):
    return torch.full((n,), sigma, dtype=torch.float64)


class Fixed:
    """A denoiser with one estimate for samples that see their condition and another for those that do not."""

    def __init__(self, cond, null):
        self.cond, self.null, self.calls = cond, null, 0

    def __call__(self, x, sigma, cond):
        self.calls += 1
        return torch.where(cond.visible("label").view(-1, *[1] * (x.ndim - 1)), self.cond, self.null)


# Closed forms -----------------------------------------------------------------------------------------------------------------------------


def test_guided_gaussians_move_to_the_scaled_mean():
    x = column(0.0, 80.0, -80.0)
    found = Heun(512)(ClassifierFree(3.0)(Conditional(), labels(3)), x / 80)
    torch.testing.assert_close(found, column(2.9812504, 3.4812406, 2.4812601), rtol=0, atol=1e-4)


def test_guided_gaussians_of_different_width():
    denoiser = Conditional(Gaussian(0, 0.5), Gaussian(0, 1.0))
    found = Heun(1024)(ClassifierFree(3.0)(denoiser, labels(1)), column(1 / 80)).item()
    assert found == pytest.approx(0.00156265, rel=1e-4)


def test_interval():
    narrow, wide = Gaussian(1, 0.5), Gaussian(3, 0.5)
    exact = narrow.flow(wide.flow(narrow.flow(0, 80, 3), 3, 0.3), 0.3, 0)
    assert exact == pytest.approx(2.3799380, abs=1e-7)
    sampler, counted = Euler(4000), Counted(Conditional())
    assert sampler(Interval(3.0, 0.3, 3.0)(counted, labels(1)), column(0.0)).item() == pytest.approx(exact, abs=1e-3)
    inside = sum(0.3 < sigma <= 3 for sigma in sampler.sigmas())
    assert counted.calls == 4000
    assert counted.samples == 4000 + inside  # the second half costs only inside the interval


def test_interval_edges_are_half_open():
    denoiser, x = Conditional(), column(0.2)
    guide, plain = Interval(3.0, 0.25, 2.0)(denoiser, labels(1)), Plain()(denoiser, labels(1))
    for sigma, guided in ((0.25, False), (0.2500001, True), (2.0, True), (2.0000001, False)):
        assert torch.equal(guide(x, level(1, sigma)), plain(x, level(1, sigma))) != guided


def test_levels_may_differ_within_a_batch():
    denoiser, x = Conditional(), column(0.2, 0.2, 0.2)
    sigma = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    guide = Interval(3.0, 0.3, 3.0)(denoiser, labels(3))
    together = guide(x, sigma)
    for i in range(3):
        alone = Interval(3.0, 0.3, 3.0)(denoiser, labels(1))(x[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_scale_may_be_a_function_or_bands():
    seen = []

    def scale(sigma):
        seen.append(sigma)
        return 1 + sigma

    denoiser, x = Fixed(column(1.0), column(0.0)), column(0.0)
    assert ClassifierFree(scale)(denoiser, labels(1))(x, level(1, 2.0)).item() == 3
    assert seen == [2.0]
    bands = Piecewise((0.5, 2.0), (1.0, 4.0, 2.0))
    assert [bands(s) for s in (0.1, 0.5, 0.6, 2.0, 2.1)] == [1, 1, 4, 4, 2]


def test_scale_one_is_off_zero_unconditional():
    fixed, x = Fixed(column(1.0), column(-1.0)), column(0.0)
    assert as_guide(1)(fixed, labels(1))(x, level(1)).item() == 1
    assert as_guide(0.0)(fixed, labels(1))(x, level(1)).item() == -1
    counted = Counted(Conditional())
    for guide in (as_guide(1.0), ClassifierFree(1.0), Interval(1.0)):
        guide(counted, labels(1))(x, level(1))
    assert counted.samples == 3


def test_classifier_free_takes_a_scale_per_sample_and_any_null():
    denoiser, x = Conditional(), column(0.1, 0.1)
    scale = torch.tensor([1.0, 3.0])
    together = classifier_free(denoiser, labels(2), labels(2).hidden(), scale)(x, level(2))
    torch.testing.assert_close(together[:1], bind(denoiser, labels(1))(x[:1], level(1)))
    torch.testing.assert_close(together[1:], ClassifierFree(3.0)(denoiser, labels(1))(x[1:], level(1)))
    same = classifier_free(denoiser, labels(2), labels(2), 7.0)(x, level(2))  # contrasted with itself nothing happens
    torch.testing.assert_close(same, bind(denoiser, labels(2))(x, level(2)))


def test_autoguidance():
    good, bad = Gaussian(1.0, 0.5), Counted(Gaussian(0.0, 0.7))
    x, sigma = column(0.3), level(1)
    guide = Autoguidance(lambda x, s, c: bad(x, s), 2.0)
    found = guide(lambda x, s, c: good(x, s), labels(1))(x, sigma)
    torch.testing.assert_close(found, 2 * good(x, sigma) - bad.inner(x, sigma))
    Autoguidance(lambda x, s, c: bad(x, s), 1.0)(lambda x, s, c: good(x, s), labels(1))(x, sigma)
    assert bad.calls == 1


# Corrections ------------------------------------------------------------------------------------------------------------------------------


def test_rescale():
    x = torch.zeros(1, 2, dtype=torch.float64)
    fixed = Fixed(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1, 2).double())
    found = Rescale(3.0, phi=0.7, space="x0")(fixed, labels(1))(x, level(1))
    torch.testing.assert_close(found, torch.tensor([[1.6, -1.6]], dtype=torch.float64), rtol=0, atol=1e-15)


class Table(nn.Module):
    """A network whose output depends only on whether the label is visible."""

    def __init__(self, cond, null):
        super().__init__()
        self.cond, self.null = cond, null

    def forward(self, x, noise, cond):
        return torch.where(cond.visible("label")[:, None], self.cond, self.null)


@pytest.mark.parametrize("precond", [EDMPrecond(), EpsPrecond(), X0Precond()], ids=lambda p: type(p).__name__)
def test_rescale_acts_on_the_networks_own_output(precond):
    out = torch.tensor([[1.0, -1.0]]).double()
    denoiser, x, sigma = Denoiser(Table(out, 0 * out), precond), torch.tensor([[0.4, 0.9]]).double(), level(1, 2.0)
    found = Rescale(3.0, phi=0.7)(denoiser, labels(1))(x, sigma)
    torch.testing.assert_close(found, denoiser.assemble(x, sigma, 1.6 * out))
    plain = Rescale(3.0, phi=0.0)(denoiser, labels(1))(x, sigma)
    torch.testing.assert_close(plain, ClassifierFree(3.0)(denoiser, labels(1))(x, sigma))


def test_thresholds():
    values = torch.tensor([[-4.0, -2, -1, 0, 1, 2, 3], [-0.4, -0.2, -0.1, 0, 0.1, 0.2, 0.3]]).double()
    fixed, x = Fixed(values, 0 * values), torch.zeros_like(values)
    found = DynamicThreshold(1.0, p=0.75)(fixed, labels(2))(x, level(2))
    assert torch.equal(found[0], torch.tensor([-1, -0.8, -0.4, 0, 0.4, 0.8, 1], dtype=torch.float64))
    assert torch.equal(found[1], values[1])  # s is never below 1, and samples do not share it
    assert torch.equal(StaticThreshold()(fixed, labels(2))(x, level(2)), values.clamp(-1, 1))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_uses_the_usual_quantile(p):
    values = 3 * rng.randn((4, 3, 8, 8), rng.generator(0), dtype=torch.float64)
    fixed = Fixed(values, values)
    s = values.abs().flatten(1).quantile(p, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    found = DynamicThreshold(1.0, p=p)(fixed, labels(4))(values, level(4))
    torch.testing.assert_close(found, values.clamp(-s, s) / s)


def test_guides_nest_from_the_inside_out():
    values = torch.tensor([[2.0, -1.0]]).double()
    fixed, x = Fixed(values, 0 * values), torch.zeros_like(values)
    guide = DynamicThreshold(Rescale(Interval(3.0, 0.5, 2.0), phi=1.0, space="x0"), p=1.0)
    found = guide(fixed, labels(1))
    torch.testing.assert_close(found(x, level(1)), values / 2)  # scaled to (6, -3), rescaled to (2, -1), thresholded at 2
    assert fixed.calls == 1
    torch.testing.assert_close(found(x, level(1, 4.0)), values / 2)  # off: (2, -1), thresholded at 2


def test_guides_are_values_with_a_recipe():
    guide = Rescale(Interval(3.0, 0.5, 2.0))
    assert guide == Rescale(Interval(3.0, 0.5, 2.0))
    assert recipe_of(guide) == {
        "_target_": "diffx.guidance.Rescale",
        "guide": {"_target_": "diffx.guidance.Interval", "scale": 3.0, "low": 0.5, "high": 2.0},
    }


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: as_guide("strong"), TypeError),
        (lambda: Interval(3.0, 2.0, 2.0), ValueError),
        (lambda: Piecewise((1.0, 2.0), (1.0, 2.0)), ValueError),
        (lambda: Piecewise((2.0, 1.0), (1.0, 2.0, 1.0)), ValueError),
        (lambda: Rescale(3.0, phi=1.1), ValueError),
        (lambda: Rescale(3.0, space="pixel"), ValueError),
        (lambda: Rescale(lambda denoiser, cond: None)(Conditional(), labels(1)), TypeError),
        (lambda: DynamicThreshold(p=0), ValueError),
        (lambda: as_guide(2.0)(Conditional(), Cond()), ValueError),
        (lambda: as_guide(2.0)(Conditional(), Cond(maps={"low": torch.zeros(1, 1, 2, 2)})), ValueError),
    ],
)
def test_bad_guides_are_refused(make, error):
    with pytest.raises(error, match=r"got|nest"):
        make()


# Carry ------------------------------------------------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Its latent grows by 1 where the label is visible and by 10 where it is hidden; its x0 is the latent it reads."""

    def __init__(self):
        super().__init__()
        self.read = []

    def forward(self, x, noise, cond, carry=None):
        carry = x.new_zeros(len(x), 1) if carry is None else carry
        self.read.append(carry.flatten().tolist())
        return carry.expand_as(x), carry + torch.where(cond.visible("label"), 1, 10)[:, None]


def run(guide, steps=3, carry=None):
    denoiser = Denoiser(Remembering(), X0Precond())
    carry = Carry() if carry is None else carry
    denoise = guide(denoiser, labels(2), carry)
    for sigma in (4.0, 1.0, 0.1)[:steps]:
        denoise(torch.zeros(2, 1), torch.full((2,), sigma))
    return denoiser.net.read, carry.value


@pytest.mark.parametrize("guide", [bind, Plain(), StaticThreshold(), Interval(3.0, 9.0)])
def test_a_carry_goes_from_call_to_call(guide):
    read, value = run(guide)
    assert read == [[0, 0], [1, 1], [2, 2]]
    assert value.flatten().tolist() == [3, 3]


@pytest.mark.parametrize("guide", [ClassifierFree(3.0), Rescale(3.0), DynamicThreshold(3.0)])
def test_both_branches_read_one_carry_and_the_conditional_one_is_kept(guide):
    read, value = run(guide)
    assert read == [[0] * 4, [1] * 4, [2] * 4]
    assert value.flatten().tolist() == [3, 3]


def test_an_interval_keeps_the_carry_when_it_switches():
    read, value = run(Interval(3.0, 0.5, 2.0))
    assert read == [[0, 0], [1] * 4, [2, 2]]
    assert value.flatten().tolist() == [3, 3]


def test_a_bad_network_has_a_carry_of_its_own():
    bad = Denoiser(Remembering(), X0Precond())
    read, value = run(Autoguidance(bad, 2.0))
    assert read == bad.net.read == [[0, 0], [1, 1], [2, 2]]
    assert value.flatten().tolist() == [3, 3]


def test_runs_do_not_share_a_carry():
    assert run(Plain())[0] == run(Plain())[0]
