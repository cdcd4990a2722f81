"""What every technique promises, over the one list of them."""

import lightning as L
import pytest
import torch
from technique_list import TECHNIQUES

import diffx
from diffx import rng


@pytest.fixture(params=TECHNIQUES.values(), ids=TECHNIQUES.keys())
def case(request):
    return request.param


@pytest.fixture
def module(case):
    """A small module whose weights are all away from zero, so that nothing passes by being silent."""
    torch.manual_seed(0)
    module = case.make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def trainer(folder, **options):
    return L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                     enable_checkpointing=False, max_epochs=-1, **options)  # fmt: skip


def loader(case, count=8):
    return torch.utils.data.DataLoader([case.batch(6)] * count, batch_size=None)


def test_loss_is_named_and_finite(case, module):
    parts = module.loss(case.batch(6))
    assert "loss" in parts
    for name, value in parts.items():
        assert value.shape in ((6,), ()) and value.isfinite().all(), name


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_loss_is_a_function_of_the_position(case, module, level):
    """At a given u and noise nothing else is drawn; both ends of the schedule are finite."""
    module.eval()

    def at_level():
        rng.seed_default("position")
        return module.loss(case.batch(6), u=torch.full((6,), level))["loss"]

    assert torch.equal(at_level(), at_level()) and at_level().isfinite().all()


def test_gradients_reach_all_that_is_trained_and_nothing_else(case, module):
    """Two batches: the null conditions are only met when something is dropped."""
    module.drop = 0.5
    for _ in range(2):
        module.loss(case.batch(16))["loss"].mean().backward()
    trained = module.trained_parameters()
    for name, parameter in module.named_parameters():
        if name in trained:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{name} is trained but gets no gradient"
        else:
            assert parameter.grad is None and not parameter.requires_grad, f"{name} is frozen but gets a gradient"


def test_everything_trained_is_in_one_optimizer_group(module, tmp_path):
    module._trainer = trainer(tmp_path)
    groups = module.configure_optimizers()["optimizer"].param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.trained_parameters().values())


def test_samples_have_shape_range_and_a_repeatable_seed(case, module):
    first, again, other = (module.sample(3, case.cond(3), seed=seed) for seed in (5, 5, 6))
    assert first.shape == (3, *module.shape) and first.abs().max() <= 1
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_a_seeded_sample_does_not_depend_on_its_batch(case, module):
    """Sample i of seed s is sample 0 of seed s + i, in chunks of any size."""
    whole = module.sample(5, case.cond(5), seed=7)
    chunked = module.sample(5, case.cond(5), seed=7, chunk=2)
    alone = module.sample(1, case.cond(5).rows(slice(3, 4)), seed=10)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone[0], whole[3], atol=1e-4, rtol=0)


def test_sampling_leaves_the_mode_and_the_random_state_alone(case, module):
    module.train()
    state = torch.get_rng_state()
    module.sample(2, case.cond(2), seed=1)
    assert module.training and torch.equal(state, torch.get_rng_state())


def test_sampling_works_under_inference_mode(case, module):
    with torch.inference_mode():
        sample = module.sample(2, case.cond(2), seed=1)
    assert not sample.is_inference()


def test_two_training_steps_and_a_checkpoint_round_trip(case, module, tmp_path):
    before = {name: p.detach().clone() for name, p in module.trained_parameters().items()}
    run = trainer(tmp_path, max_steps=2, limit_val_batches=1, val_check_interval=1)
    run.fit(module, loader(case), loader(case, 1))
    assert run.global_step == 2 and module.images_seen == 12
    assert all(not torch.equal(before[name], p) for name, p in module.trained_parameters().items())

    run.save_checkpoint(tmp_path / "end.ckpt")
    stored = torch.load(tmp_path / "end.ckpt", weights_only=True)
    loaded = diffx.load(tmp_path / "end.ckpt", weights="raw")
    assert type(loaded) is type(module) and stored["diffx"]["images_seen"] == 12
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(module.sample(2, case.cond(2), seed=3), loaded.sample(2, case.cond(2), seed=3))


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_resumed_run_equals_the_uninterrupted_one(case, module, tmp_path, accumulation):
    """With a data loader that has no state of its own the module's part is exact: noise, levels, drops, optimizer, learning rate."""
    start = {name: value.clone() for name, value in module.state_dict().items()}

    def run(steps, checkpoint=None):
        module.load_state_dict(start)
        module.images_seen = 0
        fit = trainer(tmp_path, max_steps=steps, accumulate_grad_batches=accumulation)
        fit.fit(module, loader(case, 16), ckpt_path=checkpoint)
        return fit

    run(4)
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    run(2).save_checkpoint(tmp_path / "half.ckpt")
    run(4, tmp_path / "half.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, whole[name]), name
