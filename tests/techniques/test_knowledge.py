"""Knowledge enhancement: what the step does with key words, regions and rewritten captions, and that each can be switched off."""

import numpy as np
import pytest
import torch

from diffx import EDM, Denoiser
from diffx.data import Annotated, Shapes, ShapesOracle, normalise
from diffx.distances import ObjectRegions
from diffx.guidance import KeyWordBoost
from diffx.networks import AttentionController, UNet, attention_control
from diffx.networks.attention import active_controller
from diffx.samplers import Heun
from diffx.techniques import KnowledgeEnhanced
from diffx.text import KeyWords, Words

VOCABULARY = ["a", "and", "with", "object", "red", "green", "blue", "yellow", "circle", "square", "triangle", "*"]


def module(kind=KnowledgeEnhanced, *, tokens=True, seed=0, **options):
    torch.manual_seed(seed)
    told = {"tokens": {"text": 8}} if tokens else {"vectors": {"text_pooled": 8}}
    net = UNet(3, width=16, mults=(1, 2), blocks=1, **told)
    with torch.no_grad():
        for p in net.parameters():
            if p.abs().max() < 1e-3:
                p.normal_(std=0.1)
    text = Words(VOCABULARY, 8, 1, 2)
    return kind(Denoiser(net), shape=(3, 16, 16), text=text, sampler=Heun(3), drop=0.0, **options)


def batch(n=6, spans=False, **options):
    data = Annotated(Shapes(8, items=20, val_items=4, drop=0.3, spans=spans), ShapesOracle(), 8, append=0.4, replace=0.3)
    made = data.train.fetch(np.arange(n), 0)
    return {**made, "x": normalise(made["x"])}


def loss(module, batch):
    torch.manual_seed(3)
    return module.loss(batch, torch.full((len(batch["x"]),), 0.5))


OFF = {"key_words": None, "boost": None}


def test_all_switched_off_is_edm():
    plain, ours = loss(module(EDM), batch()), loss(module(**OFF), batch())
    for name in ("loss", "mse"):
        assert torch.equal(plain[name], ours[name])


def test_each_part_changes_the_loss_by_itself():
    base = loss(module(**OFF), batch())["loss"]
    for options in (
        {"boost": KeyWordBoost(1.0)},
        {**OFF, "distance": ObjectRegions(1.0)},
        {"boost": None, "key_words": KeyWords(marker="*", rate=1.0)},
    ):
        assert (loss(module(**options), batch())["loss"] - base).abs().max() > 1e-4
    assert torch.equal(loss(module(boost=None), batch())["loss"], base)  # spans alone do nothing


def test_the_region_weight_is_that_of_the_boxes():
    ours, given = module(**OFF, distance=ObjectRegions(3.0)), batch()
    weighed, plain = loss(ours, given), loss(module(**OFF), given)
    assert torch.equal(weighed["mse"], plain["mse"]) and (weighed["loss"] > plain["loss"]).all()
    none = {**given, "boxes": torch.zeros_like(given["boxes"])}
    torch.testing.assert_close(loss(ours, none)["loss"], plain["loss"])


def test_rewritten_captions_are_counted():
    given = batch(16)
    parts = loss(module(), given)
    assert parts["appended"].sum() == (given["rewritten"] == 1).sum() > 0
    assert parts["replaced"].sum() == (given["rewritten"] == 2).sum() > 0
    assert "appended" not in loss(module(), {name: column for name, column in given.items() if name != "rewritten"})


@pytest.mark.parametrize("spans", [False, True])
def test_spans_are_the_tokens_of_key_words(spans):
    ours, given = module(), batch(12, spans)
    cond = ours.condition(given)
    ids = ours.text["text"].tokenize(given["text"]).ids
    for text, own, row in zip(given["text"], cond.spans, ids, strict=True):
        words = [ours.text["text"].ids[span.phrase] for span in own]
        assert [int(row[span.start]) for span in own] == words and all(span.stop == span.start + 1 for span in own)
        keys = [word for word in text.split() if word not in ("a", "and", "with") and (not spans or word != "object")]
        assert {span.phrase for span in own} >= set(keys)


def test_marks_reach_the_encoder_in_training_only():
    ours = module(key_words=KeyWords(marker="*", rate=1.0), boost=None)
    star = ours.text["text"].ids["*"]
    seen = []
    ours.text["text"].register_forward_hook(lambda *call: seen.append(call[0].tokenize(call[1][0]).ids))
    ours.train()
    ours.condition(batch())
    ours.eval()
    ours.condition(batch())
    assert (seen[0] == star).any(1).all() and not (seen[1] == star).any()


def test_gaps_in_the_captions():
    given = batch()
    given["text"][1] = None
    cond = module().condition(given)
    assert cond.keep["text"].tolist() == [True, False] + [True] * 4 and cond.spans[1] == []
    assert loss(module(boost=KeyWordBoost(1.0)), given)["loss"].isfinite().all()


def test_sampling_is_boosted_unless_told_otherwise():
    prompts = {"text": ["a red circle", "a blue square and a green triangle"]}

    def drawn(**options):
        ours = module(**options).eval()
        return ours.sample(2, ours.condition(prompts), seed=0)

    plain = drawn(boost=None)
    assert torch.equal(drawn(boost=KeyWordBoost(2.0), boosted="train"), plain)
    assert (drawn(boost=KeyWordBoost(2.0)) - plain).abs().max() > 1e-3
    torch.testing.assert_close(drawn(boost=KeyWordBoost(0.0)), plain, atol=1e-4, rtol=0)


def test_training_is_boosted_either_way():
    given = batch()
    both, train = (loss(module(boost=KeyWordBoost(2.0), boosted=when), given)["loss"] for when in ("both", "train"))
    assert torch.equal(both, train) and not torch.equal(both, loss(module(boost=None), given)["loss"])


def test_nothing_stays_behind():
    ours = module()
    loss(ours, batch())
    assert active_controller() is None
    with attention_control(AttentionController()) as mine:
        loss(ours, batch())
        assert active_controller() is mine


def test_what_cannot_be():
    with pytest.raises(ValueError, match="boosted must be 'both' or 'train', got 'never'"):
        module(boosted="never")
    with pytest.raises(ValueError, match="attends to no tokens"):
        module(tokens=False)
    assert module(tokens=False, boost=None).boost is None
    with pytest.raises(ValueError, match="no column 'boxes'"):
        loss(module(distance=ObjectRegions()), {name: column for name, column in batch().items() if name != "boxes"})
