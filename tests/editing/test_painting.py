"""Paint with words: the formula by hand, and what holds on every network."""

import math

import pytest
import torch
from network_list import Case, everything
from watcher import Watcher

from diffx import Cond, Denoiser
from diffx.guidance import KeyWordBoost, PaintedSpan, PaintWithWords, classifier_free, painted
from diffx.guidance.painting import _Painter
from diffx.networks import RIN, DiT, Site, UNet, UViT, attention_control
from diffx.recipes import recipe_of
from diffx.recipes.build import build
from diffx.text import TokenSpan

TOKENS = {"t5": 12, "clip": 7}
MAKERS = {
    "unet": lambda: UNet(3, width=16, mults=(1, 2), blocks=1, tokens=TOKENS, head_dim=8),
    "dit": lambda: DiT(3, size=8, width=16, depth=2, heads=2, tokens=TOKENS, other_sizes="stretch"),
    "uvit": lambda: UViT(3, size=8, width=16, mults=(1,), blocks=1, middle=24, depth=2, heads=2, tokens=TOKENS, other_sizes="stretch"),
}
SPANS = [
    [TokenSpan("dog", "t5", 1, 3), TokenSpan("dog", "clip", 0, 1), TokenSpan("cat", "t5", 0, 1)],
    [TokenSpan("cat", "t5", 2, 4), TokenSpan("dog", "t5", 0, 1)],
]
STATE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.7, 5.0])


def network(kind="unet", size=(8, 8)):
    torch.manual_seed(0)
    denoiser = Denoiser(Case(MAKERS[kind]).awake())
    torch.manual_seed(1)
    return denoiser, Cond(**{**everything(denoiser.net, 2, size).__dict__, "spans": SPANS})


