"""What the measuring callbacks report: loss by noise band, speed, lines of progress, stored averages."""

from __future__ import annotations

import copy
import re
import sys

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.profilers import SimpleProfiler
from safetensors.torch import load_file
from toys import Toy, same, toy_data, trainer

from diffx.averages import Power, reconstruct, snapshots_in
from diffx.callbacks import EMA, NoiseBands, PowerSnapshots, ProgressLine, Throughput, progress, throughput


class Notes(Logger):
    """Keeps what is logged as (step, name, value)."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = "notes"

    def log_metrics(self, metrics, step=None):
        self.rows += [(step, name, float(value)) for name, value in metrics.items()]

    def log_hyperparams(self, *_):
        pass

    def of(self, prefix):
        return {(step, name): value for step, name, value in self.rows if name.startswith(prefix)}


class Known(Toy):
    """Its loss is a known function of u."""

    def loss(self, batch, u=None):
        u = self.positions(len(batch["x"])) if u is None else u
        return {"loss": u**2 + 0 * self.denoiser.last.bias.sum()}


def test_bands_are_the_means_of_the_loss_over_their_part_of_the_schedule(tmp_path):
    notes = Notes()
    trainer(tmp_path, 2, [NoiseBands(bands=4, batches=None)], logger=notes, val_check_interval=2).fit(Known(), toy_data())
    logged = {name: value for (_, name), value in notes.of("bands/").items()}
    assert set(logged) == {"bands/0.000-0.250", "bands/0.250-0.500", "bands/0.500-0.750", "bands/0.750-1.000", "bands/mean"}
    for band in range(4):
        low, high = band / 4, (band + 1) / 4
        mean = (high**3 - low**3) / 3 / (high - low)
        assert logged[f"bands/{low:.3f}-{high:.3f}"] == pytest.approx(mean, abs=2e-3)
    assert logged["bands/mean"] == pytest.approx(1 / 3, abs=1e-3)


def test_bands_are_the_same_in_every_validation_of_the_same_weights(tmp_path):
    module, first, second = Toy(), Notes(), Notes()
    for notes in (first, second):
        torch.rand(7)  # whatever was drawn in between
        trainer(tmp_path, 1, [NoiseBands(bands=3)], logger=notes).validate(module, datamodule=toy_data(), verbose=False)
    assert first.of("bands/") == second.of("bands/") and len(first.of("bands/")) == 4


def test_bands_leave_training_alone_and_the_checkpoint_too(tmp_path):
    plain, measured = Toy(), Toy()
    trainer(tmp_path, 6).fit(plain, toy_data())
    run = trainer(tmp_path, 6, [NoiseBands()], val_check_interval=2, num_sanity_val_steps=1)
    run.fit(measured, toy_data())
    assert same(dict(plain.state_dict()), dict(measured.state_dict()))
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert not torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]


def test_bands_see_the_averages(tmp_path):
    module, ema, notes = Toy(), EMA(halflife=1e6, rampup=1e3), Notes()
    trainer(tmp_path, 4, [ema, NoiseBands(bands=2)], logger=notes, val_check_interval=4).fit(module, toy_data())
    again = Notes()
    with ema.applied(module):
        trainer(tmp_path, 1, [NoiseBands(bands=2)], logger=again).validate(module, datamodule=toy_data(), verbose=False)
    assert list(again.of("bands/").values()) == pytest.approx(list(notes.of("bands/").values()), rel=1e-6)


class Stage:
    """A clock that moves only where the run takes its time: 10 s a training step, 30 s a batch of data, 200 s a validation batch."""

    def __init__(self, monkeypatch):
        self.now, stage = 0.0, self
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: stage.now)

        class Slow(Toy):
            def training_step(self, batch, batch_idx):
                stage.now += 10
                return super().training_step(batch, batch_idx)

            def validation_step(self, batch, batch_idx):
                stage.now += 200

        class Data:
            def __iter__(self):
                for _ in range(100):
                    stage.now += 30
                    yield {"x": torch.zeros(4, 1, 4, 4), "label": torch.zeros(4, dtype=torch.long)}

        rows = [{"x": torch.zeros(1, 4, 4), "label": torch.tensor(0)} for _ in range(4)]
        self.parts = Slow(), Data(), torch.utils.data.DataLoader(rows, batch_size=4)


def test_throughput_measures_steps_and_waiting_without_validation(tmp_path, monkeypatch):
    stage, notes, speed = Stage(monkeypatch), Notes(), Throughput(every_n_steps=5)
    trainer(tmp_path, 10, [speed], logger=notes, val_check_interval=3).fit(*stage.parts)
    rates = notes.of("speed/")
    assert {step for step, _ in rates} == {5, 10} and stage.now > 600
    for step in (5, 10):
        assert rates[step, "speed/step_s"] == pytest.approx(40)
        assert rates[step, "speed/images_per_s"] == pytest.approx(4 / 40)
        assert rates[step, "speed/data_wait"] == pytest.approx(30 / 40)
    assert speed.rates == {name: rates[10, name] for name in speed.rates}


def test_throughput_counts_all_micro_batches(tmp_path):
    speed = Throughput(every_n_steps=2)
    trainer(tmp_path, 2, [speed], accumulate_grad_batches=3).fit(Toy(), toy_data())
    assert speed.rates["speed/images_per_s"] * speed.rates["speed/step_s"] == pytest.approx(12)


class Layer(Toy):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["x"].flatten(1)).square().mean()


def test_throughput_counts_operations(tmp_path):
    """Two a multiply-add for the outputs and for the weights' gradients; data has no gradient."""
    speed, module = Throughput(every_n_steps=2), Layer()
    plain = copy.deepcopy(module)
    trainer(tmp_path, 2, [speed], accumulate_grad_batches=3).fit(module, toy_data())
    assert speed.flops == 2 * (2 * 4 * 16 * 16)
    assert speed.rates["speed/gflop_s"] * speed.rates["speed/step_s"] * 1e9 == pytest.approx(3 * speed.flops)
    trainer(tmp_path, 2, accumulate_grad_batches=3).fit(plain, toy_data())
    assert same(dict(plain.state_dict()), dict(module.state_dict()))


