"""Prompt-to-prompt and null-text inversion on small networks that read words."""

import math
from dataclasses import replace

import pytest
import torch
from network_list import Case

from diffx import Cond, Denoiser, EDMPrecond, EpsPrecond, FlowPrecond, VPrecond, rng
from diffx.conditions import Cond as Bundle
from diffx.denoiser import LogSigma
from diffx.editing import Inversion, PromptToPrompt, invert, null_text_inversion, prompt_to_prompt
from diffx.editing.prompts import Unit, align, refinement, replacement, units_of
from diffx.guidance import as_guide
from diffx.networks import MLP, RIN, DiT, UNet, attention_control
from diffx.networks.attention import AttentionController, active_controller
from diffx.samplers import Euler, Heun
from diffx.schedules import Karras
from diffx.tensors import expand
from diffx.text import TokenSpan, Words

VOCABULARY = ["a", "and", "big", "blue", "cat", "dog", "red", "the"]
MAKERS = {
    "unet": lambda: UNet(3, width=16, mults=(1, 2), blocks=1, tokens={"text": 8}, head_dim=8),
    "dit": lambda: DiT(3, size=8, width=16, depth=2, heads=2, tokens={"text": 8}),
    "rin": lambda: RIN(
        3, size=8, patch=4, width=16, latents=6, latent_width=32, blocks=2, depth=1, heads=2, read_heads=2, tokens={"text": 8}
    ),
}
SAMPLER = Euler(8, Karras(0.05, 5.0))


def encoder():
    torch.manual_seed(0)
    return Words(VOCABULARY, 8, 1, 2).eval()


def told(*texts, words=None):
    """Conditions with the spans of all words."""
    made = words or encoder()
    with torch.no_grad():
        out = made.encode(list(texts)).tokens.double(), made.tokenize(list(texts)).mask
    places = []
    for text in texts:
        place, row = 0, []
        for word in text.split():
            start = text.index(word, place)
            row.append((word, start, place := start + len(word)))
        places.append(row)
    return Cond(tokens={"text": out[0]}, masks={"text": out[1]}, spans=made.spans(list(texts), places))


def denoiser(kind="unet"):
    torch.manual_seed(0)
    net = Case(MAKERS[kind]).awake()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "cross" in name or "kv" in name or "sources" in name:
                parameter.mul_(3)  # words must matter
    return Denoiser(net).double()  # the way down amplifies rounding


def noise(n=2):
    return rng.randn((n, 3, 8, 8), rng.sample_generators(0, n), dtype=torch.float64)


def run(source, target, edit=PromptToPrompt(), kind="unet", sampler=SAMPLER, n=None, **options):
    with torch.no_grad():
        return prompt_to_prompt(denoiser(kind), source, target, noise(n or len(source)), edit, sampler=sampler, **options)


SOURCE, TARGET = told("a red cat", "a big dog"), told("a blue cat", "a big cat")

# Alignment ------------------------------------------------------------------------------------------------------------------------------


def test_units_cover_every_token_once():
    spans = [TokenSpan("Red", "text", 2, 4), TokenSpan("cat", "text", 5, 6), TokenSpan("other", "clip", 0, 1)]
    assert units_of(spans, "text", 7) == [
        Unit("<start 0>", 0, 1), Unit("<start 1>", 1, 2), Unit("red", 2, 4), Unit("<>", 4, 5), Unit("cat", 5, 6), Unit("<end 0>", 6, 7),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="overlaps another one"):
        units_of([TokenSpan("red cat", "text", 1, 3), TokenSpan("cat", "text", 2, 3)], "text", 4)


def words(*units):
    place, made = 0, []
    for word, count in units:
        made.append(Unit(word, place, place := place + count))
    return made


def test_a_replacement_moves_the_attention_of_each_word_to_its_successor():
    before = words(("<start 0>", 1), ("a", 1), ("hippopotamus", 3), ("<end 0>", 1))
    after = words(("<start 0>", 1), ("a", 1), ("cat", 2), ("<end 0>", 1))
    matrix = replacement(before, after, (8, 8))
    assert matrix[:6].sum(1).tolist() == pytest.approx([1.0] * 6) and not matrix[6:].any()
    assert matrix[2].tolist() == matrix[4].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert matrix[5].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert torch.equal(replacement(before, before, (6, 6)).diagonal() > 0, torch.ones(6, dtype=torch.bool))


def test_replacing_needs_as_many_words():
    with pytest.raises(ValueError, match=r"got 2 \(a cat\) and 3 \(a red cat\); use mode='refine'"):
        replacement(words(("a", 1), ("cat", 1)), words(("a", 1), ("red", 1), ("cat", 1)), (3, 3))


