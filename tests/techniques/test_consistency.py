"""Consistency: order of the defect, the two trajectories, shared dropout, boundary, stages, sampling by jumps, and that it learns."""

import math

import pytest
import torch
from gaussians import Counted, Gaussian, Mixture, column
from known import Known
from technique_list import labels, pictures, unet

from diffx import Denoiser, rng
from diffx.denoiser import EDMPrecond, EpsPrecond, FlowPrecond, VPrecond, X0Precond
from diffx.networks import MLP
from diffx.recipes import recipe_of
from diffx.samplers import Euler, Heun, MultiStep
from diffx.schedules import Levels, LogNormal
from diffx.techniques import ConsistencyDistillation
from diffx.techniques.consistency import EasyTuning, distance
from diffx.tensors import expand

DATA = Gaussian(0.3, 0.5)


def consistency(x, sigma):
    """Where the trajectories of the Gaussian end."""
    return DATA.mean + (x - DATA.mean) * DATA.std / (DATA.std**2 + expand(sigma, x) ** 2).sqrt()


def module(student, teacher=DATA, **options):
    return ConsistencyDistillation(Known(teacher), Known(student), shape=(1,), warm_start=False, **options)


def batch(n=64):
    return {"x": DATA.mean + DATA.std * torch.randn(n, 1, dtype=torch.float64)}


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 2), (Heun(), 3)])
def test_the_exact_function_misses_its_target_by_the_error_of_one_solver_step(solver, order):
    made = module(consistency, solver=solver, huber=None, tuning=EasyTuning(images=1, stages=12))
    u, missed = torch.linspace(0.2, 0.8, 64, dtype=torch.float64), []
    for stage in (8, 9, 10):
        made.images_seen = stage - 1
        rng.seed_default("same")
        missed.append(made.loss(batch(), u)["distance"].sqrt().mean().item())
    slopes = [math.log2(missed[i] / missed[i + 1]) for i in range(2)]
    assert all(order - 0.05 < slope < order + 0.2 for slope in slopes), slopes


def test_training_from_data_shares_noise_and_needs_no_teacher():
    made = module(consistency, solver=None)
    made.teacher = Known(None)
    made.loss(data := batch(), u := torch.linspace(0.6, 0.99, 64, dtype=torch.float64))
    (x, t), (below, _) = made.denoiser.asked
    torch.testing.assert_close(t, made.schedule.sigma(u))
    r = made.tuning.lower(t, 1)
    torch.testing.assert_close(below, data["x"] + expand(r / t, x) * (x - data["x"]), rtol=0, atol=1e-12)
    assert (r < t).all() and (r > 0).any()


def test_the_target_carries_no_gradient():
    """For f = w x the gradient of (w x_t - w x_r)^2 / (t - r) must be 2 w (x_t - x_r) x_t / (t - r)."""
    made = module(lambda x, sigma: x, solver=None, huber=None, tuning=EasyTuning(images=1, stages=4))
    made.images_seen = 3
    made.loss(batch(), torch.full((64,), 0.9, dtype=torch.float64))["loss"].mean().backward()
    (x, t), (below, r) = made.denoiser.asked
    expected = (2 * (x - below) * x / expand(t - r, x)).mean()
    torch.testing.assert_close(made.denoiser.factor.grad, expected)
    assert made.teacher.factor.grad is None


def test_where_the_lower_level_is_0_the_target_is_the_data():
    made, data = module(consistency, solver=None, huber=None), batch()
    parts = made.loss(data, torch.full((64,), 0.3, dtype=torch.float64))  # t = 0.117: r is 0 in stage 1
    (x, t), _ = made.denoiser.asked
    torch.testing.assert_close(parts["loss"], (consistency(x, t) - data["x"]).square()[:, 0] / t)


