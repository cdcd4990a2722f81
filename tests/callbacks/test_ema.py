"""EMA inside a real trainer: what it averages and when, what lands in a checkpoint, and that resumed runs equal uninterrupted ones."""

from __future__ import annotations

import pytest
import torch
from lightning import Callback
from torch import nn
from toys import Toy, same, toy_data, trainer

from diffx.averages import Constant, HalfLife, Power
from diffx.callbacks import EMA
from diffx.callbacks.shadows import Shadows
from diffx.dtensors import gathered


def raw(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def averages(ema: EMA, name: str = "ema") -> dict[str, torch.Tensor]:
    assert ema.shadows is not None
    return {key: w.clone() for key, w in ema.shadows.weights[name].items()}


class History(Callback):
    """The averaged parameters after every optimizer step."""

    def __init__(self):
        self.weights = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.note(pl_module)

    def on_train_end(self, trainer, pl_module):
        self.note(pl_module)

    def note(self, module):
        self.weights.append({name: p.detach().double().clone() for name, p in module.averaged_parameters().items()})


def test_average_is_the_closed_form_of_the_run(tmp_path):
    """Recomputed in double precision from the recorded weights, for two profiles at once."""
    ema, history = EMA(profiles={"short": HalfLife(40, rampup=0.2), "wide": Power(0.15)}), History()
    trainer(tmp_path, 9, [ema, history]).fit(Toy(), toy_data())
    steps, batch = history.weights[1:], 4  # the first entry are the initial weights
    assert len(steps) == 9
    for name, profile in ema.profiles.items():
        expected = dict(history.weights[0])
        for k, weights in enumerate(steps):
            beta = profile.beta(batch * k, batch, k)
            expected = {key: beta * e + (1 - beta) * weights[key] for key, e in expected.items()}
        for key, value in averages(ema, name).items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-7)
    assert not same(averages(ema, "short"), averages(ema, "wide"))


def test_first_update_copies(tmp_path):
    ema, module = EMA(), Toy()
    trainer(tmp_path, 1, [ema]).fit(module, toy_data())
    assert same(averages(ema), {name: p.detach() for name, p in module.averaged_parameters().items()})


def test_constant_profile_starts_at_the_initial_weights(tmp_path):
    ema, module = EMA(profiles={"ema": Constant(0.75)}), Toy()
    before = {name: p.detach().clone() for name, p in module.averaged_parameters().items()}
    trainer(tmp_path, 1, [ema]).fit(module, toy_data())
    for name, p in module.averaged_parameters().items():
        torch.testing.assert_close(averages(ema)[name], 0.75 * before[name] + 0.25 * p.detach())


def test_only_averaged_trainable_parameters_are_shadowed(tmp_path):
    ema, module = EMA(), Toy(teacher=64)
    trainer(tmp_path, 1, [ema]).fit(module, toy_data())
    expected = {name for name, p in module.denoiser.named_parameters(prefix="denoiser") if p.requires_grad}
    assert set(averages(ema)) == expected and "denoiser.fixed" not in expected and expected


def test_frozen_parts_do_not_grow_the_checkpoint(tmp_path):
    """A frozen teacher is in the file once: the average adds only its own bytes."""
    sizes = {}
    for teacher in (0, 256):
        for callbacks in ([], [EMA()]):
            module = Toy(teacher=teacher)
            run = trainer(tmp_path, 1, callbacks)
            run.fit(module, toy_data())
            run.save_checkpoint(tmp_path / "x.ckpt")
            sizes[teacher, len(callbacks)] = (tmp_path / "x.ckpt").stat().st_size
    assert sizes[256, 0] - sizes[0, 0] > 4 * 256**2
    assert abs((sizes[256, 1] - sizes[0, 1]) - (sizes[256, 0] - sizes[0, 0])) < 2000


def test_buffers_are_copied_integers_included(tmp_path):
    ema, module = EMA(), Toy()
    run = trainer(tmp_path, 5, [ema], accumulate_grad_batches=2)
    run.fit(module, toy_data())
    run.save_checkpoint(tmp_path / "x.ckpt")
    buffers = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]["diffx.EMA"]["buffers"]
    assert set(buffers) == {"denoiser.calls", "denoiser.drift"}
    assert buffers["denoiser.calls"].item() == 10 and buffers["denoiser.calls"].dtype == torch.int64
    assert same(buffers["denoiser.drift"], module.denoiser.drift)


def test_one_update_per_optimizer_step_in_images(tmp_path):
    """Two micro-batches of 4 count as one step of 8 images."""
    ema = EMA()
    trainer(tmp_path, 3, [ema], accumulate_grad_batches=2).fit(Toy(), toy_data())
    assert ema.shadows.clock.updates == 3 and ema.shadows.clock.seen == 24