@pytest.mark.parametrize(
    ("source", "target", "partners"),
    [
        ("a cat", "a red cat", [0, None, 1]),
        ("a red cat", "a cat", [0, 2]),
        ("a cat and a dog", "a cat and a big dog", [0, 1, 2, 3, None, 4]),
        ("a cat", "the dog", [None, None]),
        ("a a", "a", [1]),
        ("", "a", [None]),
    ],
)
def test_alignment(source, target, partners):
    assert align(source.split(), target.split()) == partners


def test_a_refinement_keeps_the_attention_of_equal_words():
    before, after = words(("<start 0>", 1), ("a", 1), ("cat", 1)), words(("<start 0>", 1), ("a", 1), ("red", 2), ("cat", 1))
    matrix, partnered = refinement(before, after, (4, 6))
    assert partnered.tolist() == [True, True, False, False, True, False]
    assert [(i, j) for i, j in matrix.nonzero().tolist()] == [(0, 0), (1, 1), (2, 4)]


# Sampling -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_identical_prompts_give_identical_pictures(kind, mode, guidance):
    out = run(SOURCE, SOURCE, PromptToPrompt(mode, cross=1.0, self_attention=1.0), kind, guidance=guidance)
    torch.testing.assert_close(out.target, out.source, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", [SAMPLER, Heun(6, Karras(0.05, 5.0))], ids=["euler", "heun"])
def test_sharing_nothing_is_plain_sampling_and_the_source_is_never_changed(sampler):
    model = denoiser()
    with torch.no_grad():
        plain = [sampler(lambda x, s, c=c: model(x, s, c), noise()) for c in (SOURCE, TARGET)]
    nothing = run(SOURCE, TARGET, PromptToPrompt(cross=0.0, self_attention=0.0, weights={"cat": 5.0}), sampler=sampler)
    torch.testing.assert_close(nothing.source, plain[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(nothing.target, plain[1], atol=1e-5, rtol=0)
    everything = run(SOURCE, TARGET, PromptToPrompt(cross=1.0, self_attention=1.0), sampler=sampler)
    torch.testing.assert_close(everything.source, plain[0], atol=1e-5, rtol=0)
    assert (everything.target - plain[1]).abs().max() > 1e-3


class Recorder(AttentionController):
    """Remembers the attention of every call to a kind of keys, by layer."""

    def __init__(self, keys="text"):
        self.keys, self.seen = keys, {}

    def wants(self, site):
        return self.keys in site.key_slices

    def probs(self, probs, site):
        self.seen.setdefault(site.layer, []).append((site, probs))
        return probs


def test_a_replaced_word_gets_exactly_the_attention_of_the_word_before():
    with attention_control(Recorder()) as recorder:
        run(SOURCE, TARGET, PromptToPrompt(cross=0.5, self_attention=0.0))
    for calls in recorder.seen.values():
        assert len(calls) == 8
        for step, (_, probs) in enumerate(calls):
            before, after = probs.chunk(2)
            same = torch.equal(before, after)
            assert same == (step < 4)  # half of eight steps
    assert active_controller() is None


@pytest.mark.parametrize(("largest", "shared"), [(1024, 16), (16, 16), (15, 0)])
def test_attention_among_positions_is_shared_for_its_share_and_up_to_its_size(largest, shared):
    with attention_control(Recorder("grid")) as recorder:
        run(SOURCE, TARGET, PromptToPrompt(cross=0.0, self_attention=0.5, largest=largest))
    assert {calls[0][0].grid for calls in recorder.seen.values()} == {(4, 4)}
    for calls in recorder.seen.values():
        for step, (site, probs) in list(enumerate(calls))[1:]:  # at first both sides look at the same noise
            before, after = probs.chunk(2)
            assert torch.equal(before, after) == (step < 4 and site.grid[0] * site.grid[1] <= shared)


def test_words_may_end_earlier_than_the_rest():
    with attention_control(Recorder()) as recorder:
        run(SOURCE, TARGET, PromptToPrompt(cross={"default": 1.0, "cat": 0.25}, self_attention=0.0))
    calls = next(iter(recorder.seen.values()))
    site, _ = calls[0]
    cat = site.key_slices["text"].start + 3
    for step, (_, probs) in enumerate(calls):
        before, after = probs.chunk(2)
        assert torch.equal(before[0, ..., :cat], after[0, ..., :cat])
        assert torch.equal(before[0, ..., cat], after[0, ..., cat]) == (step < 2)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_weights_multiply_the_attention_to_a_word(kind):
    with attention_control(Recorder()) as recorder:
        run(SOURCE, SOURCE, PromptToPrompt(cross=1.0, self_attention=0.0, weights={"a": -2.0}), kind)
    for calls in recorder.seen.values():
        site, probs = calls[0]
        before, after = probs.chunk(2)
        column = site.key_slices["text"].start + 1  # behind the start token
        torch.testing.assert_close(after[..., column], -2 * before[..., column])
        others = [j for j in range(probs.shape[-1]) if j != column]
        assert torch.equal(after[..., others], before[..., others])


def test_a_weight_of_one_changes_nothing():
    plain, weighted = (run(SOURCE, TARGET, PromptToPrompt(weights=w)) for w in ({}, {"cat": 1.0}))
    assert torch.equal(plain.target, weighted.target)


def test_words_added_in_a_refinement_have_their_own_attention():
    source, target = told("a cat"), told("a red cat")
    with attention_control(Recorder()) as recorder:
        run(source, target, PromptToPrompt("refine", cross=1.0, self_attention=0.0))
    site, probs = next(iter(recorder.seen.values()))[0]
    start = site.key_slices["text"].start
    before, after = probs.chunk(2)
    for old, new in ((0, 0), (1, 1), (2, 3), (3, 4)):  # start, a, cat, end
        assert torch.equal(before[..., start + old], after[..., start + new])
    assert after[..., start + 2].min() > 0


def test_blending_keeps_the_source_outside_of_the_words():
    edit = PromptToPrompt(cross=0.3, self_attention=0.0, blend=("red", "blue"), threshold=0.9)
    source, target = told("a red cat", "a red dog"), told("a blue cat", "a blue dog")
    out, free = run(source, target, edit), run(source, target, PromptToPrompt(cross=0.3, self_attention=0.0))
    assert out.mask.shape == (2, 1, 8, 8) and 0 < out.mask.mean() < 1
    kept = (out.mask == 0).expand_as(out.target)
    assert torch.equal(out.target[kept], out.source[kept])
    torch.testing.assert_close(out.source, free.source, atol=1e-6, rtol=0)
    assert (out.target - out.source)[~kept].abs().max() > 1e-3
    assert free.mask is None


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (PromptToPrompt(weights={"bird": 2.0}), "no word 'bird' in the prompt 'a blue cat'"),
        (PromptToPrompt(cross={"bird": 0.2}), "no word 'bird'"),
        (PromptToPrompt(blend=("dog", "cat")), "no word 'dog' in the prompt 'a red cat'"),
    ],
)
def test_words_that_are_not_there(edit, said):
    with pytest.raises(ValueError, match=said):
        run(SOURCE, TARGET, edit)


def test_prompts_that_do_not_fit():
    with pytest.raises(ValueError, match="as many words"):
        run(told("a cat"), told("a red cat"))
    bare = Bundle(tokens=SOURCE.tokens, masks=SOURCE.masks)
    with pytest.raises(ValueError, match="where the words of both prompts stand"):
        run(bare, TARGET)
    with pytest.raises(ValueError, match="expects 4 rows that see their prompts"):
        run(SOURCE, TARGET.hidden())


def test_a_network_without_text_attention_says_so():
    net = MLP(2, width=16, depth=1, vectors={"text_pooled": 8})

    class Deaf(torch.nn.Module):
        def forward(self, x, noise, cond):
            return net(x, noise)

    with pytest.raises(ValueError, match="needs a network that attends to text"):
        prompt_to_prompt(Denoiser(Deaf()), SOURCE, TARGET, torch.randn(2, 2, dtype=torch.float64), sampler=SAMPLER)


@pytest.mark.parametrize("options", [{"mode": "swap"}, {"cross": 1.5}, {"self_attention": -0.1}, {"threshold": 2.0}])
def test_settings_that_cannot_be(options):
    with pytest.raises(ValueError, match=r"mode must be|shares in"):
        PromptToPrompt(**options)


# Null-text inversion --------------------------------------------------------------------------------------------------------------------


def picture(model, cond):
    """Something the model can draw: a sample of its own."""
    with torch.no_grad():
        return SAMPLER(lambda x, s: model(x, s, cond), noise(len(cond)))


def psnr(x, y):
    return (10 * (4 / (x - y).square().flatten(1).mean(1)).log10()).mean().item()


class ToldMean(torch.nn.Module):
    """Says what is best known of N(m, 1/4), where m (B, D) is the mean of the text's states (B, L, D); a hidden text has mean 0."""

    def __init__(self, precond):
        super().__init__()
        self.precond = precond

    def forward(self, x, noise, cond):
        sigma = (4 * noise).exp()
        scales = self.precond(sigma)
        mean = torch.where(cond.visible("text")[:, None], cond.tokens["text"].mean(1), 0.0)
        state, square = x / expand(scales.inp, x), expand(sigma, x) ** 2
        best = (square * mean + 0.25 * state) / (square + 0.25)
        return (best - expand(scales.skip, x) * state) / expand(scales.out, x)


@pytest.mark.parametrize("precond", [EDMPrecond(), EpsPrecond(), VPrecond(), FlowPrecond()], ids=lambda p: type(p).__name__)
def test_the_null_text_brings_guided_sampling_back_to_the_picture(precond):
    """Its means can be anything, so guidance comes back nearer than sampling without; a null text that is left alone misses by far."""
    precond = replace(precond, noise=LogSigma())
    model = Denoiser(ToldMean(precond), precond)
    generator = torch.Generator().manual_seed(0)
    x, states = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((3, 5), (3, 4, 5)))
    cond, empty = Cond(tokens={"text": states}), {"text": torch.ones(1, 2, 5, dtype=torch.float64)}
    sampler = Euler(12, Karras(0.05, 5.0))
    with torch.no_grad():
        path = invert(lambda x, s: model(x, s, cond), x, sampler=sampler)
        found = null_text_inversion(model, cond, path, empty, guidance=3.0, iterations=30, lr=0.3, tolerance=(1e-8, 0.0))
        none = null_text_inversion(model, cond, path, empty, guidance=3.0, iterations=0)
        back, unfitted, plain = (sampler(guide(model, cond), path.noise) for guide in (found, none, as_guide(1.0)))
    assert found.tokens["text"].shape == (12, 3, 2, 5) and torch.equal(none.tokens["text"][3, 0], empty["text"][0])
    assert psnr(back, x) > psnr(plain, x) + 12 > psnr(unfitted, x) + 24