def test_throughput_counts_nothing_it_cannot_see(tmp_path):
    speed, module = Throughput(every_n_steps=1), Layer()
    module.layer.compile(backend="eager")
    trainer(tmp_path, 1, [speed]).fit(module, toy_data())
    assert speed.flops == 0 and "speed/gflop_s" not in speed.rates


def test_an_error_in_the_first_step_leaves_no_counter_behind(tmp_path):
    class Broken(Layer):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("broken")

    speed = Throughput(every_n_steps=1)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, 1, [speed]).fit(Broken(), toy_data())
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_throughput_leaves_another_profiler_alone(tmp_path):
    speed, profiler = Throughput(every_n_steps=1), SimpleProfiler()
    run = trainer(tmp_path, 1, [speed], profiler=profiler)
    run.fit(Toy(), toy_data())
    assert run.profiler is profiler and "speed/data_wait" not in speed.rates and speed.rates["speed/step_s"] > 0


def test_lines_of_progress(tmp_path, capsys):
    run = trainer(tmp_path, 5, [ProgressLine(every_n_steps=2)], enable_progress_bar=True, val_check_interval=4)
    run.fit(Toy(), toy_data())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "4"]
    assert re.fullmatch(r"step 2/5  loss [\d.]+  [\d.e+]+ images/s  lr 0.01", lines[0])
    assert re.fullmatch(r"step 4  validation  val/loss [\d.]+", lines[2])


