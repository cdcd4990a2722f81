"""Distribution matching: the mean pull in closed form, one optimizer for three networks, whose turn it is, and that it moves a law."""

import copy
from collections import Counter

import lightning as L
import pytest
import torch
from gaussians import Gaussian
from known import Known
from technique_list import labels, pictures, unet
from torch.utils.data import DataLoader

from diffx import Cond, Denoiser
from diffx.samplers import MultiStep
from diffx.schedules import Levels
from diffx.techniques import DMD
from diffx.techniques.dmd import Discriminator, Tap, matching_loss
from diffx.tensors import expand

MEAN, STD = 0.2, 0.5


def dmd(**options):
    """All weights away from zero, so that every part pulls."""
    teacher = Denoiser(unet())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    critic = {"discriminator": Discriminator(32, 16), "features": "body.middle.1"}
    return DMD(teacher, shape=(1, 8, 8), **{**critic, **options})


def known(mean):
    """Teacher and fake score of Gaussians that differ in their means only."""
    module = DMD(Known(Gaussian(MEAN, STD)), Known(lambda x, sigma: x), warm_start=False, shape=(1,))
    module.fake_score = Known(Gaussian(mean, STD))
    return module


@pytest.mark.parametrize(("sigma", "pull"), [(0.3, 0.211765), (1.0, 0.64), (5.0, 0.792079)])
def test_the_gap_between_two_gaussians(sigma, pull):
    """D_fake - D_real = sigma^2 (m_fake - m) / (s^2 + sigma^2), here at every point alike; 0 where the laws agree."""
    made = 1 + STD * torch.randn(50, 1, dtype=torch.float64)
    noisy, levels = made + sigma * torch.randn_like(made), torch.full((50,), sigma, dtype=torch.float64)
    gap, real, features = known(1.0).gap(noisy, levels, Cond())
    assert (gap - pull).abs().max() < 1e-6 and features is None and not gap.requires_grad
    torch.testing.assert_close(real, Gaussian(MEAN, STD)(noisy, levels))
    assert known(MEAN).gap(noisy, levels, Cond())[0].abs().max() < 1e-12


def test_the_gradient_of_the_loss_is_the_normalised_gap():
    made, gap, real = (torch.randn(3, 2, 4, dtype=torch.float64) for _ in range(3))
    made.requires_grad_()
    matching_loss(made, gap, real).sum().backward()
    scale = (made - real).abs().mean((1, 2)).detach()
    torch.testing.assert_close(made.grad, gap / expand(scale, gap) / 8)


def test_a_student_with_a_wrong_mean_is_pulled_to_the_right_one():
    """The student adds a shift to its noise; the fake score is kept exact."""
    module = DMD(Known(Gaussian(MEAN, STD)), Known(lambda x, sigma: STD * x / expand(sigma, x)), warm_start=False, shape=(32,))
    shift = torch.ones((), dtype=torch.float64, requires_grad=True)
    module.denoiser.answer = lambda x, sigma: shift + STD * x / expand(sigma, x)
    optimizer = torch.optim.SGD([shift], lr=0.5)
    for _ in range(150):
        module.fake_score = Known(Gaussian(shift.item(), STD))
        optimizer.zero_grad()
        module.loss({"x": torch.zeros(64, 32, dtype=torch.float64)})["loss"].mean().backward()
        optimizer.step()
    assert shift.item() == pytest.approx(MEAN, abs=0.01)


# One optimizer ----------------------------------------------------------------------------------------------------------------------------


def grads(module):
    return {part: any(p.grad is not None for p in getattr(module, part).parameters()) for part in module.trained if part not in {"text"}}


