"""Sample grids: reproducible, without a trace in training, drawn from the averages."""

from __future__ import annotations

import dataclasses

import lightning as L
import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image
from toys import CLASSES, SIDE, Toy, same, toy_data, trainer

from diffx import media
from diffx.audio import duration
from diffx.callbacks import EMA, Checkpoints, SampleLogger
from diffx.conditions import Cond


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def fit(folder, *callbacks, steps=5, resume=None, data=None, **options):
    module = Toy()
    run = trainer(folder, steps, callbacks, **options)
    run.fit(module, data or toy_data(), ckpt_path=resume)
    return run, module


def test_grids_are_named_by_step_and_the_last_is_kept(tmp_path):
    fit(tmp_path, SampleLogger(every_n_steps=2))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["last.png", "step_000002.png", "step_000004.png", "step_000005.png"]
    assert np.array_equal(pixels(tmp_path / "samples/last.png"), pixels(tmp_path / "samples/step_000005.png"))


def test_training_cannot_tell_that_samples_are_drawn(tmp_path):
    _, plain = fit(tmp_path / "off", EMA(halflife=30))
    _, watched = fit(tmp_path / "on", SampleLogger(every_n_steps=1), EMA(halflife=30))
    assert same(dict(plain.state_dict()), dict(watched.state_dict()))
    assert plain.training == watched.training and watched.denoiser.training == plain.denoiser.training


class Careless(Toy):
    """Draws from the default generator where it samples."""

    def sample(self, n, cond=Cond(), **options):
        return torch.rand(n, *self.shape) + 0 * self.denoiser.last.bias.mean()


class Generator(Callback):
    """Notes the state of the default generator."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, *_):
        self.states.append(torch.random.get_rng_state())


def test_the_default_generator_is_given_back(tmp_path):
    before, after = Generator(), Generator()
    trainer(tmp_path, 3, [before, SampleLogger(every_n_steps=1), after]).fit(Careless(), toy_data())
    assert same(before.states, after.states)
    assert np.array_equal(*(pixels(tmp_path / f"samples/step_{step:06d}.png") for step in (1, 3)))


def test_grids_do_not_depend_on_what_happened_before(tmp_path):
    """The same weights give the same grid in another process' life: after a resume, and with another interval."""
    fit(tmp_path / "whole", EMA(halflife=30), SampleLogger(every_n_steps=1), steps=6)
    fit(tmp_path / "parts", EMA(halflife=30), SampleLogger(every_n_steps=3), Checkpoints(), steps=3)
    fit(tmp_path / "parts", EMA(halflife=30), SampleLogger(every_n_steps=3), Checkpoints(), steps=6,
        resume=tmp_path / "parts/checkpoints/last.ckpt")  # fmt: skip
    for step in (3, 6):
        assert np.array_equal(*(pixels(tmp_path / run / f"samples/step_{step:06d}.png") for run in ("whole", "parts")))
    assert not np.array_equal(*(pixels(tmp_path / f"whole/samples/step_{step:06d}.png") for step in (3, 6)))


def test_the_grid_shows_the_averages_on_all_classes_from_fixed_noise(tmp_path):
    ema = EMA(halflife=30)
    _, module = fit(tmp_path, SampleLogger(every_n_steps=5, n=7, seed=3), ema)
    cond = Cond(label=torch.arange(7) % CLASSES)
    with ema.applied(module):
        expected = media.grid(module.sample(7, cond, seed=3))
    assert np.array_equal(pixels(tmp_path / "samples/last.png"), expected[0].numpy())
    assert not torch.equal(expected, media.grid(module.sample(7, cond, seed=3)))  # the raw weights look different


@pytest.mark.parametrize("cond", [[2, 0], Cond(label=torch.tensor([2, 0]))], ids=["labels", "bundle"])
def test_given_conditions_are_repeated(tmp_path, cond):
    _, module = fit(tmp_path, SampleLogger(n=5, cond=cond))
    expected = media.grid(module.sample(5, Cond(label=torch.tensor([2, 0, 2, 0, 2])), seed=0))
    assert np.array_equal(pixels(tmp_path / "samples/last.png"), expected[0].numpy())


