"""The prior: what it reads and draws, how candidates are chosen, causal attention, and the drawn vector on its way to a decoder."""

import pytest
import torch
from technique_list import embedded, prior, unet, words
from torch.nn.functional import normalize

from diffx import EDM, Cond, Denoiser, rng
from diffx.codecs import Standardised
from diffx.networks import AttentionController, PriorTransformer, attention_control
from diffx.networks.prior_transformer import causal
from diffx.samplers import Heun
from diffx.text import VectorTokens, Words


def test_it_draws_a_known_vector():
    """A denoiser that knows the vector: whatever the noise, it is drawn, at unit length."""
    module, known = prior(), normalize(torch.arange(6.0), dim=0)
    module.denoiser.forward = lambda x, sigma, cond=None: module.codec.encode(known).expand_as(x)
    torch.testing.assert_close(module.sample(3, words(3), seed=0), known.expand(3, -1), atol=1e-5, rtol=0)


def test_embeddings_are_learnt_at_unit_length_and_standardised():
    module, batch = prior(), embedded(4)
    x, _ = module.inputs({**batch, "embedding": 7 * batch["embedding"]})
    torch.testing.assert_close(module.codec.decode(x), normalize(batch["embedding"], dim=1))


@pytest.mark.parametrize("batch", [{"x": torch.zeros(2, 1, 8, 8)}, {"embedding": torch.zeros(2, 5)}, {"embedding": [None, None]}])
def test_embeddings_that_are_missing_or_too_short_are_refused(batch):
    with pytest.raises(ValueError, match=r"learns the embeddings 'embedding' \(B, 6\)"):
        prior().embedding(batch)


def test_pictures_may_have_any_shape_but_embeddings_are_vectors():
    prior().check_shape((3, 64, 64))
    with pytest.raises(ValueError, match=r"its shape is \(length,\); got \(1, 6\)"):
        type(prior())(Denoiser(PriorTransformer(6, width=16, depth=1, heads=2)), shape=(1, 6))


def test_the_candidate_nearest_to_the_text_is_taken():
    module = prior(toward="aim")
    aim = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    told = Cond(vectors={"aim": aim})
    module.denoiser.forward = lambda x, sigma, cond=None: x  # what is drawn is the noise
    single = [module.sample(3, told, seed=5 + k * rng.STRIDE) for k in range(3)]
    best = torch.stack([(drawn * aim).sum(1) for drawn in single]).argmax(0)
    chosen = module.sample(3, told, seed=5, candidates=3)
    assert len(best.unique()) > 1
    torch.testing.assert_close(chosen, torch.stack([single[k][i] for i, k in enumerate(best)]))


@pytest.mark.parametrize(("candidates", "cond"), [(0, words(2)), (2, Cond()), (2, words(2))])
def test_candidates_that_cannot_be_chosen_are_refused(candidates, cond):
    with pytest.raises(ValueError, match=r"candidates must be at least 1.*'text_pooled' of length 6"):
        prior().sample(2, cond, candidates=candidates)


def test_attention_looks_back_at_what_is_real():
    real = torch.tensor([[False, True, False, True, True]])
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]]
    assert causal(real)[0, 0].int().tolist() == expected


def test_a_controller_sees_where_the_text_stands():
    sites, net = [], PriorTransformer(6, width=16, depth=2, heads=2, tokens={"words": 8})

    class Watch(AttentionController):
        def probs(self, probs, site):
            sites.append((site.layer, site.key_slices, probs.shape))
            return probs

    with attention_control(Watch()):
        net(torch.zeros(2, 6), torch.zeros(2), Cond(tokens={"words": torch.randn(2, 4, 8)}))
    assert sites == [(f"layers.{i}", {"words": slice(0, 4)}, (2, 2, 7, 7)) for i in range(2)]


def test_a_drawn_embedding_reaches_the_decoder_as_vector_and_tokens():
    net = unet(classes=0, tokens={"image": 8, "words": 8}, vectors={"image_pooled": 6})
    text = {"image": VectorTokens(6, 8), "words": Words(["red", "blue"], 8, 1, 2)}
    decoder = EDM(Denoiser(net), shape=(1, 8, 8), text=text, drop={"image": 0.1, "words": 0.5}, sampler=Heun(2))
    filled = prior().fill({"text": ["red", "blue red"]}, seed=0)
    told = decoder.condition(filled)
    torch.testing.assert_close(told.vectors["image_pooled"], 6**0.5 * filled["embedding"])
    longer = decoder.condition({**filled, "embedding": 3 * filled["embedding"]})
    torch.testing.assert_close(longer.tokens["image"], told.tokens["image"])  # only the direction counts
    assert told.tokens["image"].shape == (2, 4, 8)
    assert decoder.sample(2, told, guidance=2.0, seed=0).shape == (2, 1, 8, 8)
    torch.testing.assert_close(filled["embedding"].norm(dim=1), torch.ones(2))


def test_a_batch_that_tells_nothing_is_refused():
    with pytest.raises(ValueError, match=r"reads none of the columns \['label'\]"):
        type(prior())(Denoiser(PriorTransformer(6, width=16, depth=1, heads=2)), shape=(6,)).fill({"label": torch.zeros(2).long()})


def test_picture_and_text_are_hidden_independently():
    torch.manual_seed(0)
    net = unet(classes=0, tokens={"image": 8, "words": 8}, vectors={"image_pooled": 6})
    text = {"image": VectorTokens(6, 8), "words": Words(["red", "blue"], 8, 1, 2)}
    decoder = EDM(Denoiser(net), shape=(1, 8, 8), text=text, drop={"image": 0.1, "words": 0.5})
    n = 20_000
    batch = {"x": torch.zeros(n, 1, 1, 1), "text": ["red"] * n, "embedding": torch.ones(n, 6)}
    keep = decoder.inputs(batch)[1].keep
    assert torch.equal(keep["image"], keep["image_pooled"])
    hidden = {name: 1 - keep[name].float().mean() for name in ("image", "words")}
    both = (~keep["image"] & ~keep["words"]).float().mean()
    assert abs(hidden["image"] - 0.1) < 0.01 and abs(hidden["words"] - 0.5) < 0.015 and abs(both - 0.05) < 0.01


@pytest.mark.parametrize("column", [torch.zeros(2, 5), torch.zeros(6), ["red", "blue"]])
def test_a_column_that_is_no_vector_is_refused(column):
    with pytest.raises(ValueError, match=r"reads vectors \(B, 6\) from 'embedding'"):
        VectorTokens(6, 8).encode(column)


def test_standardising_is_undone():
    codec, x = Standardised(0.3, 0.02), torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(codec.decode(codec.encode(x)), x, atol=1e-12, rtol=0)
    assert codec.shape((6,)) == (6,)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        Standardised(0.0, 0)