def test_steps_that_a_gradient_scaler_skipped_do_not_count(tmp_path):
    class Scaler:
        scale = 1024.0

        def get_scale(self):
            return self.scale

    class Overflow(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.precision_plugin.scaler = Scaler()

        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step in (2, 3):
                trainer.precision_plugin.scaler.scale /= 2
            if trainer.global_step == 4:
                trainer.precision_plugin.scaler.scale *= 2

    ema = EMA()
    trainer(tmp_path, 5, [Overflow(), ema]).fit(Toy(), toy_data())
    assert ema.shadows.clock.updates == 3


@pytest.mark.parametrize("every", [2, 3])
def test_updating_rarely_keeps_the_averaging_length(every):
    """With weights that stand still, k steps at once equal k steps one by one."""
    p = nn.Parameter(torch.zeros(3))
    profiles = {"half": HalfLife(50, rampup=None), "constant": Constant(0.9), "power": Power(0.2)}
    often, rarely = Shadows({"p": p}, profiles), Shadows({"p": p}, profiles, every=every)
    p.data.fill_(1.0)
    for _ in range(2 * every):
        often.update(4)
        rarely.update(4)
    for name in profiles:
        torch.testing.assert_close(often.weights[name]["p"], rarely.weights[name]["p"])


def test_low_precision_weights_have_float32_averages():
    """Steps below the resolution of bfloat16 still reach the average."""
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    shadows = Shadows({"p": p}, {"ema": Constant(0.999)})
    p.data.fill_(2.0)
    for _ in range(100):
        shadows.update(1)
    torch.testing.assert_close(shadows.weights["ema"]["p"], torch.full((4,), 2 - 0.999**100), rtol=1e-5, atol=0)
    kept = shadows.swap_in("ema")
    assert p.dtype == torch.bfloat16 and p[0].item() == torch.tensor(2 - 0.999**100).bfloat16().item()
    shadows.swap_out(kept)
    assert p[0].item() == 2.0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("update_every", [1, 3])
def test_resume_is_bitwise_exact(tmp_path, accumulate, update_every):
    """7 + 6 steps with a validation in between equal 13, in weights, averages, optimizer and counters."""

    def run(steps, resume=None):
        ema = EMA(halflife=30, profiles={"ema": HalfLife(30), "wide": Power(0.1)}, update_every=update_every)
        module = Toy()
        fit = trainer(tmp_path, steps, [ema], accumulate_grad_batches=accumulate, val_check_interval=3 * accumulate)
        fit.fit(module, toy_data(), ckpt_path=resume, weights_only=True if resume else None)
        fit.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module, ema, torch.load(tmp_path / f"{steps}.ckpt", weights_only=True)

    *_, whole = run(13)
    run(7)
    *_, resumed = run(13, tmp_path / "7.ckpt")
    for part in ("state_dict", "optimizer_states", "global_step", "diffx"):
        assert same(whole[part], resumed[part]), part
    assert same(whole["callbacks"]["diffx.EMA"], resumed["callbacks"]["diffx.EMA"])


def test_a_callback_before_ema_saves_the_same_state(tmp_path):
    """Lightning calls callbacks in order; the average must not lag behind in a checkpoint written earlier in it."""

    class Save(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / self.name)

    trainer(tmp_path, 4, [Save("before"), EMA(), Save("after")]).fit(Toy(), toy_data())
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("before", "after"))
    assert same(before["callbacks"], after["callbacks"]) and same(before["state_dict"], after["state_dict"])
    assert before["callbacks"]["diffx.EMA"]["updates"] == 3


def fitted(tmp_path, steps=4, **options):
    ema, module = EMA(halflife=30), Toy()
    run = trainer(tmp_path, steps, [ema], **options)
    run.fit(module, toy_data())
    return run, ema, module


def test_applied_swaps_and_restores(tmp_path):
    _, ema, module = fitted(tmp_path)
    before, pointers = raw(module), {name: p.data_ptr() for name, p in module.named_parameters()}
    with ema.applied(module, name="ema"):
        for name, p in module.averaged_parameters().items():
            assert torch.equal(p, averages(ema)[name]) and not torch.equal(p, before[name])
        assert torch.equal(module.side, before["side"])
    assert same(raw(module), before) and pointers == {name: p.data_ptr() for name, p in module.named_parameters()}