class Captioned(Toy):
    """Its condition has a vector beside the label, so the rows of a real batch are shown, not all classes in turn."""

    def condition(self, batch):
        return dataclasses.replace(super().condition(batch), vectors={"size": torch.full((len(batch["x"]), 1), 7.0)})

    def sample(self, n, cond=Cond(), **options):
        self.asked = cond
        return super().sample(n, cond, **options)


def test_richer_conditions_come_from_the_first_validation_batch(tmp_path):
    module, data = Captioned(), toy_data()
    trainer(tmp_path, 2, [SampleLogger(n=6)]).fit(module, data)
    labels = next(iter(data.val_dataloader()))["label"]
    assert module.asked.label.tolist() == [labels[i % 4].item() for i in range(6)]
    assert module.asked.vectors["size"].shape == (6, 1)


def test_without_validation_data_a_training_batch_serves(tmp_path):
    module = Captioned()
    trainer(tmp_path, 2, [SampleLogger(n=3)], val_check_interval=None).fit(module, toy_data(val=0.0))
    assert len(module.asked) == 3


def test_tag_names_the_weights(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, callbacks in (("raw", []), ("ema", [EMA()])):
        fit(tmp_path / name, *callbacks, SampleLogger(), logger=TensorBoardLogger(tmp_path / name, name="tb", version=""))
        assert EventAccumulator(str(tmp_path / name / "tb")).Reload().Tags()["images"] == [f"samples/{name}"]


class Foreign(L.LightningDataModule):
    """Somebody else's data: no shape, no classes, no validation."""

    def train_dataloader(self):
        rows = [{"x": torch.zeros(1, SIDE, SIDE), "label": torch.tensor(i % CLASSES)} for i in range(8)]
        return torch.utils.data.DataLoader(rows, batch_size=2)


class Clips(Toy):
    """Samples are clips of four frames."""

    def __init__(self):
        super().__init__()
        self.shape = (1, 4, SIDE, SIDE)

    def sample(self, n, cond=Cond(), **options):
        return torch.linspace(-1, 1, 4).view(1, 1, 4, 1, 1).expand(n, 1, 4, SIDE, SIDE)


def test_clips_become_animations(tmp_path):
    trainer(tmp_path, 2, [SampleLogger(every_n_steps=2, n=4)], val_check_interval=None).fit(Clips(), Foreign())
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["last.gif", "step_000002.gif"]
    assert Image.open(tmp_path / "samples/last.gif").n_frames == 4


class Bells(Toy):
    """Samples are sounds."""

    def __init__(self):
        super().__init__()
        self.shape = (1, 512)

    def sample(self, n, cond=Cond(), **options):
        return torch.sin(torch.arange(512) / 3).expand(n, 1, 512)


def test_sounds_become_pictures_and_wav_files(tmp_path):
    class Ringing(Foreign):
        sample_rate = 4000

    trainer(tmp_path / "told", 2, [SampleLogger(every_n_steps=2, n=3)], val_check_interval=None).fit(Bells(), Ringing())
    trainer(tmp_path / "asked", 2, [SampleLogger(n=3, rate=1000)], val_check_interval=None).fit(Bells(), Foreign())
    trainer(tmp_path / "silent", 2, [SampleLogger(n=3)], val_check_interval=None).fit(Bells(), Foreign())
    names = sorted(path.name for path in (tmp_path / "told/samples").iterdir())
    assert names == ["last.png", "last.wav", "step_000002.png", "step_000002.wav"]
    assert duration(tmp_path / "told/samples/last.wav") == (4000, 1, 3 * (512 + 400))
    assert duration(tmp_path / "asked/samples/last.wav").rate == 1000
    assert [path.name for path in (tmp_path / "silent/samples").glob("last*")] == ["last.png"]


def test_what_cannot_be_shown_is_refused_before_the_first_step(tmp_path):
    module = Toy()
    module.shape = (2, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4\); remove the callback"):
        trainer(tmp_path, 1, [SampleLogger()], val_check_interval=None).fit(module, Foreign())
    assert module.images_seen == 0


def test_a_foreign_datamodule_is_enough(tmp_path):
    fit(tmp_path, EMA(), SampleLogger(n=3), data=Foreign(), steps=2, val_check_interval=None)
    assert (tmp_path / "samples/last.png").is_file()


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"n": 0}])
def test_constructor_refuses(options):
    with pytest.raises(ValueError, match="at least 1"):
        SampleLogger(**options)
