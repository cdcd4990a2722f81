"""Guided distillation: one network that is told the scale, its two stages, and pictures carried from class to class."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from gaussians import Conditional, Gaussian, column
from technique_list import edm, unet
from torch import nn
from torch.utils.data import DataLoader

from diffx import Cond, Denoiser
from diffx.denoiser import Scales
from diffx.lr_schedules import Linear
from diffx.networks import MLP, SongUNet
from diffx.networks.border import Conditions
from diffx.recipes import recipe_of
from diffx.samplers import Euler, Heun
from diffx.schedules import Karras, LogNormal
from diffx.techniques import GuidanceDistillation, ProgressiveDistillation
from diffx.techniques.distillation import at_scale
from diffx.techniques.guided import with_guidance


class Exact(nn.Module):
    """A closed-form denoiser (x, sigma, cond) -> x0 in a network's clothes; the parameter lets a module find its type."""

    def __init__(self, data, vectors=()):
        super().__init__()
        self.data, self.conditions = data, Conditions(classes=2, vectors=dict.fromkeys(vectors, 1))
        self.dummy = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, sigma, cond):
        return self.data(x, sigma, cond)


def bare(sigma):
    """The network's output is D itself, and it is handed x and sigma as they are."""
    return Scales(torch.zeros_like(sigma), torch.ones_like(sigma), torch.ones_like(sigma), sigma)


def told(x, sigma, cond, mean=1.0, std=0.5):
    """What the student of `Conditional` must become: the denoiser of N(w mean, std^2), for conditional and free data of one spread."""
    s2 = sigma[:, None] ** 2
    return (s2 * mean * cond.vectors["guidance"] + std**2 * x) / (s2 + std**2)


def exact_student(student=told):
    return GuidanceDistillation(
        Denoiser(Exact(Conditional()), bare), Denoiser(Exact(student, ["guidance"]), bare), shape=(1,), scales=(0.0, 5.0),
        weighting=torch.ones_like,
    ).double()  # fmt: skip


def awake(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(
    "make", [unet, partial(unet, vectors={"size": 1}), lambda: SongUNet(1, width=16, mults=(1, 2), blocks=1, classes=4)]
)
def test_a_student_begins_as_the_conditional_teacher(make):
    """For every scale and exactly; and it can leave from there."""
    torch.manual_seed(0)
    teacher = Denoiser(awake(make()))
    module = GuidanceDistillation(teacher, shape=(1, 8, 8))
    x, sigma, cond = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0]), Cond(label=torch.tensor([0, 1, 2]))
    for scale in (1.0, 2.5, 5.0):
        assert torch.equal(module.denoiser(x, sigma, at_scale(cond, torch.full((3,), scale))), teacher(x, sigma, cond))
    module.denoiser(x, sigma, at_scale(cond, torch.tensor([1.0, 2.0, 3.0]))).square().sum().backward()
    closed = {name for name, p in module.denoiser.named_parameters() if not p.any()}
    assert closed and all(p.grad.any() for name, p in module.denoiser.named_parameters() if name in closed)


def test_the_best_student_is_the_guided_teacher_and_has_no_loss():
    """Conditional N(1, .25), free N(0, .25): the guided denoiser is that of N(w, .25), and so are its samples."""
    torch.manual_seed(0)
    batch = {"latent": torch.randn(64, 1, dtype=torch.float64), "label": torch.zeros(64, dtype=torch.int64)}
    assert exact_student().loss(batch)["mse"].max() < 1e-12
    assert exact_student(partial(told, mean=1.1)).loss(batch)["mse"].max() > 1e-3  # not vacuous
    cond, sampler = Cond(label=torch.zeros(4096, dtype=torch.int64)), Heun(64)
    for scale in (0.0, 1.0, 3.0):
        module = exact_student()
        noise = torch.randn(4096, 1, dtype=torch.float64)
        out = sampler(lambda x, s, w=scale, m=module: m.denoiser(x, s, m.told(cond, len(x), w)), noise)  # `decode` would clamp
        shrink = 0.5 / math.sqrt(80**2 + 0.5**2)
        torch.testing.assert_close(out, scale + (80 * noise - scale) * shrink, rtol=0, atol=0.02)


def test_hidden_samples_learn_the_free_denoiser():
    module = exact_student(lambda x, sigma, cond: Gaussian(0.0, 0.5)(x, sigma))
    module.drop = 1.0
    assert module.loss({"latent": torch.randn(8, 1).double(), "label": torch.zeros(8, dtype=torch.int64)})["mse"].max() < 1e-12