class Turns(L.Callback):
    """Notes who has a gradient at each step and what the optimizer remembers of whom."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(grads(module))


def fit(module, steps, folder, *callbacks, **options):
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, max_epochs=-1, max_steps=steps, callbacks=list(callbacks), **options)  # fmt: skip
    trainer.fit(module, DataLoader([pictures(6)] * 32, batch_size=None))
    return trainer


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}], ids=["plain", "accumulated"])
def test_in_a_cycle_the_critics_step_first_and_the_student_last(tmp_path, options):
    module, turns = dmd(every=3), Turns()
    trainer = fit(module, 6, tmp_path, turns, **options)
    critics = {"denoiser": False, "fake_score": True, "discriminator": True}
    student = {"denoiser": True, "fake_score": False, "discriminator": False}
    assert turns.seen == [critics, critics, student] * 2 and trainer.global_step == 6
    state = trainer.optimizers[0].state
    for name, parameter in module.trained_parameters().items():
        assert state[parameter]["step"] == (2 if name.startswith("denoiser") else 4), name


def test_who_is_not_on_turn_is_left_alone(tmp_path):
    module = dmd(every=2)
    before = copy.deepcopy(module.state_dict())
    fit(module, 1, tmp_path)
    changed = Counter(name.partition(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name]))
    assert set(changed) == {"fake_score", "discriminator"}


def test_each_part_of_the_loss_reaches_its_own_network():
    """Outside a training step all parts are there; one backward gives each network what its own part alone gives."""
    module = dmd(gan_weight=1.0)
    own = {"denoiser": ("matching", "adversarial"), "fake_score": ("denoising",), "discriminator": ("telling",)}

    def gradients(*names):
        module.zero_grad()
        torch.manual_seed(3)
        parts = module.loss(pictures(6))
        sum(parts[name].mean() for name in names).backward()
        return {name: p.grad.clone() for name, p in module.trained_parameters().items() if p.grad is not None and p.grad.any()}

    whole = gradients("loss")
    for part, names in own.items():
        alone = gradients(*names)
        assert {name.partition(".")[0] for name in alone} == {part}
        for name, value in alone.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-7)
    assert gradients("adversarial") and not any(p.grad is not None for p in module.teacher.parameters())


def test_groups_are_named_and_have_their_own_options():
    module = dmd(groups={"fake_score": {"lr": 5e-3, "betas": (0.0, 0.99)}, "discriminator": {"lr": 1e-2}})
    groups = {group["name"]: group for group in module.configure_optimizers()["optimizer"].param_groups}
    assert set(groups) == {f"{part}{kept}" for part in ("denoiser", "fake_score", "discriminator") for kept in ("", ".kept")}
    assert groups["fake_score.kept"]["lr"] == 5e-3 and groups["fake_score"]["betas"] == (0.0, 0.99)
    assert groups["denoiser"]["lr"] == 1e-4 and groups["discriminator"]["lr"] == 1e-2
    assert groups["fake_score.kept"]["weight_decay"] == 0


def test_only_the_student_is_averaged_and_the_fake_score_starts_as_the_teacher():
    module = dmd()
    assert {name.partition(".")[0] for name in module.averaged_parameters()} == {"denoiser"}
    for name, value in module.teacher.state_dict().items():
        assert torch.equal(value, module.fake_score.state_dict()[name])
    assert module.fake_score.training and not module.teacher.training


# Inputs and features ----------------------------------------------------------------------------------------------------------------------


def test_the_student_is_trained_on_what_it_meets_in_sampling():
    module, seen = dmd(levels=(80.0, 2.0, 0.5)), Counter()
    module.eval()
    for _ in range(40):
        state, level = module.state(torch.zeros(4, 1, 8, 8), labels(4))
        seen[level[0].item()] += 1
        assert (level == level[0]).all() and not state.requires_grad
        if level[0] == 80:
            assert state.std().item() == pytest.approx(80, rel=0.2)
    assert set(seen) == {80.0, 2.0, 0.5}
    assert module.sampler == MultiStep(3, Levels((80.0, 2.0, 0.5)))


def test_features_are_those_of_the_layer_and_survive_a_copy():
    module = copy.deepcopy(dmd())
    x, sigma = torch.randn(3, 1, 8, 8), torch.ones(3)
    module.teacher(x, sigma, labels(3))
    first = module.tap.take()
    assert first.shape == (3, 32, 4, 4) and module.tap.value is None
    module.teacher(2 * x, sigma, labels(3))
    assert not torch.equal(first, module.tap.take())


def test_a_guided_teacher_guides_the_student():
    plain, guided = dmd(), dmd(guidance=3.0)
    guided.load_state_dict(plain.state_dict())
    x, sigma = torch.randn(3, 1, 8, 8), torch.ones(3)
    (_, real, _), (_, pushed, _) = plain.gap(x, sigma, labels(3)), guided.gap(x, sigma, labels(3))
    null = plain.teacher(x, sigma, labels(3).hidden())
    torch.testing.assert_close(pushed, null + 3 * (real - null), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dmd(every=1), "every >= 2, got 1"),
        (lambda: dmd(features=None), "go together"),
        (lambda: dmd(discriminator=None), "go together"),
        (lambda: dmd(features="body.centre"), "no layer 'body.centre'"),
        (lambda: dmd(levels=(1.0, 80.0)), "falling"),
        (lambda: dmd(groups={"fake": {}}), r"groups names \['fake'\]"),
        (lambda: dmd(discriminator=None, features=None, groups={"discriminator": {}}), "groups names"),
        (lambda: dmd(discriminator=Discriminator(8)).loss(pictures(2)), "takes 8 channels on axis 1"),
        (lambda: Tap(unet(), ""), "no layer ''"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
