"""The family of teachers and students: who is trained, who fits whom, what a checkpoint holds, the way from data to noise and back."""

import lightning as L
import pytest
import torch
from technique_list import edm, labels, pictures, unet
from torch import nn
from torch.utils.data import DataLoader

import diffx
from diffx import Cond, Denoiser
from diffx.codecs import Identity
from diffx.denoiser import EDMPrecond, EpsPrecond
from diffx.networks import MLP, UNet
from diffx.recipes import recipe_of, recorded
from diffx.rng import noised
from diffx.samplers import Euler
from diffx.schedules import Karras
from diffx.techniques import distillation
from diffx.tensors import mean_flat


@recorded
class Halving(Identity):
    """A codec that is told apart from no codec."""


class Distillation(distillation.Distillation):
    """The plainest of the family: the student answers as the teacher does."""

    def loss(self, batch, u=None):
        x, cond = self.inputs(batch)
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        noisy = noised(x, sigma)
        return {"loss": mean_flat((self.denoiser(noisy, sigma, cond) - self.teacher(noisy, sigma, cond) - 0.1 * x).square())}


def points(**options):
    """A denoiser of pairs of numbers, away from zero."""
    net = MLP(2, width=16, depth=1, **options)
    nn.init.normal_(net.head.weight)
    return Denoiser(net)


def coloured():
    return UNet(channels=3, classes=4, width=16, mults=(1, 2), blocks=1)


def fit(module, steps, folder, data=pictures, **options):
    trainer = L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, max_epochs=-1, max_steps=steps, **options)  # fmt: skip
    trainer.fit(module, DataLoader([data(6)] * 8, batch_size=None))
    return trainer


def test_only_the_student_learns(tmp_path):
    """The teacher is frozen, in evaluation mode, not averaged; the one given by the caller is left as it was."""
    given = points(classes=3).eval()
    module = Distillation(given, shape=(2,))
    assert all(p.requires_grad for p in given.parameters())
    assert not any(p.requires_grad for p in module.teacher.parameters()) and module.denoiser.training
    assert set(module.averaged_parameters()) == set(module.trained_parameters()) == {f"denoiser.{k}" for k, _ in given.named_parameters()}
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    module.eval()
    fit(module, 2, tmp_path, lambda n: {"x": torch.rand(n, 2), "label": torch.arange(n) % 3})
    assert module.denoiser.training and module.denoiser.net.training and not module.teacher.net.training
    for name, value in module.teacher.state_dict().items():
        assert torch.equal(value, before[name]) and torch.equal(value, given.state_dict()[name])
        assert not torch.equal(value, module.denoiser.state_dict()[name])


def test_a_student_outlives_the_file_of_its_teacher(tmp_path):
    """Its checkpoint holds the teacher's recipe and, once, its weights."""
    fit(edm(), 1, tmp_path).save_checkpoint(tmp_path / "teacher.ckpt")
    teacher = diffx.load(tmp_path / "teacher.ckpt", weights="raw", part="denoiser")
    module = diffx.techniques.GuidanceDistillation(teacher, shape=(1, 8, 8))
    fit(module, 1, tmp_path).save_checkpoint(tmp_path / "student.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    assert recipe_of(module)["teacher"] == recipe_of(edm().denoiser)
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    assert sum(name.startswith("teacher.") for name in saved) == len(teacher.state_dict())
    loaded = diffx.load(tmp_path / "student.ckpt", weights="raw")
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=-1,
                        enable_model_summary=False, enable_checkpointing=False, max_steps=2)  # fmt: skip
    trainer.fit(loaded, DataLoader([pictures(6)] * 8, batch_size=None), ckpt_path=tmp_path / "student.ckpt")
    assert trainer.global_step == 2 and loaded.images_seen == 12


def test_a_whole_module_as_teacher_brings_its_codec():
    teacher = edm(codec=Halving())
    module = Distillation(teacher, shape=(1, 8, 8))
    assert module.codec is teacher.codec and not isinstance(module.teacher, L.LightningModule)
    assert Distillation(teacher, shape=(1, 8, 8), codec=Halving()).codec == Halving()


def test_what_is_equal_need_not_be_written_alike():
    student = Denoiser(MLP(2, width=16, depth=1), EDMPrecond(sigma_data=0.5))
    assert Distillation(points(), student, shape=(2,)).denoiser is student
    assert Distillation(edm(), shape=(1, 8, 8), codec=Identity()).codec == Identity()


def test_warm_start_copies_by_name_and_leaves_the_rest():
    teacher, student = points(), points(vectors={"size": 3})
    x, sigma = torch.randn(4, 2), torch.rand(4)
    new = {name: p.clone() for name, p in student.net.vectors.named_parameters()}
    module = Distillation(teacher, student, shape=(2,))
    for name, value in teacher.state_dict().items():
        assert torch.equal(module.denoiser.state_dict()[name], value)
    assert all(torch.equal(p, new[name]) for name, p in module.denoiser.net.vectors.named_parameters())
    other = points()
    expected = other(x, sigma)
    assert torch.equal(Distillation(teacher, other, shape=(2,), warm_start=False).denoiser(x, sigma), expected)