def test_fitting_leaves_the_weights_alone():
    model, cond = denoiser(), SOURCE
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    path = Inversion([2.0, 1.0, 0.0], [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(3)])
    null_text_inversion(model, cond, path, {"text": torch.ones(1, 2, 8, dtype=torch.float64)}, guidance=3.0, iterations=2)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_step_ends_worse_than_it_began():
    """The loss of every step with its fitted null text, against the null text of the step before."""
    model, cond = denoiser(), SOURCE
    x = picture(model, cond)
    empty = {"text": encoder().encode([""]).tokens.detach().double()}
    with torch.no_grad():
        path = invert(lambda x, s: model(x, s, cond), x, sampler=SAMPLER)
        found = null_text_inversion(model, cond, path, empty, guidance=3.0, iterations=4, lr=0.5)  # too fast on purpose
        state = path.states[0]
        before = empty["text"].expand(2, -1, -1)
        for i in range(8):
            level, losses = state.new_full((2,), path.levels[i]), []
            for tokens in (before, found.tokens["text"][i]):
                null = Cond(tokens={"text": tokens})
                guided = torch.lerp(model(state, level, null), model(state, level, cond), 3.0)
                moved = torch.lerp(guided, state, path.levels[i + 1] / path.levels[i])
                losses.append((moved - path.states[i + 1]).square().flatten(1).mean(1))
            assert (losses[1] <= losses[0] * (1 + 1e-4) + 1e-9).all()
            state, before = moved, found.tokens["text"][i]