def test_the_printed_loss_does_not_depend_on_accumulation(tmp_path, capsys):
    class One(Toy):
        def loss(self, batch, u=None):
            return {"loss": 1 + 0 * self.denoiser.last.bias.sum()}

    trainer(tmp_path, 1, [ProgressLine(1)], enable_progress_bar=True, accumulate_grad_batches=4).fit(One(), toy_data())
    assert "step 1/1  loss 1  " in capsys.readouterr().out


def test_a_known_gradient_norm_is_shown(tmp_path, capsys):
    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            pl_module.log("train/grad_norm", 1.5)

    trainer(tmp_path, 1, [Norm(), ProgressLine(1)], enable_progress_bar=True).fit(Toy(), toy_data())
    assert "grad norm 1.5" in capsys.readouterr().out


def test_disabled_lines_are_silent(tmp_path, capsys):
    line = ProgressLine(1)
    line.disable()
    trainer(tmp_path, 2, [line], enable_progress_bar=True, val_check_interval=2).fit(Toy(), toy_data())
    assert "step 1" not in capsys.readouterr().out


@pytest.mark.parametrize(("terminal", "kind"), [(True, TQDMProgressBar), (False, ProgressLine)])
def test_progress_suits_the_output(monkeypatch, terminal, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    bar = progress()
    assert type(bar) is kind
    assert not terminal or bar.refresh_rate >= 20


def test_snapshots_are_written_on_time_and_give_back_the_averages(tmp_path):
    snapshots = PowerSnapshots(every_images=12, sigma_rels=(0.05, 0.10))
    run = trainer(tmp_path, 7, [EMA(), snapshots])
    run.fit(Toy(), toy_data())
    found = snapshots_in(tmp_path / "snapshots")
    assert sorted({s.images for s in found}) == [12, 24, 28] and len(found) == 6  # 28: the end of training
    for width in (0.05, 0.10):
        weights = reconstruct(tmp_path / "snapshots", width)
        for name, w in snapshots.shadows.weights[f"{width:g}"].items():
            torch.testing.assert_close(weights[name], w, rtol=1e-3, atol=1e-3)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert set(torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]) == {"diffx.EMA", "diffx.PowerSnapshots"}


def test_snapshots_after_a_resume_are_those_of_the_whole_run(tmp_path):
    def run(folder, steps, resume=None):
        fit = trainer(tmp_path / folder, steps, [PowerSnapshots(every_images=8)])
        fit.fit(Toy(), toy_data(), ckpt_path=resume, weights_only=True if resume else None)
        fit.save_checkpoint(tmp_path / folder / "x.ckpt")

    run("whole", 6)
    run("parts", 4)
    run("parts", 6, tmp_path / "parts/x.ckpt")
    whole, parts = ({path.name: load_file(path) for path in (tmp_path / name / "snapshots").iterdir()} for name in ("whole", "parts"))
    assert same(whole, parts) and len(whole) == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseBands(bands=0), lambda: NoiseBands(batches=0), lambda: Throughput(0), lambda: ProgressLine(0),
        lambda: PowerSnapshots(0), lambda: PowerSnapshots(sigma_rels=(0.5,)), lambda: PowerSnapshots(sigma_rels=()),
    ],
)  # fmt: skip
def test_constructors_refuse(make):
    with pytest.raises(ValueError, match=r"at least|must lie"):
        make()


@pytest.mark.parametrize("make", [NoiseBands, Throughput, ProgressLine, PowerSnapshots])
def test_recipes(make):
    assert make()._recipe["_target_"] == f"diffx.callbacks.{make.__name__}"
    assert Power(0.1)._recipe["sigma_rel"] == 0.1


def test_csv_logger_takes_everything(tmp_path):
    callbacks = [Throughput(1), NoiseBands(bands=2)]
    trainer(tmp_path, 2, callbacks, logger=CSVLogger(tmp_path), val_check_interval=2, log_every_n_steps=1).fit(Toy(), toy_data())
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
    assert "speed/images_per_s" in header and "bands/mean" in header
