"""Neither training nor sampling makes the processor wait for an accelerator, but for a few places that are known and listed here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sampler_list import SAMPLERS
from technique_list import TECHNIQUES, unet
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from waits import Waits, moved, nowhere

from diffx import Cond, Denoiser
from diffx.callbacks import Guard
from diffx.data.module import normalise
from diffx.schedules import Karras

# Which experts a batch needs is asked of the accelerator, so that the others need not run; the loss of hidden tokens alone is computed, so
# how many there are is asked.
WAITING = {"experts": "_unique2", "experts_sharing": "_unique2", "masked_tokens": "index", "masked_text": "index"}


def test_a_read_is_seen_and_a_transfer_that_is_not_waited_for_is_none():
    with nowhere() as mode:
        x = moved(torch.ones(3), mode)
        with Waits() as waits:
            torch.arange(3.0).to("cuda", non_blocking=True)
            assert float(torch.ones(3).sum()) == 3  # the processor's own
            assert not waits.seen
            x.cpu()
            torch.arange(3.0).to("cuda")
            with pytest.raises(DynamicOutputShapeException):
                x[x > 0]
    assert [entry.split(" at ")[0] for entry in waits.seen] == ["_to_copy from cuda to cpu", "_to_copy from cpu to cuda", "index"]


def others(names, quick):
    """All names; those that are not ``quick`` run with the slow tests."""
    blind = pytest.mark.xfail(reason="its loss holds a gradient of its own, which autograd does not take on a device that is not there")
    marks = {name: [pytest.mark.slow, *([blind] if name == "dmd" else [])] for name in names}
    return [name if name in quick else pytest.param(name, marks=marks[name]) for name in names]


@pytest.mark.parametrize("name", others(TECHNIQUES, {"edm", "dit", "masked_tokens"}))
def test_a_training_step_waits_for_nothing(name):
    case = TECHNIQUES[name]
    module = case.make().train()
    with nowhere() as mode:
        batch = moved(case.batch(2), mode)
        moved(module, mode)
        module._shared = torch.Generator()
        with Waits() as waits:
            if name in WAITING:
                with pytest.raises(DynamicOutputShapeException):
                    module.loss(batch)
            else:
                assert module.loss(batch)["loss"].device.type == "cuda"
    assert [entry.split(" at ")[0] for entry in waits.seen] == ([WAITING[name]] if name in WAITING else [])


@pytest.mark.parametrize("name", others(SAMPLERS, {"dpmpp_2m", "heun_churn"}))
def test_a_walk_waits_for_nothing(name):
    sampler, denoiser = SAMPLERS[name](4, Karras()), Denoiser(unet())
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with nowhere() as mode, torch.no_grad():
        moved(denoiser, mode)
        noise, cond = moved(torch.randn(2, 1, 8, 8), mode), Cond(label=moved(torch.zeros(2, dtype=torch.long), mode))
        with Waits() as waits:
            out = sampler(lambda x, sigma: denoiser(x, sigma, cond), noise, generator=generators)
    assert out.device.type == "cuda" and not waits.seen


@pytest.mark.parametrize("spike", [None, 5.0])
def test_the_guard_waits_for_nothing_between_two_looks(spike):
    """It judges 49 steps on the device; pictures are normalised there as well."""
    guard = Guard(spike=spike, window=2)
    with nowhere() as mode:
        p = torch.nn.Parameter(moved(torch.randn(3), mode))
        p.grad = moved(torch.randn(3), mode)
        module = SimpleNamespace(device=p.device)
        trainer = SimpleNamespace(precision_plugin=None, world_size=1, global_step=0, log_every_n_steps=50)
        optimizer = SimpleNamespace(param_groups=[{"params": [p]}], _step_supports_amp_scaling=True)
        with Waits() as waits:
            for _ in range(49):
                batch = {"x": normalise(moved(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), mode)), "index": torch.arange(2)}
                waits.seen.clear()
                guard.on_train_batch_start(trainer, module, batch, 0)
                guard.on_before_backward(trainer, module, p.sum())
                guard.on_before_optimizer_step(trainer, module, optimizer)
                assert not waits.seen
    assert len(guard._unseen) == 49 and optimizer.found_inf.device.type == "cuda"