def test_applied_restores_after_an_error_and_refuses_nesting(tmp_path):
    _, ema, module = fitted(tmp_path)
    before = raw(module)
    with pytest.raises(ZeroDivisionError), ema.applied(module):
        1 / 0  # noqa: B018
    assert same(raw(module), before)
    with ema.applied(module):
        with pytest.raises(RuntimeError, match="applied already"), ema.applied(module):
            pass
        assert torch.equal(module.denoiser.last.weight, averages(ema)["denoiser.last.weight"])
    assert same(raw(module), before)


def test_applied_names_what_does_not_fit(tmp_path):
    _, ema, module = fitted(tmp_path)
    with pytest.raises(ValueError, match=r"no averaging profile 'emma'; there are \['ema'\]"), ema.applied(module, "emma"):
        pass
    with pytest.raises(ValueError, match="averages of another module"), ema.applied(Toy()):
        pass
    with EMA().applied(module):  # nothing averaged yet: the weights themselves
        pass


def test_saving_while_applied_equals_saving_outside(tmp_path):
    run, ema, module = fitted(tmp_path)
    run.save_checkpoint(tmp_path / "outside.ckpt")
    with ema.applied(module):
        run.save_checkpoint(tmp_path / "inside.ckpt")
    outside, inside = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("outside", "inside"))
    assert same(outside, inside)
    assert not same(outside["state_dict"]["denoiser.last.weight"], averages(ema)["denoiser.last.weight"])


