"""DiTDiffusion: flow matching by default, the learned variance against textbook formulas, guidance of some channels."""

import copy
import math

import pytest
import torch
from technique_list import labels, pictures
from torch.distributions import Normal, kl_divergence

from diffx import Cond, Denoiser, rng
from diffx.denoiser import EDMPrecond, EpsPrecond, FlowPrecond, FlowTime, Timesteps
from diffx.guidance import Autoguidance, ClassifierFree, DynamicThreshold, FirstChannels, Interval, Rescale, bind
from diffx.networks import DiT
from diffx.recipes.build import build
from diffx.recipes.compose import compose
from diffx.samplers import Ancestral, Euler, Heun, LearnedAncestral
from diffx.schedules import DDPM, Flow, LogNormal
from diffx.techniques import EDM, DiTDiffusion, LearnedRange

TABLE = DDPM(length=10, beta_start=0.01, beta_end=0.3)


def net(channels=1, factor=2, **options):
    torch.manual_seed(0)
    made = DiT(
        **{"channels": channels, "out_channels": factor * channels, "size": 8, "width": 16, "depth": 1, "heads": 2, "classes": 4, **options}
    )
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.1)
    return made


def learned(channels=1, table=TABLE, **options):
    return DiTDiffusion(net(channels), shape=(channels, 8, 8), variance=LearnedRange(table), **options)


def textbook(table):
    """beta, beta~ and the two coefficients of the posterior mean as DDPM writes them (Ho et al. 2020, eq. 6 and 7), in float64."""
    share = 1 / (1 + table.table.square())  # of the signal: alpha bar
    before = torch.cat([torch.ones(1, dtype=torch.float64), share[:-1]])
    beta = 1 - share / before
    small = beta * (1 - before) / (1 - share)
    return beta, small, before.sqrt() * beta / (1 - share), (1 - beta).sqrt() * (1 - before) / (1 - share)


# Flow matching ----------------------------------------------------------------------------------------------------------------------------


def test_a_bare_network_is_trained_by_flow_matching():
    module = DiTDiffusion(net(factor=1), shape=(1, 8, 8)).eval()
    assert module.denoiser.precond == FlowPrecond(FlowTime()) and module.schedule == Flow() and module.sampler == Heun(25)
    batch, time = pictures(6), torch.linspace(0.1, 0.9, 6)
    rng.seed_default("noise")
    loss = module.loss(batch, u=time)["loss"]
    rng.seed_default("noise")
    n, t = torch.randn_like(batch["x"]), time[:, None, None, None]
    out = module.denoiser.net((1 - t) * batch["x"] + t * n, 1000 * time, labels(6))
    torch.testing.assert_close(loss, (out - (n - batch["x"])).square().mean((1, 2, 3)), rtol=1e-4, atol=0)


def test_another_objective_is_edm():
    """Same weights, same draws: the technique adds nothing of its own."""
    denoiser = Denoiser(net(factor=1), EDMPrecond(0.7))
    ours = DiTDiffusion(denoiser, shape=(1, 8, 8), schedule=LogNormal())
    edm = EDM(copy.deepcopy(denoiser), shape=(1, 8, 8), schedule=LogNormal())
    losses = []
    for module in (ours, edm):
        rng.seed_default("same")
        losses.append(module.eval().loss(pictures(4), u=torch.full((4,), 0.4))["loss"])
    assert torch.equal(*losses)
    drawn = [module.sample(2, labels(2), seed=1, sampler=Euler(3)) for module in (ours, edm)]
    assert torch.equal(*drawn)


# Learned variance -------------------------------------------------------------------------------------------------------------------------


def test_a_bare_network_with_learned_variance_is_the_published_setting():
    module = DiTDiffusion(net(), shape=(1, 8, 8), variance=LearnedRange())
    assert module.denoiser.precond == EpsPrecond(Timesteps(DDPM())) and module.schedule == DDPM()
    assert module.sampler == LearnedAncestral(250, DDPM()) and learned().sampler.steps == 10


def test_every_timestep_has_its_share_of_positions():
    u = (torch.arange(10_000) + 0.5) / 10_000
    index = LearnedRange(TABLE).index(u)
    assert index.bincount().tolist() == [1000] * 10
    assert LearnedRange(TABLE).index(torch.tensor([0.0, 1.0])).tolist() == [0, 9]
    torch.testing.assert_close(LearnedRange(TABLE).sigma(index).double()[::1000], TABLE.table, rtol=1e-6, atol=0)


