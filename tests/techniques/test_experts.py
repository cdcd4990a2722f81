"""Experts for bands of noise: routing, sharing, idle experts, the tree of jobs, inheriting and joining."""

import copy
import json
from itertools import pairwise

import lightning as L
import pytest
import torch
from technique_list import edm, experts, labels, pictures, unet

import diffx
from diffx import Denoiser, Euler, Heun, LogNormal, merge
from diffx.callbacks import EMA
from diffx.experts import Experts
from diffx.schedules import Band, Bands
from diffx.techniques import NoiseBandExperts, expert_tree, inherit
from diffx.techniques.experts import joined

BANDS = Bands(LogNormal(), (0.0, 0.25, 0.9, 1.0))


def stirred(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net


def trained(module, steps, folder, **options):
    run = L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                    enable_checkpointing=False, max_steps=steps, **options)  # fmt: skip
    run.fit(module, torch.utils.data.DataLoader([pictures(6)] * 16, batch_size=None))
    return run


class Log(torch.nn.Module):
    """A network that says which expert it is, and remembers the levels it saw (the noise coordinate is ln(sigma) / 4)."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def forward(self, x, noise, cond):
        self.seen += [(4 * noise).exp().tolist()]
        return 0 * x + self.weight


def test_a_fresh_ensemble_answers_as_its_trunk():
    trunk = stirred(unet())
    ensemble = Experts(copy.deepcopy(trunk), BANDS)
    cond = labels(4)
    whole, alone = (
        diffx.EDM(d, shape=(1, 8, 8), sampler=Heun(6)).sample(4, cond, seed=1, guidance=2.0) for d in (ensemble, Denoiser(trunk))
    )
    assert torch.equal(whole, alone)
    x, sigma = torch.randn(6, 1, 8, 8), torch.tensor([0.01, 20.0, 0.3, 0.02, 40.0, 0.5])
    torch.testing.assert_close(ensemble(x, sigma, labels(6)), Denoiser(trunk)(x, sigma, labels(6)), atol=1e-5, rtol=0)


def test_each_sample_goes_to_the_expert_of_its_level():
    ensemble = Experts(Log(), BANDS)
    for k, net in enumerate(ensemble.net):
        net.weight.data.fill_(k)
    sigma = torch.tensor([0.01, 20.0, 0.3, *BANDS.sigmas])
    out, _ = ensemble.raw(torch.zeros(5, 1, 2, 2), sigma)
    assert out[:, 0, 0, 0].tolist() == [0, 2, 1, 1, 2] == BANDS.index(sigma).tolist()


@pytest.mark.parametrize("sampler", [Euler(32), Heun(32)])
def test_every_evaluation_lies_in_its_experts_band(sampler):
    """Also Heun's second one, which may belong to another expert than the first of its step."""
    ensemble = Experts(Log(), BANDS)
    order = []
    for k, net in enumerate(ensemble.net):
        net.register_forward_hook(lambda *_, k=k: order.append(k))
    sampler(lambda x, sigma: ensemble(x, sigma), torch.randn(2, 1, 4, 4))
    for k, net in enumerate(ensemble.net):
        band = BANDS[k]
        assert net.seen and all(0.9999 * band.sigma_min <= s <= 1.0001 * band.sigma_max for row in net.seen for s in row)
    switches = sum(a != b for a, b in pairwise(order))
    assert switches == 2 if isinstance(sampler, Euler) else switches <= 2 + 2 * 2


def test_what_is_shared_is_one_and_the_same():
    net = diffx.networks.DiT(channels=1, size=8, width=32, depth=3, heads=4, classes=4)
    alone = sum(p.numel() for p in net.parameters())
    mlp = sum(p.numel() for name, p in net.named_parameters() if ".mlp." in name)
    ensemble = Experts(net, Bands.uniform(LogNormal(), 10), own=("*.mlp.*",))
    assert mlp > 0 and sum(p.numel() for p in ensemble.parameters()) == alone + 9 * mlp