def test_shared_parameters_are_saved_raw_under_both_names(tmp_path):
    module, ema = Toy(), EMA(halflife=30)
    module.denoiser.twin = module.denoiser.last
    run = trainer(tmp_path, 4, [ema])
    run.fit(module, toy_data())
    before = raw(module)
    with ema.applied(module):
        run.save_checkpoint(tmp_path / "x.ckpt")
    assert same(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"], before)
    assert "denoiser.twin.weight" in before


class Probe(Callback):
    """Notes the weights that each stage sees; can save or fail inside it."""

    def __init__(self, save=None, fail=None):
        self.seen, self.save, self.fail = {}, save, fail

    def note(self, stage, trainer, module):
        if trainer.sanity_checking:
            return
        self.seen[stage] = raw(module)
        if self.save:
            trainer.save_checkpoint(self.save)
        if self.fail:
            raise self.fail

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.note("validate", trainer, pl_module)

    def on_test_batch_start(self, trainer, pl_module, *_):
        self.note("test", trainer, pl_module)

    def on_predict_batch_start(self, trainer, pl_module, *_):
        self.note("predict", trainer, pl_module)


def test_validation_test_and_prediction_see_the_averages(tmp_path):
    ema, module, probe = EMA(halflife=30), Toy(), Probe()
    module.test_step = module.predict_step = lambda batch, batch_idx: None
    run = trainer(tmp_path, 4, [probe, ema], val_check_interval=4)
    run.fit(module, toy_data())
    before, loader = raw(module), toy_data()
    loader.setup("fit")
    for stage, start in (("test", run.test), ("predict", run.predict)):
        start(module, loader.val_dataloader())
        assert stage in probe.seen
    for stage, weights in probe.seen.items():
        for name, value in averages(ema).items():
            assert torch.equal(weights[name], value), stage
    assert same(raw(module), before)


def test_a_checkpoint_saved_in_validation_holds_raw_weights(tmp_path):
    ema, module = EMA(halflife=30), Toy()
    run = trainer(tmp_path, 4, [ema, Probe(save=tmp_path / "inside.ckpt")], val_check_interval=4)
    run.fit(module, toy_data())
    inside = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    assert same(inside["state_dict"], raw(module)) and same(inside["callbacks"]["diffx.EMA"]["profiles"]["ema"]["weights"], averages(ema))


@pytest.mark.parametrize("error", [ZeroDivisionError("in validation"), KeyboardInterrupt()])
def test_an_error_in_validation_restores_the_raw_weights(tmp_path, error):
    reference = Toy()
    trainer(tmp_path, 4).fit(reference, toy_data())
    ema, module = EMA(halflife=30), Toy()
    run = trainer(tmp_path, 8, [ema, Probe(fail=error)], val_check_interval=4)
    with pytest.raises((ZeroDivisionError, SystemExit)):
        run.fit(module, toy_data())
    assert same(raw(module), raw(reference))
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert same(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"], raw(reference))


def test_ema_does_not_touch_training(tmp_path):
    """Raw weights after fit are those of a run without averages, validations in between or not."""
    plain = Toy()
    trainer(tmp_path, 6).fit(plain, toy_data())
    _, ema, module = fitted(tmp_path, 6, val_check_interval=2)
    assert same(raw(module), raw(plain))
    assert not torch.equal(averages(ema)["denoiser.last.weight"], module.denoiser.last.weight)


def test_sanity_check_runs_on_the_initial_weights(tmp_path):
    fitted(tmp_path, 1, num_sanity_val_steps=1)


def test_validate_with_a_checkpoint_uses_its_averages(tmp_path):
    run, ema, _ = fitted(tmp_path)
    run.save_checkpoint(tmp_path / "x.ckpt")
    other, probe = EMA(halflife=30), Probe()
    trainer(tmp_path, 4, [other, probe]).validate(
        Toy(), datamodule=toy_data(), ckpt_path=tmp_path / "x.ckpt", verbose=False, weights_only=True
    )
    for name, value in averages(ema).items():
        assert torch.equal(probe.seen["validate"][name], value)


def test_validating_another_module_keeps_the_averages(tmp_path):
    run, ema, module = fitted(tmp_path)
    before, stranger = averages(ema), Toy()
    weights = raw(stranger)
    run.validate(stranger, datamodule=toy_data(), verbose=False)
    assert same(raw(stranger), weights) and same(averages(ema), before)
    with ema.applied(module):
        assert torch.equal(module.denoiser.last.weight, before["denoiser.last.weight"])


def test_a_new_phase_starts_the_averages_again(tmp_path):
    class NewPhase(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3 and not pl_module.phase:
                pl_module.new_phase()

    ema, module = EMA(halflife=30), Toy()
    trainer(tmp_path, 4, [ema, NewPhase()]).fit(module, toy_data())
    assert ema.shadows.clock.updates == 1 and ema.shadows.clock.seen == 4
    assert same(averages(ema), {name: p.detach() for name, p in module.averaged_parameters().items()})  # its first update copies


def test_a_second_fit_of_the_same_module_goes_on(tmp_path):
    _, ema, module = fitted(tmp_path)
    trainer(tmp_path, 3, [ema]).fit(module, toy_data())
    assert ema.shadows.clock.updates == 7


def test_a_checkpoint_with_other_profiles_is_refused(tmp_path):
    run, *_ = fitted(tmp_path)
    run.save_checkpoint(tmp_path / "x.ckpt")
    other = EMA(profiles={"wide": Power(0.1)})
    with pytest.raises(ValueError, match=r"other averaging profiles: missing \['wide'\], not known here \['ema'\]"):
        trainer(tmp_path, 9, [other]).fit(Toy(), toy_data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "options", [{"profiles": {}}, {"profiles": {"raw": Constant()}}, {"profiles": {"a:b": Constant()}}, {"update_every": 0}]
)
def test_constructor_refuses(options):
    with pytest.raises(ValueError, match=r"profile|update_every"):
        EMA(**options)


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_sharded_parameters_average_like_whole_ones(one_rank):
    from torch.distributed.fsdp import fully_shard

    whole, sharded = nn.Linear(5, 3), nn.Linear(5, 3)
    sharded.load_state_dict(whole.state_dict())
    fully_shard(sharded)
    pairs = [(net, Shadows(dict(net.named_parameters()), {"ema": HalfLife(10)})) for net in (whole, sharded)]
    for net, shadows in pairs:
        for step in range(4):
            net(torch.full((2, 5), step + 1.0)).square().sum().backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
            shadows.update(2)
    (_, mine), (_, theirs) = pairs
    assert same(mine.state(), gathered(theirs.state(), keep=True))
    again = Shadows(dict(sharded.named_parameters()), {"ema": HalfLife(10)})
    again.load(mine.state())
    assert same(gathered(again.state(), keep=True), mine.state())
    x = torch.ones(1, 5)
    before = sharded(x).detach()
    sharded.reshard()  # the root of a sharded net stays gathered after a forward pass alone
    raw_parts = theirs.swap_in("ema")
    kept = mine.swap_in("ema")
    averaged = sharded(x)
    torch.testing.assert_close(averaged, whole(x))
    assert not torch.equal(averaged, before)
    sharded.reshard()
    for key, p in whole.named_parameters():
        assert p.shape == theirs.as_parameter(key, raw_parts[key]).full_tensor().shape
        torch.testing.assert_close(theirs.as_parameter(key, raw_parts[key]).full_tensor(), kept[key])
    sharded.reshard()
    theirs.swap_out(raw_parts)
    assert torch.equal(sharded(x), before)


def test_nothing_to_average_is_an_error(tmp_path):
    module = Toy()
    module.denoiser.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to average"):
        trainer(tmp_path, 1, [EMA()]).fit(module, toy_data())


def test_recipe():
    assert EMA(halflife=5)._recipe == {"_target_": "diffx.callbacks.EMA", "halflife": 5}
    assert EMA(profiles={"p": Power(0.1)})._recipe["profiles"]["p"] == {"_target_": "diffx.averages.Power", "sigma_rel": 0.1}