def test_the_output_moves_the_variance_between_its_bounds():
    """o = 1 gives beta, o = -1 gives beta~, o = 0, a fresh network, their geometric mean."""
    beta, small, _, _ = textbook(TABLE)
    small[0] = small[1]
    index = torch.arange(10)
    for o, expected in ((1.0, beta), (-1.0, small), (0.0, (beta * small).sqrt())):
        variance = LearnedRange(TABLE).log_variance(torch.full((10, 1), (o + 1) / 2, dtype=torch.float64), index).exp()[:, 0]
        torch.testing.assert_close(variance, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("table", [TABLE, DDPM()], ids=["10", "1000"])
def test_the_bound_is_the_divergence_of_the_two_steps(table):
    """Against torch.distributions on DDPM's own state z = (x + sigma n) / sqrt(1 + sigma^2), whatever the noise was."""
    beta, small, of_x0, of_z = textbook(table)
    index = torch.arange(1, len(beta), max(1, len(beta) // 7))
    column = [t[index, None] for t in (beta, small, of_x0, of_z)]
    x0, estimate, z, share = torch.randn(4, len(index), 5, dtype=torch.float64)
    true = Normal(column[2] * x0 + column[3] * z, column[1].sqrt())
    std = (share * column[0].log() + (1 - share) * column[1].log()).mul(0.5).exp()
    bits = kl_divergence(true, Normal(column[2] * estimate + column[3] * z, std)).mean(1) / math.log(2)
    torch.testing.assert_close(LearnedRange(table).bound(x0, estimate, share, index), bits, rtol=1e-6, atol=1e-9)


def test_the_bound_of_a_fresh_network_is_that_of_the_fixed_geometric_mean():
    beta, small, of_x0, _ = textbook(TABLE)
    x0, estimate = torch.randn(2, 9, 5, dtype=torch.float64)
    index = torch.arange(1, 10)
    fixed = (beta * small).sqrt()[1:, None]
    gap = (of_x0[1:, None] * (x0 - estimate)).square()
    nats = 0.5 * ((fixed / small[1:, None]).log() - 1 + (small[1:, None] + gap) / fixed)
    bound = LearnedRange(TABLE).bound(x0, estimate, torch.full((9, 5), 0.5, dtype=torch.float64), index)
    torch.testing.assert_close(bound, nats.mean(1) / math.log(2), atol=1e-6, rtol=0)


def test_at_timestep_0_the_bound_counts_256_levels():
    """The likelihood of all levels sums to one, and a sharp estimate of the right level costs no bits."""
    levels = (torch.arange(256, dtype=torch.float64) * 2 / 255 - 1)[:, None]
    variance, index = LearnedRange(DDPM(length=10, beta_start=1e-3, beta_end=0.3)), torch.zeros(256, dtype=torch.int64)
    for estimate in (-1.0, 0.1, 0.99):
        bits = variance.bound(levels, torch.full_like(levels, estimate), torch.full_like(levels, 0.3), index)
        assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-6)
    sharp = LearnedRange(DDPM(length=10, beta_start=1e-7, beta_end=0.3))
    assert sharp.bound(levels, levels, torch.full_like(levels, 0.5), index).abs().max() < 1e-6


def test_the_loss_is_that_of_the_noise_plus_the_bound():
    module, batch, u = learned(), pictures(6), torch.linspace(0, 1, 6)
    module.eval()
    rng.seed_default("noise")
    parts = module.loss(batch, u)
    rng.seed_default("noise")
    n, index = torch.randn_like(batch["x"]), module.variance.index(u)
    sigma = TABLE.table[index].float()[:, None, None, None]
    out = module.denoiser.net((batch["x"] + sigma * n) / (1 + sigma**2).sqrt(), index.float(), labels(6))
    noise_error = (out[:, :1] - n).square().mean((1, 2, 3))
    estimate = batch["x"] + sigma * (n - out[:, :1])
    bound = module.variance.bound(batch["x"], estimate, (out[:, 1:] + 1) / 2, index)
    torch.testing.assert_close(parts["loss"], noise_error + bound, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["bound"], bound, rtol=1e-4, atol=1e-5)


def test_the_bound_trains_the_variance_only():
    """Gradient of the bound in the head: rows of the mean have none; its weight scales the others."""
    grads = []
    for weight in (1.0, 3.0):
        module = DiTDiffusion(net(), shape=(1, 8, 8), variance=LearnedRange(TABLE, weight), weighting=torch.zeros_like).eval()
        rng.seed_default("noise")
        module.loss(pictures(6), torch.linspace(0.1, 1, 6))["loss"].mean().backward()
        grads.append(module.denoiser.net.final_layer.linear.weight.grad.view(2, 2, 2, 16))
    assert not grads[0][:, :, 0].any() and grads[0][:, :, 1].any()
    torch.testing.assert_close(grads[1], 3 * grads[0], rtol=1e-4, atol=1e-7)


class WithShare:
    """A denoise function with a constant share of the variance."""

    def __init__(self, share):
        self.value, self.share = share, None

    def __call__(self, x, sigma):
        self.share = torch.full_like(x, self.value)
        return 0.3 * x


@pytest.mark.parametrize("share", [0.0, 1.0, 0.4])
def test_the_learned_sampler_generalises_the_ancestral_one(share):
    noise, denoise = torch.randn(2, 3, dtype=torch.float64), WithShare(share)
    ours = LearnedAncestral(10, TABLE)(denoise, noise, generator=torch.Generator().manual_seed(1))
    fixed = Ancestral(10, TABLE, variance=share)(lambda x, sigma: 0.3 * x, noise, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, fixed, rtol=1e-10, atol=1e-12)


def test_one_step_adds_the_variance_of_the_table():
    """Each pixel its own, in DDPM's frame: an estimate that is exact leaves only the noise of the step."""
    beta, small, _, _ = textbook(TABLE)
    share = torch.linspace(0, 1, 200_000, dtype=torch.float64).round()  # half the pixels 0, half 1
    denoise = WithShare(0.0)
    denoise.__class__ = type("Exact", (WithShare,), {"__call__": lambda self, x, sigma: setattr(self, "share", share[None]) or 0 * x})
    a, b = TABLE.table[5].item(), TABLE.table[4].item()
    out = LearnedAncestral(10, TABLE).step(denoise, torch.zeros(1, 200_000, dtype=torch.float64), a, b, torch.Generator().manual_seed(0))
    z = out[0] / (1 + b**2) ** 0.5
    assert z[share == 1].var().item() == pytest.approx(beta[5].item(), rel=0.02)
    assert z[share == 0].var().item() == pytest.approx(small[5].item(), rel=0.02)


def test_the_variance_of_the_network_reaches_the_sampler():
    """A network whose second half says o = 1 or -1 samples like the ancestral sampler with the large or the small variance."""
    for o, variance in ((1.0, 1.0), (-1.0, 0.0)):
        module = learned()
        head = module.denoiser.net.final_layer.linear
        with torch.no_grad():
            head.weight.view(2, 2, 2, 16)[:, :, 1] = 0
            head.bias.view(2, 2, 2)[:, :, 1] = o
        for guidance in (1.0, 2.0):
            ours = module.sample(3, labels(3), seed=2, guidance=guidance)
            fixed = module.sample(3, labels(3), seed=2, guidance=guidance, sampler=Ancestral(10, TABLE, variance=variance))
            torch.testing.assert_close(ours, fixed, atol=1e-4, rtol=0)


def test_under_guidance_the_variance_is_that_of_the_condition():
    """It is neither extrapolated nor mixed with the unconditional one."""
    module, x, sigma = learned(), torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    seen = {}

    class Spy(LearnedAncestral):
        def __call__(self, denoise, noise, **options):
            denoise(x, sigma)
            seen["share"] = denoise.share
            return noise

    module.sample(2, labels(2), guidance=4.0, sampler=Spy(10, TABLE), seed=0)
    out, _ = module.denoiser.raw(x, sigma, labels(2))
    torch.testing.assert_close(seen["share"], (out[:, 1:] + 1) / 2, atol=1e-5, rtol=0)


GUIDES = [3.0, Interval(2.0, 0.5, 2.0), Rescale(3.0), DynamicThreshold(3.0), FirstChannels(3.0, 1)]


@pytest.mark.parametrize("guide", GUIDES, ids=str)
@pytest.mark.parametrize("sampler", [None, Euler(3, TABLE)], ids=["learned", "euler"])
def test_every_guide_works_with_a_learned_variance(guide, sampler):
    module = learned()
    guided, plain = (module.sample(2, labels(2), seed=4, guidance=g, sampler=sampler) for g in (guide, 1.0))
    assert guided.isfinite().all() and (guided - plain).abs().max() > 1e-4


def test_any_deterministic_sampler_serves_a_network_with_learned_variance():
    """They only see the mean: the second half of the channels is dropped."""
    module = learned(2)
    head, half = module.denoiser.net.final_layer.linear, learned(2)
    with torch.no_grad():
        half.denoiser.net.final_layer.linear.weight.view(2, 2, 4, 16)[:, :, 2:] *= 5
    assert not torch.equal(head.weight, half.denoiser.net.final_layer.linear.weight)
    drawn = [m.sample(2, labels(2), seed=1, sampler=Heun(4, TABLE)) for m in (module, half)]
    assert torch.equal(*drawn)


# What is refused --------------------------------------------------------------------------------------------------------------------------


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="on the levels of its own table, got also schedule"):
        learned(schedule=LogNormal())
    with pytest.raises(ValueError, match="goes with EpsPrecond, the denoiser has FlowPrecond"):
        DiTDiffusion(Denoiser(net(), FlowPrecond()), shape=(1, 8, 8), variance=LearnedRange())


def test_a_network_without_channels_for_the_variance():
    module = DiTDiffusion(net(factor=1), shape=(1, 8, 8), variance=LearnedRange(TABLE))
    with pytest.raises(ValueError, match="needs twice the channels of the data, 2, but the network gives 1; build it with out_channels=2"):
        module.loss(pictures(2))


def test_the_learned_sampler_without_a_learned_variance():
    module = DiTDiffusion(net(factor=1), shape=(1, 8, 8))
    with pytest.raises(TypeError, match="reads a learned variance, but this denoise function has none"):
        module.sample(1, labels(1), sampler=LearnedAncestral(3, TABLE))


def test_guidance_without_hidden_conditions_in_training():
    with pytest.raises(ValueError, match="drop is 0"):
        learned(drop=0.0).sample(2, labels(2), guidance=2.0)


# Guidance of some channels ----------------------------------------------------------------------------------------------------------------


def test_only_the_first_channels_are_guided():
    denoiser = Denoiser(net(4, factor=1))
    x, sigma, cond = torch.randn(3, 4, 8, 8), torch.full((3,), 0.7), labels(3)
    plain, whole = (g(denoiser, cond)(x, sigma) for g in (bind, ClassifierFree(4.0)))
    part = FirstChannels(4.0)(denoiser, cond)(x, sigma)
    torch.testing.assert_close(part[:, :3], whole[:, :3])
    torch.testing.assert_close(part[:, 3], plain[:, 3])
    assert (whole[:, 3] - plain[:, 3]).abs().max() > 1e-4
    torch.testing.assert_close(FirstChannels(1.0)(denoiser, cond)(x, sigma), plain)
    torch.testing.assert_close(FirstChannels(4.0, 4)(denoiser, cond)(x, sigma), whole)


def test_any_guide_may_be_restricted():
    good, bad = Denoiser(net(4, factor=1)), Denoiser(net(4, factor=1, depth=2))
    x, sigma, cond = torch.randn(2, 4, 8, 8), torch.full((2,), 0.7), labels(2)
    whole, plain = Autoguidance(bad, 2.0)(good, cond)(x, sigma), bind(good, cond)(x, sigma)
    part = FirstChannels(Autoguidance(bad, 2.0), 2)(good, cond)(x, sigma)
    torch.testing.assert_close(part, torch.cat([whole[:, :2], plain[:, 2:]], 1))


def test_no_channel_is_no_guide():
    with pytest.raises(ValueError, match="at least 1 channel, got channels=0"):
        FirstChannels(2.0, 0)


def test_conditions_that_the_network_does_not_take():
    with pytest.raises(ValueError, match="takes no vectors 'size'"):
        learned().sample(1, Cond(vectors={"size": torch.zeros(1, 2)}))


# Experiments ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "name", "count"),
    [("dit_xl_2", "XL/2", 674_834_720), ("dit_xl_2", "B/4", 130_426_496), ("sit_xl_2", "XL/2", 674_834_720 - 1153 * 16)],
)
def test_experiments_on_imagenet_describe_the_published_networks(experiment, name, count):
    """One key changes the size; without the variance the head is half as wide."""
    given = ["module.codec.vae=vae", "data.root=latents", f"module.denoiser.name={name}"]
    module = compose(f"imagenet/{experiment}", given).tree["module"]
    with torch.device("meta"):
        made = build(module["denoiser"])
    assert sum(p.numel() for p in made.parameters()) == count
    assert made.grid == tuple(32 // side for side in made.patch) and ("variance" in module) == (experiment == "dit_xl_2")
