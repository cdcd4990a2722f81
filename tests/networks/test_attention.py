"""Attention and the controller that looks into it."""

import threading

import pytest
import torch
from network_list import NETWORKS, Case, everything
from torch.nn import functional as F

from diffx.conditions import Cond
from diffx.networks import AttentionController, Site, UNet, attention_control
from diffx.networks.attention import active_controller, attend, count_heads

ATTENTIVE = {name: case for name, case in NETWORKS.items() if name.startswith(("unet", "ddpm", "ncsn", "dit")) and len(case.shape) == 3}
every = pytest.mark.parametrize("case", ATTENTIVE.values(), ids=ATTENTIVE.keys())
SITE = Site("here", "self", (2, 3), 0, {"grid": slice(0, 6)}, torch.zeros(2))


class Recorder(AttentionController):
    """Changes nothing and remembers what it saw."""

    def __init__(self):
        self.sites, self.seen_scores, self.seen_probs = [], [], []

    def scores(self, scores, site):
        self.sites.append(site)
        self.seen_scores.append(scores)
        return scores

    def probs(self, probs, site):
        self.seen_probs.append(probs)
        return probs


class Uniform(AttentionController):
    """Attends to everything alike."""

    def probs(self, probs, site):
        return torch.full_like(probs, 1 / probs.shape[-1])


@every
def test_the_identity_controller_changes_nothing_on_an_oblong_grid(case):
    net = case.awake()
    oblong = Case(case.make, (case.shape[0], 24, 40))
    x, noise = oblong.data(2)
    cond = oblong.cond(net, 2)
    parameters = {name: id(p) for name, p in net.named_parameters()}
    plain = net(x, noise, cond)
    with attention_control(Recorder()) as recorder:
        watched = net(x, noise, cond)
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=0)
    assert torch.equal(net(x, noise, cond), plain) and active_controller() is None
    assert {name: id(p) for name, p in net.named_parameters()} == parameters
    names = [site.layer for site in recorder.sites]
    assert len(set(names)) == len(names) and all(net.get_submodule(name) for name in names)
    for site, probs, scores in zip(recorder.sites, recorder.seen_probs, recorder.seen_scores, strict=True):
        height, width = site.grid
        assert height * 40 == width * 24 and probs.shape[2] == height * width
        assert sorted(j for s in site.key_slices.values() for j in range(s.start, s.stop)) == list(range(probs.shape[3]))
        assert torch.equal(site.noise, noise)
        torch.testing.assert_close(probs, scores.softmax(-1))
        torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))


def test_key_slices_name_the_sources_and_masked_tokens_get_nothing():
    case = NETWORKS["unet_all"]
    net = case.awake()
    with attention_control(Recorder()) as recorder:
        net(*case.data(), case.cond(net))
    cross = [(s, p) for s, p in zip(recorder.sites, recorder.seen_probs, strict=True) if s.kind == "cross"]
    assert cross and {s.kind for s in recorder.sites} == {"self", "cross"}
    for site, probs in cross:
        assert site.key_slices == {"null": slice(0, 1), "t5": slice(1, 6), "clip": slice(6, 11)}
        for source in ("t5", "clip"):
            seen = probs[..., site.key_slices[source]]
            assert seen[0, ..., 3:].abs().max() == 0 and seen[1:].min() > 0


def test_a_controller_gets_only_the_layers_it_wants_and_its_answer_counts():
    case = NETWORKS["unet_all"]
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)

    class Cross(Recorder):
        def wants(self, site):
            return site.kind == "cross"

    with attention_control(Cross()) as recorder:
        plain = net(x, noise, cond)
    assert {site.kind for site in recorder.sites} == {"cross"}
    with attention_control(Uniform()):
        assert (net(x, noise, cond) - plain).abs().max() > 1e-3


def test_the_inner_controller_wins_and_errors_leave_nothing_behind():
    outer, inner = Recorder(), Recorder()

    def fail_inside():
        with attention_control(inner):
            assert active_controller() is inner
            raise RuntimeError

    with attention_control(outer):
        with pytest.raises(RuntimeError):
            fail_inside()
        assert active_controller() is outer
    assert active_controller() is None


