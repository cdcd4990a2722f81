"""The base of all techniques: keyed seeding, counters, parameter groups, frozen parts, phases, errors at the border."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from technique_list import labels, pictures, unet
from torch import nn

from diffx import EDM, Cond, Denoiser
from diffx.lr_schedules import Ramp
from diffx.module import DiffusionModule


class Recorder(DiffusionModule):
    """Notes what a training step draws; one weight."""

    trained = averaged = ("weight",)

    def __init__(self, **options):
        super().__init__(shape=(2,), **options)
        self.weight = nn.Parameter(torch.ones(()))
        self.drawn = []

    def loss(self, batch, u=None):
        u = self.positions(len(batch["x"])) if u is None else u
        self.drawn.append((u, torch.randn(3)))
        return {"loss": self.weight.square() * batch["x"].mean(1)}

    def sample(self, n, cond=Cond(), **options):
        return self.sampled(n, cond, lambda shape, *_: torch.zeros(shape), seed=0, shape=None, chunk=None)


def fit(module, batches, steps, **options):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        max_epochs=-1, max_steps=steps, **options)  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


def test_two_ranks_draw_what_one_rank_draws_in_two_micro_batches():
    """Slices are cut alike, so that levels and noise of a global batch do not depend on how it is spread."""

    def step(rank, world, micro_batches, batch_idx, global_step=3):
        module = Recorder()
        module._trainer = SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": world}, log_every_n_steps=10**6,
                                          accumulate_grad_batches=micro_batches, global_step=global_step)  # fmt: skip
        module.training_step({"x": torch.ones(4, 2)}, batch_idx)
        return module.drawn[0]

    spread = [step(rank, 2, 1, batch_idx=3) for rank in (0, 1)]
    stacked = [step(0, 1, 2, batch_idx=6 + micro) for micro in (0, 1)]
    for (u, noise), (v, same) in zip(spread, stacked, strict=True):
        assert torch.equal(u, v) and torch.equal(noise, same)
    assert not torch.equal(spread[0][1], spread[1][1])
    strata = torch.cat([u for u, _ in spread]).mul(8).long().sort().values
    assert strata.tolist() == list(range(8))


def test_images_are_counted_per_optimizer_step_over_all_micro_batches():
    module = Recorder()
    fit(module, [{"x": torch.ones(4, 2)}] * 6, 3, accumulate_grad_batches=2)
    assert module.images_seen == 3 * 2 * 4


def test_learning_rate_follows_images_seen():
    rates = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    fit(Recorder(lr_schedule=Ramp(16.0)), [{"x": torch.ones(4, 2)}] * 6, 6, callbacks=[Rates()])
    assert rates == pytest.approx([1e-4 * factor for factor in (0, 0.25, 0.5, 0.75, 1, 1)])


def test_a_new_phase_starts_optimizer_and_learning_rate_afresh():
    heard = []

    class Turn(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 3:
                assert trainer.optimizers[0].state
                module.new_phase()
                assert not trainer.optimizers[0].state and trainer.optimizers[0].param_groups[0]["lr"] == 0

        def on_phase(self, trainer, module):
            heard.append((module.phase, module.phase_start))

    module = Recorder(lr_schedule=Ramp(16.0))
    trainer = fit(module, [{"x": torch.ones(4, 2)}] * 6, 5, callbacks=[Turn()])
    assert heard == [(1, (3, 12))]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4 * 8 / 16)


def test_gains_biases_and_tables_are_not_decayed():
    module = EDM(Denoiser(unet()), shape=(1, 8, 8))
    decayed, kept = module.parameter_groups()
    tables = [m.weight for m in module.modules() if isinstance(m, nn.Embedding)]
    assert all(p.ndim > 1 for p in decayed["params"]) and "weight_decay" not in decayed
    assert kept["weight_decay"] == 0 and all(p.ndim <= 1 or any(p is t for t in tables) for p in kept["params"])


def test_what_is_not_trained_stays_in_evaluation_mode():
    class Distilled(EDM):
        def __init__(self, student, teacher):
            super().__init__(student, shape=(1, 8, 8))
            self.teacher = teacher

    module = Distilled(Denoiser(unet()), Denoiser(unet())).train()
    assert module.denoiser.training and not module.teacher.training
    assert not [name for name in module.trained_parameters() if name.startswith("teacher")]


def test_a_loaded_module_trains_with_hidden_conditions_again():
    modes = []

    class Watch(Recorder):
        def loss(self, batch, u=None):
            modes.append(self.training)
            return super().loss(batch, u)

    fit(Watch().eval(), [{"x": torch.ones(4, 2)}] * 2, 2)
    assert modes == [True, True]


def test_validation_repeats_its_noise_and_leaves_training_noise_alone():
    def drawn(**options):
        module = Recorder()
        batches = [{"x": torch.ones(4, 2)}] * 4
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=-1,
                            enable_checkpointing=False, max_steps=4, num_sanity_val_steps=0, **options)  # fmt: skip
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        trainer.fit(module, loader, torch.utils.data.DataLoader(batches[:1], batch_size=None))
        return module.drawn

    plain = drawn(limit_val_batches=0)
    mixed = drawn(val_check_interval=2)
    training, validation = [mixed[i] for i in (0, 1, 3, 4)], [mixed[i] for i in (2, 5)]
    assert all(torch.equal(a[1], b[1]) and torch.equal(a[0], b[0]) for a, b in zip(plain, training, strict=True))
    assert torch.equal(validation[0][1], validation[1][1]) and torch.equal(validation[0][0], validation[1][0])


def test_shape_of_the_data_must_be_the_modules():
    class Data(L.LightningDataModule):
        shape = (3, 8, 8)

        def train_dataloader(self):
            return torch.utils.data.DataLoader([pictures(2)], batch_size=None)

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1)
    with pytest.raises(ValueError, match=r"module.shape is \(1, 8, 8\).*\(3, 8, 8\)"):
        trainer.fit(EDM(Denoiser(unet()), shape=(1, 8, 8)), Data())


def test_data_may_not_have_more_classes_than_the_network():
    class Data(L.LightningDataModule):
        shape, classes = (1, 8, 8), 10

        def train_dataloader(self):
            return torch.utils.data.DataLoader([pictures(2)], batch_size=None)

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1)
    with pytest.raises(ValueError, match=r"data has 10 classes.*network takes 4"):
        trainer.fit(EDM(Denoiser(unet()), shape=(1, 8, 8)), Data())


@pytest.mark.parametrize(("x", "error"), [(torch.full((4, 2), 255.0), ValueError), (torch.zeros(4, 2, dtype=torch.uint8), TypeError)])
def test_data_of_a_foreign_loader_is_looked_at_once(x, error):
    with pytest.raises(error, match=r"127\.5"):
        fit(Recorder(), [{"x": x}], 1)


def test_a_network_with_classes_is_not_trained_without_labels():
    unlabelled = [{"x": pictures(2)["x"]}]
    with pytest.raises(ValueError, match=r"labels of 4 classes.*\['x'\].*classes=0"):
        fit(EDM(Denoiser(unet()), shape=(1, 8, 8)), unlabelled, 1)
    fit(EDM(Denoiser(unet(classes=0)), shape=(1, 8, 8)), unlabelled, 1)


def test_sampling_checks_its_border():
    module = EDM(Denoiser(unet()), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="n = 3 and conditions for 2"):
        module.sample(3, labels(2))
    with pytest.raises(ValueError, match="n = 0"):
        module.sample(0)
    with pytest.raises(ValueError, match="guidance"):
        module.sample(2, guidance=2.0)
    with pytest.raises(ValueError, match="drop"):
        EDM(Denoiser(unet()), shape=(1, 8, 8), drop=0.0).sample(2, labels(2), guidance=2.0)
