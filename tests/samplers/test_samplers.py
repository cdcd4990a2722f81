"""What holds for every sampler: the loop, purity, generators, gradients, precision, order of the state."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial

import pytest
import torch
from gaussians import Counted, Gaussian, Mixture, column
from sampler_list import DETERMINISTIC, SAMPLERS, STOCHASTIC

from diffx import rng
from diffx.recipes import recipe_of
from diffx.samplers import Ancestral, DPMpp2M, Euler, Heun
from diffx.samplers.lms import weights
from diffx.schedules import Cosine, Flow, Karras, Levels, Shifted, Tangent

every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
DATA = Mixture()


def noise(n, *shape, seed=0):
    return rng.randn((n, *shape), rng.sample_generators(seed, n))


@every_sampler
@pytest.mark.parametrize("schedule", [Karras(), Cosine(), Flow(), Tangent(), Shifted(Karras(), 0.5)], ids=lambda s: type(s).__name__)
def test_samples_follow_the_data(make, schedule):
    x = make(64, schedule)(DATA, rng.randn((2000, 1), rng.generator(0)), generator=rng.generator(1))
    left = (x < 0).float().mean().item()
    assert left == pytest.approx(0.3, abs=0.06)
    assert x[x < 0].mean().item() == pytest.approx(-0.6, abs=0.04)
    assert x[x > 0].mean().item() == pytest.approx(0.5, abs=0.04)
    assert x[x > 0].std().item() == pytest.approx(0.2, abs=0.04)


@every_sampler
def test_a_sample_does_not_depend_on_its_batch(make):
    sampler = make(12, Karras())

    def draw(indices):
        z = torch.cat([noise(1, 3, 2, seed=i) for i in indices])
        return sampler(DATA, z, generator=[torch.Generator().manual_seed(100 + i) for i in indices])

    together = draw(range(4))
    assert torch.equal(draw([3, 1, 0, 2]), together[[3, 1, 0, 2]])
    for i in range(4):
        assert torch.equal(draw([i])[0], together[i])


@every_sampler
def test_one_sampler_serves_many_runs(make):
    sampler = make(8, Karras())
    first = sampler(DATA, noise(2, 3), generator=torch.Generator().manual_seed(1))

    def nested(x, sigma):
        sampler(DATA, noise(1, 3, seed=5))  # a run inside a run
        return DATA(x, sigma)

    with torch.random.fork_rng():
        assert torch.equal(sampler(nested, noise(2, 3), generator=torch.Generator().manual_seed(1)), first)


@every_sampler
def test_levels_arrive_as_one_per_sample(make):
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return DATA(x, sigma)

    make(5, Karras())(denoise, noise(3, 2))
    assert all(s.shape == (3,) and s.dtype == torch.float32 and (s == s[0]).all() for s in seen)
    assert min(s[0] for s in seen) > 0


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_state_is_as_wide_as_the_noise_and_never_below_float32(make, dtype):
    x = make(5, Karras())(DATA, noise(2, 3).to(dtype))
    assert x.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(x).all()


@every_sampler
def test_float32_follows_float64(make, monkeypatch):
    sampler = make(18, Karras())
    draw, z = rng.randn, noise(64, 1)
    monkeypatch.setattr(rng, "randn", lambda shape, generator, *, device, dtype: draw(shape, generator).to(dtype))
    wide, narrow = (sampler(DATA, z.to(dtype), generator=rng.generator(0)) for dtype in (torch.float64, torch.float32))
    assert (wide - narrow).abs().median() < 1e-5


@every_sampler
def test_gradients_flow_through_the_whole_run(make):
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z = noise(1, 2).double().requires_grad_()

    def denoise(x, sigma):
        return Gaussian(0, 0.5)(x - mean, sigma) + mean

    def run():
        return make(6, Karras())(denoise, z, generator=torch.Generator().manual_seed(0)).sum()

    run().backward()
    assert mean.grad.item() == pytest.approx(2, rel=0.02)  # shifting the data shifts both values
    assert torch.isfinite(z.grad).all()
    assert (z.grad != 0).all()


@every_sampler
def test_watch_sees_every_step_and_changes_nothing(make):
    sampler, seen = make(7, Karras()), []
    plain = sampler(DATA, noise(2, 3), generator=torch.Generator().manual_seed(0))
    watched = sampler(DATA, noise(2, 3), generator=torch.Generator().manual_seed(0), watch=lambda *args: seen.append(args))
    assert torch.equal(plain, watched)
    assert [step for step, *_ in seen] == list(range(7))
    assert [sigma for _, sigma, *_ in seen] == sampler.sigmas()[:-1]
    torch.testing.assert_close(seen[0][2], noise(2, 3) * 80)
    assert all(x.shape == x0.shape == (2, 3) for *_, x, x0 in seen)
    if sampler == Euler(7):
        torch.testing.assert_close(seen[3][3], DATA(seen[3][2], torch.full((2,), seen[3][1])))


@every_sampler
def test_one_step_returns_the_estimate(make):
    z, top = noise(2, 3).double(), torch.full((2,), 80.0, dtype=torch.float64)
    if make is STOCHASTIC["heun_churn"]:
        make = partial(make, churn_max=1.0)
    torch.testing.assert_close(make(1, Karras())(DATA, z), DATA(80 * z, top), rtol=0, atol=1e-12)


@every_sampler
def test_start_moves_the_beginning_and_partial_shortens_the_walk(make):
    sampler, data = make(10, Karras()), torch.full((2, 3), 0.4)
    part, seen = sampler.partial(0.3), []
    assert part.steps == 3
    assert part.sigmas() == pytest.approx(sampler.sigmas()[7:], rel=1e-14)
    part(DATA, noise(2, 3), start=data, watch=lambda *args: seen.append(args))
    assert torch.equal(seen[0][2], noise(2, 3) * part.sigmas()[0] + data)
    assert sampler.partial(1).sigmas() == pytest.approx(sampler.sigmas(), rel=1e-14)
    assert sampler.partial(0.01).steps == 1
    assert make(50, Karras()).partial(0.58).steps == 29


@every_sampler
def test_samplers_are_values_with_a_recipe(make):
    sampler = make(9, Karras(rho=5))
    assert sampler == make(9, Karras(rho=5)) == pickle.loads(pickle.dumps(sampler))
    assert recipe_of(sampler)["_target_"] == f"diffx.samplers.{type(sampler).__name__}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.steps = 3


@pytest.mark.parametrize("make", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_deterministic_samplers_draw_nothing(make, monkeypatch):
    monkeypatch.setattr(rng, "randn", None)
    make(4, Karras())(DATA, column(1.0, 2.0))


def test_churn_draws_noise_only_inside_its_interval(monkeypatch):
    drawn = []
    monkeypatch.setattr(rng, "randn", lambda shape, *_, **k: drawn.append(1) or torch.zeros(shape, dtype=torch.float64))
    sampler = Heun(18, churn=5, churn_min=0.1, churn_max=10)
    sampler(DATA, column(1.0))
    assert len(drawn) == sum(0.1 <= s <= 10 for s in sampler.sigmas())


@pytest.mark.parametrize("sampler", [Euler(), Heun(), Heun(alpha=0.5), Ancestral(), Ancestral(eta=0.5, variance=0.7)], ids=repr)
def test_a_step_takes_one_level_per_sample(sampler, monkeypatch):
    monkeypatch.setattr(rng, "randn", lambda shape, *_, **k: torch.ones(shape, dtype=torch.float64))
    x, a, b = column(3.0, -1.0, 0.4), torch.tensor([5.0, 2.0, 0.3]).double(), torch.tensor([2.0, 0.1, 0.0]).double()
    together = sampler.step(DATA, x, a, b, None)
    for i in range(3):
        alone = sampler.step(DATA, x[i : i + 1], a[i].item(), b[i].item(), None)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=1e-15)
    assert torch.isfinite(together).all()


def test_evaluations():
    for make, per_step, saved in ((Euler, 1, 0), (Heun, 2, 1), (DPMpp2M, 1, 0)):
        for steps in (18, 40, 256):
            counted = Counted(Gaussian())
            make(steps)(counted, column(1.0))
            assert counted.calls == per_step * steps - saved


def test_lms_weights_integrate_polynomials_exactly():
    nodes, end = [3.0, 4.5, 5.0, 9.0], 1.2
    for power in range(4):
        exact = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        assert sum(w * s**power for w, s in zip(weights(nodes, end), nodes, strict=True)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Euler(0),
        lambda: Heun(churn=-1),
        lambda: Heun(alpha=0),
        lambda: Ancestral(eta=1.5),
        lambda: SAMPLERS["lms"](order=0),
        lambda: STOCHASTIC["dpmpp_2m_sde"](eta=-1),
        lambda: Euler().partial(0),
        lambda: Euler().partial(1.2),
        lambda: Euler()(DATA, torch.zeros(2, 3), start=torch.zeros(3)),
        lambda: Heun(churn=1).step(DATA, torch.zeros(1, 1), torch.ones(1), torch.ones(1), None),
        lambda: Ancestral()(DATA, torch.zeros(2, 3), generator=rng.sample_generators(0, 3)),
    ],
)
def test_bad_input_is_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_explicit_levels_walk_a_published_list():
    sampler = Euler(3, Levels((10.0, 1.0, 0.1)))
    assert sampler.sigmas() == pytest.approx([10, 1, 0.1, 0])
