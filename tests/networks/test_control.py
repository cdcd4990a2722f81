"""Controllers of attention on every kind of network, one after the other, and in several threads at once."""

import threading
from functools import partial

import pytest
import torch
from network_list import NETWORKS, Case, output

from diffx.conditions import Cond
from diffx.networks import AttentionController, Site, TokenTransformer, added_control, attention_control
from diffx.networks.attention import active_controller
from diffx.networks.control import key_mask, picture_queries
from diffx.text import TokenSpan

OBLONG = {name: NETWORKS[name] for name in ("unet_all", "dit_text", "rin_all", "uvit_all")}


class Recorder(AttentionController):
    """Changes nothing and remembers where it was asked."""

    def __init__(self):
        self.sites, self.shapes, self.calls = [], [], []

    def scores(self, scores, site):
        self.calls.append(site.layer)
        return scores

    def probs(self, probs, site):
        self.sites.append(site)
        self.shapes.append(tuple(probs.shape))
        return probs


class Scaled(AttentionController):
    """Multiplies the logits, then adds to them."""

    def __init__(self, factor=1.0, shift=0.0, kinds=("self", "cross", "joint")):
        self.factor, self.shift, self.kinds, self.seen = factor, shift, kinds, []

    def wants(self, site):
        return site.kind in self.kinds

    def scores(self, scores, site):
        self.seen.append(scores)
        return scores * self.factor + self.shift


def tokens_transformer():
    """A masked-token transformer that reads text, and a call of it."""
    torch.manual_seed(0)
    net = TokenTransformer(10, (3, 5), width=16, depth=2, heads=2, classes=4, tokens={"t5": 12}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    ids = torch.randint(0, 10, (2, 3, 5))
    cond = Cond(
        label=torch.tensor([0, 3]), tokens={"t5": torch.randn(2, 4, 12)}, masks={"t5": torch.tensor([[True] * 4, [True] * 2 + [False] * 2])}
    )
    return net, partial(net, ids, cond=cond)  # fmt: skip


def called(name):
    """A network and one call of it on an oblong grid."""
    if name == "tokens":
        return tokens_transformer()
    case = OBLONG[name]
    net, oblong = case.awake(), Case(case.make, (case.shape[0], 16, 24))
    torch.manual_seed(0)
    inputs = *oblong.data(2), oblong.cond(net, 2)
    return net, lambda: output(net, *inputs)


@pytest.mark.parametrize("name", [*OBLONG, "tokens"])
def test_watching_changes_nothing_and_every_site_says_what_its_axes_are(name):
    net, call = called(name)
    plain = call()
    with attention_control(Recorder()) as recorder:
        watched = call()
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=0)
    assert torch.equal(call(), plain) and active_controller() is None
    assert any("t5" in site.key_slices for site in recorder.sites)
    for site, (_, _, queries, keys) in zip(recorder.sites, recorder.shapes, strict=True):
        assert net.get_submodule(site.layer) is not None
        places = 1
        for side in site.grid:
            places *= side
        assert queries == site.n_prefix + (places if site.grid else 0)
        covered = sorted(j for part in site.key_slices.values() for j in range(part.start, part.stop))
        assert covered == list(range(keys - len(covered), keys))  # what has no name (a class token) stands in front
        if site.grid:
            assert site.grid[0] * (5 if name == "tokens" else 24) == site.grid[1] * (3 if name == "tokens" else 16)
            assert picture_queries(site, queries).tolist() == [False] * site.n_prefix + [True] * places
        else:
            assert not picture_queries(site, queries).any()


@pytest.mark.parametrize("name", [*OBLONG, "tokens"])
def test_what_a_controller_answers_counts(name):
    _, call = called(name)
    plain = call()
    with attention_control(Scaled(3.0, kinds=("cross",))):
        assert (call() - plain).abs().max() > 1e-4


def test_an_added_controller_acts_before_the_one_around_it():
    _, call = called("unet_all")
    outer, inner = Scaled(2.0), Scaled(1.0, shift=5.0, kinds=("cross",))
    with attention_control(Recorder()) as recorder:
        call()
    with attention_control(outer):
        with added_control(inner) as chain:
            call()
        assert chain.heard and active_controller() is outer
    crosses = [place for place, site in enumerate(recorder.sites) if site.kind == "cross"]
    assert len(outer.seen) == len(recorder.sites) and len(inner.seen) == len(crosses)
    first = crosses[0]
    torch.testing.assert_close(outer.seen[first], inner.seen[0] + 5.0)  # it was handed what the inner one made


def test_a_chain_without_an_outer_controller_and_one_that_nobody_hears():
    _, call = called("dit_text")
    plain = call()
    with added_control(Scaled(1.0, kinds=())) as chain:
        assert torch.equal(call(), plain)  # no layer left the fused road
    assert not chain.heard and active_controller() is None


def test_threads_that_control_the_same_network_do_not_meet():
    """Each thread gets exactly what it would get alone, many times over."""
    _, call = called("unet_all")
    factors = [1.0, 0.25, 4.0]

    def controlled(factor):
        with attention_control(Scaled(factor)), torch.no_grad():
            return call()

    alone = [controlled(factor) for factor in factors]
    barrier, found = threading.Barrier(len(factors)), {}

    def run(number):
        torch.set_num_threads(1)
        barrier.wait()
        found[number] = [controlled(factors[number]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(factors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        for got in found[number]:
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert active_controller() is None


SITE = Site("here", "cross", (2, 2), 1, {"null": slice(0, 1), "t5": slice(1, 5), "clip": slice(5, 7)}, torch.zeros(3))


def test_keys_of_phrases():
    dog = [TokenSpan("a dog", "t5", 1, 3), TokenSpan("a dog", "clip", 0, 1)]
    spans = [dog, None, [TokenSpan("cat", "t5", 3, 9), TokenSpan("x", "other", 0, 2)]]
    mask = key_mask(spans, SITE, 7)
    assert mask.shape == (3, 1, 1, 7)
    assert mask[:, 0, 0].long().tolist() == [[0, 0, 1, 1, 0, 1, 0], [0] * 7, [0, 0, 0, 0, 1, 0, 0]]


def test_queries_of_the_picture():
    assert picture_queries(SITE, 5).tolist() == [False, True, True, True, True]
    joint = SITE._replace(kind="joint", n_prefix=0, key_slices={"t5": slice(0, 3), "grid": slice(3, 7)})
    assert picture_queries(joint, 7).tolist() == [False] * 3 + [True] * 4
    prior = SITE._replace(kind="joint", n_prefix=6, grid=(1,), key_slices={"t5": slice(0, 3)})
    assert picture_queries(prior, 7).tolist() == [False] * 6 + [True]