def test_the_student_is_made_from_the_recipe_of_the_teacher():
    student = with_guidance(Denoiser(unet(vectors={"size": 2})))
    assert student.net.conditions.vectors == {"size": 2, "guidance": 1} and student.net.conditions.classes == 4
    recipe = recipe_of(GuidanceDistillation(Denoiser(unet()), shape=(1, 8, 8)))
    assert "student" not in recipe and recipe["teacher"] == recipe_of(Denoiser(unet()))


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (Denoiser(unet(classes=0)), {}, "needs a conditional teacher, but UNet takes no conditions"),
        (edm(drop=0.0), {}, "trained with hidden conditions, but its drop is 0"),
        (Denoiser(unet()), {"scales": (5.0, 1.0)}, "an empty range"),
        (Denoiser(unet()), {"student": Denoiser(unet())}, "needs a student that is told them"),
        (Denoiser(Exact(Conditional()), bare), {"shape": (1,)}, "cannot give Exact the vector 'guidance'.*pass a student"),
    ],
)
def test_bad_input_is_refused(teacher, options, message):
    with pytest.raises(ValueError, match=message):
        GuidanceDistillation(teacher, **{"shape": (1, 8, 8), **options})


def test_batches_without_conditions_are_refused():
    module = GuidanceDistillation(Denoiser(unet()), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="label"):
        module.check_batch({"x": torch.zeros(2, 1, 8, 8)})


class Sides(torch.utils.data.IterableDataset):
    """Class 0 is N(-0.6, 0.2^2), class 1 is N(0.6, 0.2^2)."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            label = torch.randint(0, 2, (256,), generator=generator)
            yield {"latent": (label * 1.2 - 0.6)[:, None] + 0.2 * torch.randn(256, 1, generator=generator), "label": label}


def fit(module, steps):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        max_epochs=-1, max_steps=steps)  # fmt: skip
    trainer.fit(module, DataLoader(Sides(), batch_size=None))


def test_both_stages_learn():
    """A student that ignores the scale misses all of its effect, one stuck at scale 3 misses half of it at 5 and errs by 1.6 at 1."""
    torch.manual_seed(0)
    options = {"shape": (1,), "schedule": LogNormal(-0.8, 1.2), "optimizer": partial(torch.optim.Adam, lr=2e-3, fused=True)}
    teacher = edm_of_sides(options)
    fit(teacher, 300)
    guided = GuidanceDistillation(teacher, lr_schedule=Linear(), **options)
    fit(guided, 250)
    x, sigma = torch.randn(512, 1), torch.linspace(-3, 1, 512).exp()
    x, cond = x * (0.63**2 + sigma[:, None] ** 2).sqrt(), Cond(label=torch.arange(512) % 2)
    with torch.no_grad():
        with_label, free = teacher.denoiser(x, sigma, cond), teacher.denoiser(x, sigma, cond.hidden())
        for scale, bound in ((1.0, 0.3), (3.0, 0.2), (5.0, 0.35)):
            error = guided.denoiser(x, sigma, at_scale(cond, torch.full((512,), scale))) - torch.lerp(free, with_label, scale)
            effect = (scale - 1) * (with_label - free) if scale > 1 else with_label
            assert error.norm() < bound * effect.norm(), scale

    del options["schedule"]
    second = ProgressiveDistillation(guided, scales=(1.0, 5.0), teacher_steps=8, last=2, iterations=80, **options)
    fit(second, -1)
    noise, cond = torch.randn(512, 1), Cond(label=torch.arange(512) % 2)
    for scale in (1.0, 4.0):
        wide = at_scale(cond, torch.full((512,), scale))
        with torch.no_grad():
            eight, two, student = (
                Euler(n, second.schedule)(lambda x, s, d=d, c=wide: d(x, s, c), noise)
                for n, d in ((8, guided.denoiser), (2, guided.denoiser), (2, second.denoiser))
            )
        assert (student - eight).norm() < 0.4 * (two - eight).norm(), scale


def edm_of_sides(options):
    from diffx import EDM

    return EDM(Denoiser(MLP(1, width=64, depth=2, classes=2)), lr_schedule=Linear(), **options)


def test_a_picture_is_carried_to_the_other_class():
    """Encoding as one class and decoding as another moves one Gaussian onto the other, up to first order of the step.

    The classes here are two scales: N(0, .25) at 0 and N(.5, .25) at .5.
    """
    module = exact_student()
    x, walk = column(-0.3, 0.0, 0.4), Euler(512, Karras(0.02, 80.0))

    def label(scale):
        return {"cond": Cond(label=torch.zeros(3, dtype=torch.int64)), "guidance": scale, "sampler": walk}

    noise = module.encode(x, **label(0.0))
    torch.testing.assert_close(module.decode(noise, **label(0.5)), x + 0.5, atol=0.02, rtol=0)
    torch.testing.assert_close(module.decode(noise, **label(0.0)), x, atol=0.02, rtol=0)