def test_sharing_survives_a_checkpoint(tmp_path):
    module = experts(("*conv2*",))
    trained(module, 2, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    loaded = diffx.load(tmp_path / "a.ckpt", weights="raw")
    assert len(list(loaded.parameters())) == len(list(module.parameters()))
    assert loaded.denoiser.net[0].stem.weight is loaded.denoiser.net[1].stem.weight


def test_a_step_trains_one_expert_and_leaves_the_others_untouched(tmp_path):
    """Bit for bit: neither momentum nor decay moves an expert whose turn it is not, and the optimizer has no state for it."""
    module = experts()
    start = copy.deepcopy(module.denoiser.net.state_dict())
    run = trained(module, 1, tmp_path)
    busy = module.expert(0)
    for k, net in enumerate(module.denoiser.net):
        moved = [not torch.equal(value, start[f"{k}.{name}"]) for name, value in net.state_dict().items()]
        assert any(moved) if k == busy else not any(moved)
        known = [p in run.optimizers[0].state for p in net.parameters()]
        assert all(known) if k == busy else not any(known)


class Trail(L.Callback):
    """The weights after every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append({name: p.detach().clone() for name, p in module.named_parameters()})


@pytest.mark.parametrize("own", [("*",), ("*conv2*",)])
def test_an_average_counts_the_steps_of_its_expert(tmp_path, own):
    """A half-life that grows with the images seen makes an average depend on all steps; those of other experts are none of its own."""
    module, trail, ema = experts(own), Trail(), EMA(halflife=40, rampup=0.5)
    averages = {name: p.detach().clone() for name, p in module.named_parameters()}
    trained(module, 12, tmp_path, callbacks=[trail, ema])
    owners = [[k for k, net in enumerate(module.denoiser.net) if any(q is p for q in net.parameters())] for p in module.parameters()]
    seen = dict.fromkeys(averages, 0)
    for step, weights in enumerate(trail.steps):
        for (name, value), whose in zip(weights.items(), owners, strict=True):
            if module.expert(step) in whose:
                beta = 0.5 ** (6 / max(min(40, 0.5 * seen[name]), 1e-8))
                averages[name], seen[name] = beta * averages[name] + (1 - beta) * value, seen[name] + 6
    assert (72 in seen.values()) == (own != ("*",)) and len(set(seen.values())) == len(module.denoiser.net) + (own != ("*",))
    with ema.applied(module):
        for name, p in module.named_parameters():
            torch.testing.assert_close(p, averages[name], atol=1e-6, rtol=1e-5)


def test_all_micro_batches_and_validation_meet_the_right_levels(tmp_path):
    """One expert per optimizer step, whatever the accumulation; all of them outside of training steps."""
    module, seen = experts(), []
    levels = module.levels
    module.levels = lambda n: seen.append(levels(n)) or seen[-1]
    trained(module, 4, tmp_path, accumulate_grad_batches=2)
    asked = [module.denoiser.bands.index(sigma).unique().tolist() for sigma in seen]
    assert asked == [[module.expert(step)] for step in range(4) for _ in range(2)]
    assert len(module.denoiser.bands.index(experts().levels(64)).unique()) == 2


def test_turns_are_shared_out_by_a_power_of_the_masses():
    module = NoiseBandExperts(Experts(unet(), Bands(LogNormal(), (0.0, 0.9, 1.0))), shape=(1, 8, 8), tau=0.5)
    share = sum(module.expert(step) for step in range(4000)) / 4000
    assert share == pytest.approx(0.1**0.5 / (0.1**0.5 + 0.9**0.5), abs=0.03)


def test_plain_ddp_is_refused(tmp_path):
    from lightning.pytorch.strategies import DDPStrategy

    module = experts()
    module._trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", strategy=DDPStrategy(), devices=1, logger=False)
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        module.configure_model()


def test_the_tree_of_the_paper():
    jobs = expert_tree(1000)
    kept = sorted((job.low, job.high) for job in jobs if job.kept)
    assert len(jobs) == 14 and kept == [(0.0, 0.125), (0.125, 511 / 512), (511 / 512, 1.0)]
    by_name = {None: None} | {job.name: job for job in jobs}
    for before, job in enumerate(jobs):
        parent = by_name[job.parent]
        assert parent is None or (jobs.index(parent) < before and parent.low <= job.low and job.high <= parent.high)
    assert [job.steps for job in jobs if job.kept] == [200] * 3 and jobs[1].steps == 50
    json.dumps([vars(job) for job in jobs])


def test_trees_of_other_shapes():
    assert [job.name for job in expert_tree(100, high=3, low=3, skip={1, 2})] == ["root", "high3", "low3", "rest"]
    assert [job.name for job in expert_tree(100, high=1, low=1)] == ["root", "high1", "low1"]
    assert [(job.low, job.high) for job in expert_tree(100, high=2, low=0) if job.kept] == [(0.75, 1.0), (0.0, 0.75)]
    with pytest.raises(ValueError, match="depths"):
        expert_tree(100, high=-1)


@pytest.fixture
def parent(tmp_path):
    """A module for the upper half with averages that differ from its weights."""
    module = edm(stirred(unet()), schedule=Band(LogNormal(), 0.5, 1.0))
    trained(module, 2, tmp_path, callbacks=[diffx.EMA()]).save_checkpoint(tmp_path / "parent.ckpt")
    return tmp_path / "parent.ckpt"


def test_a_child_begins_with_its_parents_average(parent):
    average = diffx.load(parent).denoiser.state_dict()
    raw = diffx.load(parent, weights="raw").denoiser.state_dict()
    child = inherit(parent, Band(LogNormal(), 0.75, 1.0)).state_dict()
    assert all(torch.equal(child[name], average[name]) for name in child) and any(not torch.equal(child[n], raw[n]) for n in child)


def test_a_child_outside_its_parents_band_is_refused(parent):
    with pytest.raises(ValueError, match=r"\[0.5, 1\).*\[0.25, 1\)"):
        inherit(parent, Band(LogNormal(), 0.25, 1.0))


def part(low, high, seed=0, **options):
    return edm(stirred(unet(), seed), schedule=Band(LogNormal(), low, high), **options)


def test_parts_are_joined_by_a_command(tmp_path, capsys):
    parts = [part(0.25, 1.0, 1), part(0.0, 0.25, 2)]
    paths = []
    for k, module in enumerate(parts):
        paths.append(tmp_path / f"{k}.ckpt")
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        diffx.files.save_checkpoint(checkpoint, paths[-1])
    assert merge.main([f"parts=[{paths[0]}, {paths[1]}]", f"out={tmp_path / 'whole.ckpt'}"]) == 0
    whole = diffx.load(tmp_path / "whole.ckpt")
    x, cond = torch.randn(2, 1, 8, 8), labels(2)
    for sigma, module in ((0.05, parts[1]), (3.0, parts[0])):
        level = torch.full((2,), sigma)
        assert torch.equal(whole.denoiser(x, level, cond), module.eval().denoiser(x, level, cond))
    assert whole.sample(2, cond, seed=0).shape == (2, 1, 8, 8)
    assert merge.main([f"parts=[{paths[0]}, {paths[0]}]", f"out={tmp_path / 'no.ckpt'}"]) == 1
    assert "gap or overlap" in capsys.readouterr().err


@pytest.mark.parametrize(("other", "message"), [
    (lambda: part(0.3, 1.0), "gap or overlap"),
    (lambda: edm(unet(classes=3), schedule=Band(LogNormal(), 0.25, 1.0)), "the denoiser of expert"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        joined([part(0.0, 0.25), other()])


def test_one_network_is_no_ensemble():
    with pytest.raises(TypeError, match="Experts"):
        NoiseBandExperts(Denoiser(unet()), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="no parameter's name fits"):
        Experts(unet(), BANDS, own=("ffn",))