def test_fitted_null_texts_replay_exactly_and_serve_pairs():
    model, cond = denoiser(), SOURCE
    x = picture(model, cond)
    empty = {"text": encoder().encode([""]).tokens.detach().double()}
    with torch.no_grad():
        path = invert(lambda x, s: model(x, s, cond), x, sampler=SAMPLER)
        found = null_text_inversion(model, cond, path, empty, guidance=3.0, iterations=2)
        once, twice = (SAMPLER(found(model, cond), path.noise) for _ in range(2))
        pair = prompt_to_prompt(model, cond, TARGET, path.noise, guidance=found, sampler=SAMPLER)
    assert torch.equal(once, twice)
    torch.testing.assert_close(pair.source, once, atol=1e-4, rtol=0)


def test_null_texts_that_cannot_be():
    path = Inversion([1.0, 0.0], [torch.zeros(2, 3, 8, 8, dtype=torch.float64)] * 2)
    for options, empty in (({"guidance": 1.0}, {"text": torch.zeros(1, 2, 8)}), ({}, {"clip": torch.zeros(1, 2, 8)}), ({}, {})):
        with pytest.raises(ValueError, match="null-text inversion needs"):
            null_text_inversion(denoiser(), SOURCE, path, empty, **options)
    found = null_text_inversion(denoiser(), SOURCE, path, {"text": torch.ones(1, 2, 8)}, iterations=0)
    with pytest.raises(ValueError, match="fitted to 2 pictures, got conditions for 3"):
        found(denoiser(), told("a cat", "a dog", "a cat"))
    assert math.isclose(found.scale, 7.5)
