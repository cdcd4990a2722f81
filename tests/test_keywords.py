"""Key words: found by rules or spans, marked, and attended to more."""

import math

import pytest
import torch
from network_list import Case, everything
from torch.nn import functional as F
from watcher import Watcher

from diffx import Cond, Denoiser
from diffx.guidance import KeyWordBoost, classifier_free
from diffx.networks import RIN, AttentionController, DiT, Site, UNet, attention_control
from diffx.recipes import recipe_of
from diffx.recipes.build import build
from diffx.text import KeyWords, TokenSpan, Words
from diffx.text.keywords import tag

# Finding --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a red circle and a blue square", "red circle blue square"),
        ("An old man is riding a brown horse across the snowy field.", "old man brown horse snowy field"),
        ("the building behind a painted wall", "building painted wall"),
        ("two dogs running quickly towards the famous tower", "dogs famous tower"),
        ("a family with a butterfly", "family butterfly"),
        ("it is not there", ""),
        ("", ""),
    ],
)
def test_nouns_and_adjectives_are_key_words(text, keys):
    found = KeyWords().find(text)
    assert [word for word, _, _ in found] == keys.split()
    assert all(text[start:stop] == word for word, start, stop in found)


def test_every_word_of_the_shapes_gets_its_part_of_speech():
    kinds = {word.word: word.kind for word in tag("a red triangle at the top left and a square")}
    assert kinds == {"a": "determiner", "red": "adjective", "triangle": "noun", "at": "preposition", "the": "determiner", "top": "noun",
                     "left": "noun", "and": "conjunction", "square": "adjective"}  # fmt: skip


def test_given_spans_go_before_the_tagger():
    text = "a red circle and a blue square"
    found = KeyWords().find(text, [("blue square", 19, 30), "and", ("square", 24, 30)])
    assert found == [("and", 13, 16), ("blue", 19, 23), ("square", 24, 30)]  # each word once
    assert KeyWords().find(text, []) == []
    with pytest.raises(ValueError, match="there is no 'dog' in"):
        KeyWords().find(text, ["dog"])


def test_another_tagger():
    words = KeyWords(tagger=lambda text: [word for word in tag(text) if word.word == "circle"])
    assert words.find("a red circle") == [("circle", 6, 12)]


# Marking --------------------------------------------------------------------------------------------------------------------------------


def test_marks_stand_before_key_words_and_the_spans_move_along():
    text, words = "a red circle", [("red", 2, 5), ("circle", 6, 12)]
    marked, moved = KeyWords(marker="*", rate=1.0).mark(text, words, training=True)
    assert marked == "a * red * circle"
    assert [marked[start:stop] for _, start, stop in moved] == ["red", "circle"]
    encoder = Words(["a", "red", "circle", "*"], 8, 1, 2)
    assert [(s.start, s.stop) for s in encoder.spans([marked], [moved])[0]] == [(3, 4), (5, 6)]


def test_marks_are_coins_in_training_and_absent_in_sampling():
    text, words = "red " * 10_000, [("red", 4 * i, 4 * i + 3) for i in range(10_000)]
    torch.manual_seed(0)
    keys = KeyWords(marker="*", rate=0.3)
    assert keys.mark(text, words, training=True)[0].count("*") == pytest.approx(3000, abs=150)
    assert keys.mark(text, words, training=False) == (text, words)
    assert KeyWords(marker="*", rate=0.3, mark_in_sampling=True).mark(text, words, training=False)[0].count("*") == 10_000
    assert KeyWords().mark(text, words, training=True) == (text, words)


@pytest.mark.parametrize(("options", "said"), [({"rate": 1.5}, "got 1.5"), ({"marker": " "}, "must be visible")])
def test_settings_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        KeyWords(**options)


# Attending ------------------------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, 0.0, 0.0, 0.0])
KEY = torch.tensor([True, False, False, False])


@pytest.mark.parametrize(("form", "attention"), [("logit_scale", 0.599021), ("log_bias", 0.576117)])
def test_the_two_forms_by_hand(form, attention):
    assert LOGITS.softmax(0)[0].item() == pytest.approx(0.475367, abs=1e-6)
    boost = KeyWordBoost(0.5, form)
    assert boost.boosted(LOGITS, KEY).softmax(0)[0].item() == pytest.approx(attention, abs=1e-6)


def test_a_negative_logit_loses_by_scaling_and_gains_by_a_bias():
    negative = torch.tensor([-1.0, 0.0, 0.0, 0.0])
    base = negative.softmax(0)[0]
    assert KeyWordBoost(0.5, "logit_scale").boosted(negative, KEY).softmax(0)[0] < base
    biased = KeyWordBoost(0.5, "log_bias").boosted(negative, KEY).softmax(0)
    assert biased[0] > base
    assert (biased[0] / biased[1] / (base / negative.softmax(0)[1])).item() == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("options", [{"weight": -0.1}, {"weight": math.nan}, {"form": "louder"}])
def test_boosts_that_cannot_be(options):
    with pytest.raises(ValueError, match="weight must be at least 0 and form"):
        KeyWordBoost(**options)


def net_of(kind):
    tokens = {"t5": 12, "clip": 7}
    makers = {
        "unet": lambda: UNet(3, width=16, mults=(1, 2), blocks=1, tokens=tokens, head_dim=8),
        "dit": lambda: DiT(3, size=8, width=16, depth=2, heads=2, tokens=tokens),
        "rin": lambda: RIN(
            3, size=8, patch=4, width=16, latents=6, latent_width=32, blocks=2, depth=1, heads=2, read_heads=2, tokens=tokens
        ),
    }
    torch.manual_seed(0)
    return Denoiser(Case(makers[kind]).awake())