def test_both_ends_are_evaluated_under_one_dropout():
    """A gap of almost nothing must give a distance of almost nothing, however much is dropped."""
    net = unet(dropout=0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made = ConsistencyDistillation(Denoiser(net), shape=(1, 8, 8), solver=None, tuning=EasyTuning(base=1e6, stages=1), huber=None).train()
    u = torch.full((4,), 0.5)
    assert made.loss(pictures(4), u)["distance"].max() < 1e-6
    x, sigma, cond = torch.randn(4, 1, 8, 8), torch.ones(4), labels(4)
    assert distance(made.denoiser(x, sigma, cond), made.denoiser(x, sigma, cond), None).min() > 1e-3


def test_stages_close_the_gap():
    tuning = EasyTuning(images=100, stages=4)
    assert [tuning.stage(images) for images in (0, 99, 100, 250, 399, 10**9)] == [1, 1, 2, 3, 4, 4]
    t = torch.tensor([0.01, 1.0, math.log(7), 80.0], dtype=torch.float64)
    assert tuning.lower(t, 1).tolist() == pytest.approx([0, 0, 0, 40], abs=1e-12)
    assert tuning.lower(t, 4)[1].item() == pytest.approx(1 - (1 + 8 / (1 + math.e)) / 16)
    lower = torch.stack([tuning.lower(t, stage) for stage in range(1, 12)])
    assert (lower.diff(dim=0) >= 0).all() and (lower < t).all() and (lower >= 0).all()


def test_the_distance_is_a_square_near_0_and_a_norm_far_out():
    a, c = torch.zeros(3, 2, 2, dtype=torch.float64), 0.1 * 2
    b = a + torch.tensor([1e-4, 0.3, 1e4], dtype=torch.float64).view(3, 1, 1) / 2
    norm = torch.tensor([1e-4, 0.3, 1e4], dtype=torch.float64)
    torch.testing.assert_close(distance(a, b, 0.1), (norm**2 + c * c).sqrt() - c, rtol=1e-6, atol=0)
    torch.testing.assert_close(distance(a, b, None), norm**2)
    a.requires_grad_()
    distance(a, a.detach(), 0.1).sum().backward()
    assert (a.grad == 0).all()


@pytest.mark.parametrize("precond", [EDMPrecond(), EpsPrecond(), VPrecond(), FlowPrecond()], ids=lambda p: type(p).__name__)
def test_preconditionings_that_keep_x_at_level_0_are_taken(precond):
    ConsistencyDistillation(Denoiser(MLP(2), precond), shape=(2,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConsistencyDistillation(Denoiser(MLP(2), X0Precond()), shape=(2,)), "X0Precond has skip = 0 and out = 1"),
        (lambda: ConsistencyDistillation(Denoiser(MLP(2)), shape=(2,), huber=0.0), "got 0.0"),
        (lambda: EasyTuning(stages=0), "stages=0"),
        (lambda: EasyTuning(images=0), "images=0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Jumps -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(80.0,), (80.0, 0.8), (80.0, 5.0, 1.0, 0.2)])
def test_jumps_of_an_exact_consistency_function_keep_the_law(levels):
    counted = Counted(consistency)
    x = MultiStep(len(levels), Levels(levels))(counted, torch.randn(200_000, 1), generator=rng.generator(0))
    assert counted.calls == len(levels)
    assert x.mean().item() == pytest.approx(DATA.mean, abs=0.005) and x.std().item() == pytest.approx(DATA.std, rel=0.01)


def test_jumps_are_seeded_per_sample_and_one_jump_draws_nothing(monkeypatch):
    sampler = MultiStep(3, Levels((80.0, 2.0, 0.5)))

    def draw(indices):
        noise = rng.randn((len(indices), 2), [torch.Generator().manual_seed(i) for i in indices])
        return sampler(DATA, noise, generator=[torch.Generator().manual_seed(100 + i) for i in indices])

    together = draw(range(4))
    assert torch.equal(draw([2, 0]), together[[2, 0]]) and recipe_of(sampler)["_target_"] == "diffx.samplers.MultiStep"
    levels = torch.tensor([2.0, 2.0, 0.5]).double(), torch.tensor([0.5, 0.5, 0.0]).double()
    monkeypatch.setattr(rng, "randn", lambda shape, *_, **k: torch.ones(shape, dtype=torch.float64))
    steps = sampler.step(DATA, column(1.0, -1.0, 0.4), *levels)
    torch.testing.assert_close(steps, DATA(column(1.0, -1.0, 0.4), levels[0]) + levels[1][:, None])
    monkeypatch.setattr(rng, "randn", None)
    torch.testing.assert_close(MultiStep()(DATA, column(1.0)), DATA(80 * column(1.0), torch.tensor([80.0]).double()))


@pytest.mark.parametrize("solver", [Heun(), None], ids=["distillation", "training"])
def test_one_evaluation_learns_to_follow_whole_trajectories(solver):
    """On two bumps: distance from the teacher's fine trajectory at the same noise, against the teacher's own single step."""
    torch.manual_seed(0)
    data, n, steps = Mixture((0.5, 0.5), (-0.7, 0.7), (0.25, 0.25)), 256, 500
    made = ConsistencyDistillation(Known(data), Denoiser(MLP(1, width=64, depth=3), EDMPrecond(0.75)), shape=(1,), warm_start=False,
                                   solver=solver, schedule=LogNormal(0.0, 1.8), tuning=EasyTuning(n * steps / 6, stages=6))  # fmt: skip
    optimizer = torch.optim.RAdam(made.denoiser.parameters(), lr=2e-3)
    for step in range(steps):
        made.images_seen = n * step
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, 2 - 2 * step / steps)
        centre = torch.randint(2, (n, 1)) * 1.4 - 0.7
        loss = made.loss({"x": centre + 0.25 * torch.randn(n, 1)})["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(1000, 1)
    exact = Heun(64)(data, noise)
    with torch.no_grad():
        missed = ((MultiStep()(made.denoiser, noise) - exact).square().mean() / (MultiStep()(data, noise) - exact).square().mean()).sqrt()
    assert missed < 0.35
