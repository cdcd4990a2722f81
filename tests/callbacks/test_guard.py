"""Steps that are not finite leave no trace in the weights; too many end the run; what is written down names the culprits."""

from __future__ import annotations

import json

import lightning as L
import pytest
import torch
from toys import Toy, same, toy_data, trainer

from diffx import EDM, Denoiser
from diffx.callbacks import Checkpoints, Guard
from diffx.networks import UNet


class Poison(Guard):
    """A guard that first spoils the loss's gradient on some steps, as a broken sample would."""

    steps: tuple[int, ...] = ()
    factor = float("nan")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in self.steps:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.mul_(self.factor)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)


def run(folder, guard, steps=6, module=None, more=()):
    module = module or Toy(counts=False)
    states = []

    class Watch(L.Callback):
        def on_train_batch_end(self, t, m, *args):
            states.append([p.detach().clone() for p in m.parameters()])

    trainer(folder, steps, [guard, Watch(), Checkpoints(), *more], gradient_clip_val=1.0).fit(module, toy_data())
    return states


def toy(fused):
    """A fused optimizer is told on the device, another one finds no gradients."""
    module = Toy(counts=False)
    module.optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=fused)
    return module


@pytest.mark.parametrize(("fused", "look_every"), [(False, None), (False, 4), (True, None), (True, 4), (True, 100)])
def test_a_bad_step_changes_nothing_and_is_written_down(tmp_path, fused, look_every):
    guard = Poison(look_every=look_every)
    guard.steps = (2, 4)
    states = run(tmp_path, guard, module=toy(fused))
    assert guard.skipped == 2
    assert [same(states[n], states[n - 1]) for n in range(1, 6)] == [False, True, False, True, False]
    assert all(p.isfinite().all() for p in states[-1])
    found = json.loads((tmp_path / "guard/step_00000002_rank0.json").read_text())
    assert len(found["micro_batches"][0]["index"]) == 4 and found["gradients_not_finite"] and found["gradient_norm"] == "nan"
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["diffx.Guard"]["total"] == 2


@pytest.mark.parametrize("fused", [False, True])
def test_an_innocent_guard_changes_nothing(tmp_path, fused):
    with_guard = run(tmp_path / "c", Guard(spike=9, window=3, look_every=4), module=toy(fused))
    module = toy(fused)
    trainer(tmp_path / "d", 6, gradient_clip_val=1.0).fit(module, toy_data())
    without = [p.detach() for p in module.parameters()]
    assert same(with_guard[-1], without)


def test_a_broken_batch_is_named_with_its_noise_levels(tmp_path):
    module = EDM(Denoiser(UNet(channels=1, width=8, mults=[1], blocks=1)), shape=(1, 4, 4))

    class Break(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch["x"][1] = float("nan")

    module.check_batch = lambda batch: None
    with pytest.raises(FloatingPointError, match="3 steps in a row were left out, 2 may be"):
        run(tmp_path, Guard(skips=2), module=module, more=[Break()])
    (batch,) = json.loads((tmp_path / "guard/step_00000002_rank0.json").read_text())["micro_batches"]
    assert batch["rows_not_finite"] == {"x": [1]} and batch["loss"] == "nan"
    assert len(batch["levels"]["denoiser"]) == 4 and min(batch["levels"]["denoiser"]) > 0
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_spikes(tmp_path, fused):
    guard = Poison(spike=5.0, window=20, look_every=3)
    guard.steps, guard.factor = (25,), 1e4
    states = run(tmp_path, guard, steps=28, module=toy(fused))
    assert guard.skipped == 1 and same(states[25], states[24]) and not same(states[26], states[25])


def test_what_a_step_leaves_out_it_leaves_out_of_the_optimizers_state_too(tmp_path):
    """With one bad step in between, weights and state are those of a run without it on the same gradients."""
    optimizers = []
    for at in ((), (1,)):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(5))
        optimizer = torch.optim.AdamW([p], lr=0.1, fused=True)
        for step in range(3):
            if step == 1 and not at:
                continue
            p.grad = torch.full((5,), float("nan") if step in at else 1.0 + step)
            optimizer.found_inf = (~p.grad.isfinite().all()).float()
            optimizer.step()
        optimizers.append((p.detach(), optimizer.state[p]))
    assert same(*optimizers)


def test_a_run_that_should_end_ends_at_the_next_look_with_its_weights_whole(tmp_path):
    module, guard = toy(fused=True), Poison(skips=2, look_every=8)
    guard.steps = tuple(range(3, 20))
    with pytest.raises(FloatingPointError, match=r"the gradient of step 5 is not finite.*3 steps in a row were left out, 2 may be"):
        run(tmp_path, guard, steps=20, module=module)
    assert all(p.isfinite().all() for p in module.parameters())
    found = json.loads((tmp_path / "guard/step_00000004_rank0.json").read_text())
    assert len(found["micro_batches"][0]["index"]) == 4 and found["gradients_not_finite"]
    assert module.trainer.global_step == 7  # the eighth step was judged with those before it


def test_spoilt_buffers_cannot_be_left_out(tmp_path):
    module = Toy(counts=False)
    guard = Poison()
    guard.steps = (1,)
    module.denoiser.drift.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"spoilt denoiser\.drift"):
        run(tmp_path, guard, module=module)


def test_advice_for_memory(tmp_path):
    module = Toy(counts=False)

    def loss(batch, u=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module.loss = loss
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(tmp_path, Guard(), module=module)
    assert "accumulate_grad_batches=2" in caught.value.__notes__[0]


def test_arguments():
    with pytest.raises(ValueError, match="spike > 0"):
        Guard(spike=-1)
    with pytest.raises(ValueError, match="look_every must be at least 1"):
        Guard(look_every=0)