def bundle(net, n=3):
    torch.manual_seed(1)
    spans = [[TokenSpan("dog", "t5", 1, 3), TokenSpan("dog", "clip", 0, 1)], [TokenSpan("cat", "t5", 0, 1)], []]
    return Cond(**{**everything(net, n, (8, 8)).__dict__, "spans": spans})


STATE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.1, 1.0, 5.0])


@pytest.mark.parametrize("kind", ["unet", "dit", "rin"])
@pytest.mark.parametrize("form", ["log_bias", "logit_scale"])
def test_every_layer_gives_the_key_tokens_their_share(kind, form):
    """Against the formula, from the probabilities that the same first layer has without a boost."""
    denoiser = net_of(kind)
    cond = bundle(denoiser.net)
    boost = KeyWordBoost(1.0, form)
    with attention_control(Watcher()) as plain:
        denoiser(*STATE, cond)
    with attention_control(Watcher()) as watched:
        boost(denoiser)(*STATE, cond)
    assert len(watched.seen) == len(plain.seen) > 1
    layer = next(iter(plain.seen))
    t5, clip = (plain.sites[layer].key_slices[source].start for source in ("t5", "clip"))
    keys = torch.zeros(3, 1, 1, plain.seen[layer].shape[-1], dtype=torch.bool)
    keys[0, ..., [t5 + 1, t5 + 2, clip]] = keys[1, ..., t5] = True
    before, after = plain.seen[layer], watched.seen[layer]
    if form == "log_bias":
        expected = before * torch.where(keys, 2.0, 1.0)
        torch.testing.assert_close(after, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
    assert torch.equal(after[2], before[2]) and (after[0] - before[0]).abs().max() > 1e-3
    assert (after[0, ..., t5 + 3 : t5 + 5] == 0).all()  # masked tokens stay at nothing


def test_a_weight_of_zero_and_no_spans_change_nothing():
    denoiser = net_of("unet")
    cond = bundle(denoiser.net)
    plain = denoiser(*STATE, cond)
    torch.testing.assert_close(KeyWordBoost(0.0)(denoiser)(*STATE, cond), plain, atol=1e-5, rtol=0)
    silent = Cond(**{**cond.__dict__, "spans": None})
    assert torch.equal(KeyWordBoost(3.0)(denoiser)(*STATE, silent), plain)
    assert (KeyWordBoost(3.0)(denoiser)(*STATE, cond) - plain).abs().max() > 1e-4


def test_guidance_boosts_the_conditional_branch_and_leaves_the_other():
    denoiser = net_of("unet")
    cond = bundle(denoiser.net)
    boosted = KeyWordBoost(2.0)(denoiser)
    guided = classifier_free(boosted, cond, cond.hidden(), 3.0)(*STATE)
    told, free = boosted(*STATE, cond), denoiser(*STATE, cond.hidden())
    torch.testing.assert_close(guided, free + 3 * (told - free), atol=1e-4, rtol=1e-4)


def test_a_controller_from_outside_is_heard_too():
    """An editing method that watches or replaces attention works on the boosted denoiser."""
    denoiser = net_of("unet")
    cond = bundle(denoiser.net)

    class Even(AttentionController):
        def probs(self, probs, site):
            return torch.full_like(probs, 1 / probs.shape[-1])

    with attention_control(Even()):
        plain, boosted = denoiser(*STATE, cond), KeyWordBoost(2.0)(denoiser)(*STATE, cond)
    assert torch.equal(plain, boosted)


def test_gradients_pass():
    denoiser = net_of("unet")
    cond = bundle(denoiser.net)
    states = cond.tokens["t5"].clone().requires_grad_()
    cond = Cond(**{**cond.__dict__, "tokens": {**cond.tokens, "t5": states}})
    KeyWordBoost(0.5)(denoiser)(*STATE, cond).square().mean().backward()
    assert states.grad.isfinite().all() and states.grad.abs().max() > 0


def test_in_joint_attention_only_the_picture_looks_harder():
    from diffx.guidance.keywords import _Booster

    site = Site("joint", "joint", (2, 2), 0, {"grid": slice(0, 4), "t5": slice(4, 7)}, torch.zeros(1))
    booster = _Booster(KeyWordBoost(1.0), [[TokenSpan("dog", "t5", 1, 2)]])
    gain = booster.scores(torch.zeros(1, 2, 7, 7), site)[0, 0]
    expected = torch.zeros(7, 7)
    expected[:4, 5] = math.log(2)
    assert booster.wants(site) and torch.equal(gain, expected)
    assert not booster.wants(site._replace(kind="self"))


def test_the_settings_travel_in_recipes():
    for thing in (KeyWordBoost(0.2, "logit_scale"), KeyWords(marker="*", rate=0.1)):
        assert build(recipe_of(thing)) == thing


def test_rows_and_padding_keep_their_places():
    """Key tokens are where the encoder put them, alone or in company."""
    encoder = Words(["a", "red", "and", "dog"], 8, 1, 2)
    texts = ["a dog", "a red dog and a red dog"]
    spans = encoder.spans(texts, [KeyWords().find(text) for text in texts])
    ids = encoder.tokenize(texts).ids
    for row, own in zip(ids, spans, strict=True):
        assert [int(row[s.start]) for s in own] == [encoder.ids[s.phrase] for s in own]
    assert F.one_hot(torch.tensor([s.start for s in spans[1]]), 9).sum(0).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0]