def unfit(teacher, student=None, **options):
    return lambda: Distillation(teacher, student, **{"shape": (2,), **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            unfit(points(classes=3), points()),
            r"student \(MLP\) must take what the teacher \(MLP\) takes: \{'label': 3\}, but has \{'label': 0",
        ),
        (unfit(points(vectors={"size": 3}), points(vectors={"size": 2})), r"\{'size': 3\}, but has \{'size': 2\}"),
        (unfit(points(), Denoiser(MLP(2, width=8))), "no tensor of that name and shape for .*warm_start = False"),
        (unfit(points(), Denoiser(MLP(2, width=16, depth=1), EDMPrecond(0.7))), r"is EDMPrecond\(sigma_data=0.7.*trained with .*0.5"),
        (unfit(points(), Denoiser(MLP(2, width=16, depth=1), EpsPrecond())), "is EpsPrecond.* was trained with EDMPrecond"),
        (unfit(points(vectors={"a": 1}), points(vectors={"b": 1, "a": 1})), r"its vectors \['b', 'a'\] must begin with .* \['a'\]"),
        (unfit(edm()), r"shape is \(2,\), but the teacher was trained on samples of shape \(1, 8, 8\)"),
        (unfit(edm(codec=Halving()), shape=(1, 8, 8), codec=Identity()), "trained with the codec .*Halving.* got codec = .*Identity"),
        (unfit(points(), scales=(1, 4)), r"needs a student that is told them.*MLP has \{\}"),
        (unfit(points(vectors={"guidance": 1})), "is told the guidance scale: give scales"),
        (unfit(points(vectors={"guidance": 1}), scales=(4, 1)), r"got \(4, 1\): an empty range"),
        (unfit(points(vectors={"guidance": 1}), scales=(1,)), "empty range"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("teacher", "student", "who"),
    [(unet(), coloured(), "student"), (coloured(), unet(), "teacher")],
)
def test_other_channels_are_refused_before_the_first_step(teacher, student, who, tmp_path):
    module = Distillation(Denoiser(teacher), Denoiser(student), shape=(1, 8, 8), warm_start=False)
    with pytest.raises(
        ValueError, match=rf"teacher \(UNet\) and student \(UNet\) must map samples of shape \(1, 8, 8\), but the {who} does"
    ):
        fit(module, 1, tmp_path)


def test_the_scale_is_told_and_not_evaluated_twice():
    """One scale per sample works too; what was not distilled is refused."""
    told = points(classes=3, vectors={"guidance": 1})
    module = Distillation(told, shape=(2,), scales=(1.0, 5.0), sampler=Euler(3))
    calls = []
    module.denoiser.net.register_forward_pre_hook(lambda net, args: calls.append(args))
    cond = labels(2)
    two = module.sample(2, cond, guidance=torch.tensor([2.0, 3.5]), seed=0)
    assert len(calls) == 3 and calls[0][2].vectors["guidance"].tolist() == [[2.0], [3.5]] and len(calls[0][0]) == 2
    for row, scale in enumerate((2.0, 3.5)):
        alone = module.sample(1, cond.rows(slice(row, row + 1)), guidance=scale, seed=row)
        torch.testing.assert_close(alone[0], two[row])
    for wrong in (0.0, 5.5, torch.tensor([1.0, 6.0])):
        with pytest.raises(ValueError, match="distilled for guidance scales from 1 to 5"):
            module.sample(2, cond, guidance=wrong)


def test_scales_of_a_batch_are_spread_over_the_range():
    module = Distillation(points(classes=3, vectors={"guidance": 1}), shape=(2,), scales=(2.0, 6.0))
    _, cond = module.inputs({"x": torch.zeros(8, 2), "label": torch.zeros(8, dtype=torch.int64)})
    strata = ((cond.vectors["guidance"][:, 0] - 2) / 4 * 8).long()
    assert sorted(strata.tolist()) == list(range(8))


@pytest.mark.parametrize(("steps", "factor"), [(16, 0.80935), (32, 0.90271), (64, 0.95088), (128, 0.97533), (256, 0.98763)])
def test_encoding_and_decoding_lose_one_order_of_the_step(steps, factor):
    """On N(0, 0.5^2) the round trip between levels 0.02 and 10 multiplies by a closed product; a fresh network is that very denoiser."""
    module = Distillation(Denoiser(MLP(1, width=8, depth=1)), shape=(1,)).double()
    walk = Euler(steps, Karras(0.02, 10.0))
    x = torch.tensor([[0.3]], dtype=torch.float64)
    noise = module.encode(x, sampler=walk)
    levels = walk.sigmas()[:-1]
    down = walk.walk(module.denoiser, noise * levels[0], levels)
    assert down.item() / 0.3 == pytest.approx(factor, abs=1e-4)
    last = module.denoiser(down, torch.tensor([0.02], dtype=torch.float64))
    torch.testing.assert_close(module.decode(noise, sampler=walk), last)


def test_encoding_leaves_the_mode_alone():
    module = Distillation(points(classes=3), shape=(2,), sampler=Euler(3, Karras(0.02)))
    noise = module.encode(torch.rand(2, 2), Cond(label=torch.tensor([0, 1])))
    assert noise.shape == (2, 2) and module.training and not noise.requires_grad
    assert module.decode(noise, Cond(label=torch.tensor([2, 2]))).abs().max() <= 1