def test_each_thread_has_its_own_controller():
    case = NETWORKS["unet"]
    net = case.awake()
    x, noise = case.data()
    barrier, recorders = threading.Barrier(3), [Recorder(), Recorder(), None]

    def run(recorder):
        barrier.wait()
        if recorder is None:
            assert active_controller() is None
            net(x, noise)
        else:
            with attention_control(recorder):
                barrier_inside.wait()
                net(x, noise)

    barrier_inside = threading.Barrier(2)
    threads = [threading.Thread(target=run, args=(recorder,)) for recorder in recorders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorders[0].sites) == len(recorders[1].sites) == sum(1 for _, m in net.named_modules() if hasattr(m, "layer"))


def test_gradients_pass_through_a_controller():
    case = NETWORKS["unet_all"]
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    grads = []
    for controller in (None, Recorder()):
        states = cond.tokens["t5"].clone().requires_grad_()
        bundle = type(cond)(**{**cond.__dict__, "tokens": {**cond.tokens, "t5": states}})
        if controller is None:
            net(x, noise, bundle).square().mean().backward()
        else:
            with attention_control(controller):
                net(x, noise, bundle).square().mean().backward()
        grads.append(states.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-3)


def test_both_roads_of_attend_agree_with_the_formula():
    q, k, v = torch.randn(3, 2, 4, 6, 5, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 6) > 0.4
    mask[..., 0] = True
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / 5**0.5
    truth = logits.masked_fill(~mask, -1e300).softmax(-1) @ v
    for control in (None, AttentionController()):
        torch.testing.assert_close(attend(q, k, v, SITE, mask=mask, control=control), truth)


def tokens_net() -> tuple[UNet, dict]:
    case = NETWORKS["unet_all"]
    net = case.awake()
    x, noise = case.data()
    cond = case.cond(net)
    return net, {"x": x, "noise": noise, "rest": {**cond.__dict__, "masks": {}}, "tokens": cond.tokens}


def call(net, setting, **changes):
    return net(setting["x"], setting["noise"], Cond(**{**setting["rest"], **changes}))


def test_the_order_of_tokens_does_not_matter():
    net, setting = tokens_net()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {name: states[:, order] for name, states in setting["tokens"].items()}
    torch.testing.assert_close(call(net, setting, tokens=shuffled), call(net, setting), atol=1e-5, rtol=0)


def test_masking_a_token_is_removing_it():
    net, setting = tokens_net()
    mask = torch.tensor([True, False, True, True, False]).expand(3, 5)
    short = {name: states[:, mask[0]] for name, states in setting["tokens"].items()}
    masked = call(net, setting, masks=dict.fromkeys(short, mask))
    torch.testing.assert_close(masked, call(net, setting, tokens=short), atol=1e-5, rtol=0)
    assert (masked - call(net, setting)).abs().max() > 1e-4


def test_a_row_without_any_real_token_is_the_null_row():
    net, setting = tokens_net()
    nothing = {name: torch.zeros(3, 5, dtype=torch.bool) for name in setting["tokens"]}
    torch.testing.assert_close(call(net, setting, masks=nothing), call(net, setting, tokens={}), atol=1e-6, rtol=0)


def test_the_order_of_sources_is_the_networks_own():
    net, setting = tokens_net()
    swapped = dict(reversed(setting["tokens"].items()))
    assert torch.equal(call(net, setting, tokens=swapped), call(net, setting))


def test_fused_attention_is_used_without_a_controller(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    net = UNet(3, width=16, mults=(1, 2), blocks=1)
    net(torch.randn(1, 3, 8, 8), torch.zeros(1), everything(net, 1, (8, 8)))
    assert len(calls) == sum(1 for m in net.modules() if hasattr(m, "layer")) == 4


@pytest.mark.parametrize(
    ("channels", "options", "heads"), [(64, {}, 1), (32, {}, 1), (192, {}, 3), (512, {"heads": 4}, 4), (48, {"head_dim": 16}, 3)]
)
def test_head_counts(channels, options, heads):
    assert count_heads(channels, **options) == heads


@pytest.mark.parametrize("options", [{"head_dim": 64}, {"heads": 7}])
def test_heads_must_divide(options):
    with pytest.raises(ValueError, match="does not divide the 96 channels"):
        count_heads(96, **options)
