"""Checkpoints of a real run: when they are written, which are kept, what a damaged or interrupted one costs."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from lightning import Callback
from toys import Toy, same, toy_data, trainer

from diffx import files
from diffx.callbacks import EMA, AtomicCheckpointIO, Checkpoints, latest


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def load(path):
    return torch.load(path, weights_only=True)


def state(path) -> dict:
    """What decides how training goes on."""
    checkpoint = load(path)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "global_step", "diffx", "Arrays", "callbacks")}


def run(folder, steps, *more, every=3, keep=3, resume=None, counts=True, **options):
    module = Toy(counts=counts)
    fit = trainer(folder, steps, [EMA(halflife=30), *more, Checkpoints(every_n_steps=every, keep=keep)], **options)
    fit.fit(module, toy_data(), ckpt_path=resume)
    return module


def test_every_n_steps_and_at_the_end(tmp_path):
    run(tmp_path, 11)
    assert names(tmp_path) == ["last.ckpt", "step_00000006.ckpt", "step_00000009.ckpt", "step_00000011.ckpt"]
    assert os.path.samefile(tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/step_00000011.ckpt")
    assert load(latest(tmp_path / "checkpoints"))["global_step"] == 11


def test_keeps_as_many_as_asked(tmp_path):
    run(tmp_path, 8, every=1, keep=2)
    assert names(tmp_path) == ["last.ckpt", "step_00000007.ckpt", "step_00000008.ckpt"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [6, 7])
def test_resume_from_last_is_bitwise_exact(tmp_path, accumulate, stop):
    """Stopped on and off the interval, with validations before, between and at the stop."""
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3 * accumulate}
    run(tmp_path / "whole", 12, **options)
    run(tmp_path / "parts", stop, **options)
    run(tmp_path / "parts", 12, resume=tmp_path / "parts/checkpoints/last.ckpt", **options)
    assert same(state(tmp_path / "whole/checkpoints/last.ckpt"), state(tmp_path / "parts/checkpoints/last.ckpt"))


class Fail(Callback):
    """Raises at a point of the batch after ``steps`` optimizer steps."""

    def __init__(self, hook, error, steps, micro=0):
        setattr(self, hook, self._fail)
        self.error, self.steps, self.micro = error, steps, micro

    def _fail(self, trainer, *_):
        if trainer.global_step == self.steps:
            self.micro -= 1
            if self.micro < 0:
                raise self.error


INTERRUPTIONS = ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_validation_batch_start"]


@pytest.mark.parametrize("hook", INTERRUPTIONS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()], ids=["ctrl-c", "error"])
def test_an_interruption_saves_the_last_step_and_resumes_exactly(tmp_path, hook, error):
    options = {"val_check_interval": 4, "counts": False}
    run(tmp_path / "whole", 7, **options)
    with pytest.raises((SystemExit, ZeroDivisionError)):
        run(tmp_path / "parts", 7, Fail(hook, error, steps=4), every=100, **options)
    assert names(tmp_path / "parts") == ["last.ckpt", "step_00000004.ckpt"]
    run(tmp_path / "parts", 7, resume=tmp_path / "parts/checkpoints/last.ckpt", **options)
    assert same(state(tmp_path / "whole/checkpoints/last.ckpt"), state(tmp_path / "parts/checkpoints/last.ckpt"))


@pytest.mark.parametrize(
    ("hook", "micro", "counts"),
    [("on_train_batch_start", 1, False), ("on_before_optimizer_step", 0, False), ("on_after_backward", 0, True)],
)
def test_nothing_is_saved_between_two_steps(tmp_path, hook, micro, counts):
    """After one of two micro-batches, while the optimizer is at work, or when a forward pass has changed buffers, no state is whole."""
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, 7, Fail(hook, ZeroDivisionError(), steps=4, micro=micro), accumulate_grad_batches=2, counts=counts)
    assert names(tmp_path) == ["last.ckpt", "step_00000003.ckpt"]


def test_saves_only_after_whole_steps(tmp_path, monkeypatch):
    """With accumulation the step count stands still for micro-batches: each step is saved once."""
    saved, save = [], AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", lambda *a, **k: saved.append(a[1]["global_step"]) or save(*a, **k))
    run(tmp_path, 4, every=2, accumulate_grad_batches=2)
    assert saved == [2, 4]


def test_a_damaged_last_falls_back(tmp_path, caplog):
    run(tmp_path, 6)
    path = tmp_path / "checkpoints" / "last.ckpt"
    with open(path, "r+b") as file:
        file.truncate(1000)  # a hard link: the newest step goes with it
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        run(tmp_path, 9, resume=path)
    good = latest(tmp_path / "checkpoints")
    assert good == tmp_path / "checkpoints" / "step_00000003.ckpt" and "falling back" in caplog.text
    run(tmp_path, 9, resume=good)
    assert load(path)["global_step"] == 9


def test_a_full_disk_stops_the_run_with_path_and_reason(tmp_path, monkeypatch):
    module = Toy()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*step_00000003\.ckpt: No space left on device"):
        trainer(tmp_path, 9, [Checkpoints(every_n_steps=3)]).fit(module, toy_data())
    assert module.images_seen == 12 and names(tmp_path) == []


def test_leftovers_of_killed_saves_go(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.99.tmp").write_bytes(b"half a checkpoint")
    run(tmp_path, 1)
    assert names(tmp_path) == ["last.ckpt", "step_00000001.ckpt"]


def test_brings_its_writer_but_respects_another(tmp_path):
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    plain = trainer(tmp_path, 1, [Checkpoints()])
    plain.fit(Toy(), toy_data())
    assert isinstance(plain.strategy.checkpoint_io, AtomicCheckpointIO)
    other = trainer(tmp_path, 1, [Checkpoints()], plugins=[AsyncCheckpointIO(AtomicCheckpointIO())])
    assert isinstance(other.strategy.checkpoint_io, AsyncCheckpointIO)


def test_replaces_lightnings_own_checkpoint_callback(tmp_path):
    fit = trainer(tmp_path, 1, [Checkpoints()])
    assert [type(callback) for callback in fit.checkpoint_callbacks] == [Checkpoints]


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"keep": 0}])
def test_constructor_refuses(options):
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(**options)


def test_latest_is_the_one_of_files():
    assert latest is files.latest