def corner(height=8, width=8):
    region = torch.zeros(height, width)
    region[: height // 2, : width // 2] = 1
    return region


def watched(denoiser, *inputs):
    with attention_control(Watcher()) as watcher:
        denoiser(*inputs)
    return watcher


@pytest.mark.parametrize(("sigma", "expected"), [(1.0, 0.320377), (80.0, 0.75)])
def test_by_hand(sigma, expected):
    """Four keys, all logits 1, one of them painted, w' = 1/2."""
    site = Site("here", "cross", (1, 1), 0, {"t5": slice(0, 4)}, torch.zeros(1))
    span = PaintedSpan("dog", "t5", 0, 1, torch.ones(1, 1))
    cond = Cond(tokens={"t5": torch.zeros(1, 4, 2)}, spans=[[span]])
    painter = _Painter(PaintWithWords(0.5), cond, torch.tensor([sigma]), (1, 1))
    told = painter.scores(torch.ones(1, 1, 1, 4), site).softmax(-1)[0, 0, 0]
    assert told[0].item() == pytest.approx(expected, abs=1e-6)


def test_sizes_are_of_each_sample_and_of_real_tokens():
    scores = torch.tensor([[[[1.0, 5.0, -math.inf]]], [[[-1.0, -3.0, -2.0]]]])
    assert PaintWithWords().size(scores).flatten().tolist() == [5.0, 0.0]  # a negative size would push away
    torch.testing.assert_close(PaintWithWords(form="std").size(scores).flatten(), torch.tensor([2.0, math.sqrt(2 / 3)]))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_the_first_layer_follows_the_formula(kind, size):
    """On square and oblong grids, against attention without paint."""
    denoiser, cond = network(kind, size)
    x, sigma = torch.randn(2, 3, *size), torch.tensor([0.7, 5.0])
    brush, region = PaintWithWords(0.4), corner(*size)

    class Logits(Watcher):
        def scores(self, scores, site):
            self.logits = {**getattr(self, "logits", {}), site.layer: scores}
            return scores

    with attention_control(Logits()) as plain:
        denoiser(x, sigma, cond)
    after = watched(brush(denoiser), x, sigma, painted(cond, {"dog": region}))
    layer = next(iter(plain.seen))
    site, logits = plain.sites[layer], plain.logits[layer]
    cells = torch.nn.functional.adaptive_avg_pool2d(region[None, None], site.grid).flatten()
    assert 0 < cells.mean() < 1
    told = torch.zeros(2, cells.numel(), logits.shape[-1])
    t5, clip = site.key_slices["t5"].start, site.key_slices["clip"].start
    for row, columns in ((0, [t5 + 1, t5 + 2, clip]), (1, [t5])):
        told[row][:, columns] = cells[:, None]
    gain = 0.4 * torch.log1p(sigma)[:, None, None, None] * logits.flatten(1).amax(1).clamp(min=0)[:, None, None, None]
    torch.testing.assert_close(after.seen[layer], (logits + gain * told[:, None]).softmax(-1), atol=1e-5, rtol=1e-4)


def test_no_weight_no_paint_and_an_empty_region_change_nothing():
    denoiser, cond = network()
    plain = denoiser(*STATE, cond)
    assert torch.equal(PaintWithWords(0.0)(denoiser)(*STATE, painted(cond, {"dog": corner()})), plain)
    assert torch.equal(PaintWithWords(2.0)(denoiser)(*STATE, cond), plain)
    empty = PaintWithWords(2.0)(denoiser)(*STATE, painted(cond, {"dog": torch.zeros(8, 8)}))
    torch.testing.assert_close(empty, plain, atol=1e-5, rtol=0)
    assert (PaintWithWords(2.0)(denoiser)(*STATE, painted(cond, {"dog": corner()})) - plain).abs().max() > 1e-4


def test_samples_do_not_know_of_each_other():
    denoiser, cond = network()
    regions = torch.stack([corner(), 1 - corner()])
    both = PaintWithWords(1.0)(denoiser)(*STATE, painted(cond, {"dog": regions}))
    for row in range(2):
        alone = painted(cond.rows(slice(row, row + 1)), {"dog": regions[row]})
        one = PaintWithWords(1.0)(denoiser)(STATE[0][row : row + 1], STATE[1][row : row + 1], alone)
        torch.testing.assert_close(one, both[row : row + 1], atol=1e-5, rtol=0)


def test_guidance_paints_the_told_half_only():
    denoiser, cond = network()
    brush = PaintWithWords(2.0)(denoiser)
    cond = painted(cond, {"cat": corner()})
    guided = classifier_free(brush, cond, cond.hidden(), 3.0)(*STATE)
    told, free = brush(*STATE, cond), denoiser(*STATE, cond.hidden())
    torch.testing.assert_close(guided, free + 3 * (told - free), atol=1e-4, rtol=1e-4)


def test_strengths_scale_and_phrases_add():
    denoiser, cond = network()

    def paint(weight, regions):
        return PaintWithWords(weight)(denoiser)(*STATE, painted(cond, regions))

    torch.testing.assert_close(paint(0.5, {"dog": 2 * corner()}), paint(1.0, {"dog": corner()}), atol=1e-5, rtol=0)
    assert (paint(1.0, {"dog": corner(), "cat": 1 - corner()}) - paint(1.0, {"dog": corner()})).abs().max() > 1e-4


def test_paint_and_a_boost_of_key_words_both_act():
    denoiser, cond = network()
    cond = painted(cond, {"dog": corner()})
    first = PaintWithWords(0.5)(KeyWordBoost(1.0)(denoiser))(*STATE, cond)  # type: ignore[arg-type]
    other = PaintWithWords(0.5)(denoiser)(*STATE, cond)
    assert (first - other).abs().max() > 1e-4


def test_a_network_that_cannot_be_painted_says_so():
    net = RIN(3, size=8, patch=4, width=16, latents=6, latent_width=32, blocks=1, depth=1, heads=2, read_heads=2, tokens=TOKENS)
    cond = painted(Cond(**{**everything(net, 2, (8, 8)).__dict__, "spans": SPANS}), {"dog": corner()})
    with pytest.raises(ValueError, match="positions attend to text"):
        PaintWithWords()(Denoiser(net))(*STATE, cond)


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ({"bird": corner()}, "no phrase 'bird' among the spans of sample 0; they are"),
        ({"dog": torch.ones(3, 8, 8)}, r"must be \(H, W\) or \(2, H, W\)"),
        ({"dog": -corner()}, "not negative"),
    ],
)
def test_regions_that_cannot_be(regions, said):
    _, cond = network()
    with pytest.raises(ValueError, match=said):
        painted(cond, regions)


def test_a_region_of_other_proportions_is_refused_and_one_of_another_size_is_not():
    denoiser, cond = network()
    large = PaintWithWords()(denoiser)(*STATE, painted(cond, {"dog": corner(64, 64)}))
    torch.testing.assert_close(large, PaintWithWords()(denoiser)(*STATE, painted(cond, {"dog": corner()})), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="has not the proportions of the data"):
        PaintWithWords()(denoiser)(*STATE, painted(cond, {"dog": corner(8, 16)}))


def test_without_spans_there_is_nothing_to_paint():
    with pytest.raises(ValueError, match="where the phrases stand"):
        painted(Cond(tokens={"t5": torch.zeros(1, 2, 3)}), {"dog": corner()})


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"weight": math.nan}, {"form": "mean"}])
def test_settings_that_cannot_be(options):
    with pytest.raises(ValueError, match="weight must be at least 0"):
        PaintWithWords(**options)


def test_the_settings_travel_in_recipes():
    assert build(recipe_of(PaintWithWords(0.2, "std"))) == PaintWithWords(0.2, "std")
