"""Encoders: padding, truncation, pooling, gradients, spans, fingerprints, and what they leave in checkpoints."""

import copy
import logging
import math
import socket
import sys

import numpy as np
import pytest
import torch
from text_encoders import FROZEN, LEARNED, needs_transformers, params, published

from diffx.audio import mel_scale
from diffx.codebook import Codebook
from diffx.data import Shapes
from diffx.data.shapes import VOCABULARY
from diffx.networks import ConvAutoencoder
from diffx.resizing import shrink
from diffx.text import T5, Bytes, CLIPImage, CLIPText, Codes, Mel, MiniLM, Tokenized, Words
from diffx.text.library import minilm_folder
from diffx.tokenizers import VQ, PixelLevels

SHORT, LONG = "a red circle", "a green square and a blue triangle and a yellow circle"


@pytest.fixture(params=params({**LEARNED, **FROZEN}))
def make(request):
    return request.param


def exact(make, **options):
    """An encoder in float64: the learned ones are cast, the frozen ones keep what they are built with."""
    return make(dtype="float64", **options) if make in FROZEN.values() else make(**options).double()


def test_tokens_masks_and_pooled_have_the_promised_shapes(make):
    encoder = make()
    tokens, mask, pooled = encoder.encode([SHORT, "", LONG])
    assert tokens.shape == (3, mask.shape[1], encoder.dim) and pooled.shape == (3, encoder.pooled_dim)
    assert mask.dtype == torch.bool and mask.any(1).all() and mask[2].all() and not mask[0].all()
    assert tokens[~mask].eq(0).all() and tokens[mask].ne(0).any(-1).all() and tokens.isfinite().all() and pooled.isfinite().all()


@pytest.mark.parametrize("pad", ["longest", "max"])
def test_a_text_is_encoded_alike_in_any_company(make, pad):
    """Catches a missing attention mask: neither longer neighbours nor padding to the maximum show."""
    alone = make(pad="longest").eval()
    beside = copy.deepcopy(alone)
    beside.pad = pad
    one, two = alone.encode([SHORT]), beside.encode([LONG, SHORT])
    length = one.tokens.shape[1]
    torch.testing.assert_close(two.tokens[1, :length], one.tokens[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(two.pooled[1], one.pooled[0], atol=1e-5, rtol=0)
    assert two.tokens.shape[1] == (beside.max_len if pad == "max" else int(two.mask.sum(1).max()))


def test_padding_may_be_attended_as_published_networks_do(make):
    attended = make(pad="attend").eval()
    out = attended.encode([SHORT])
    assert out.mask.all() and out.tokens.shape[1] == attended.max_len and out.tokens[:, -1].ne(0).any()


def test_given_embeddings_replace_the_looked_up_ones(make):
    encoder = make().eval()
    tokens = encoder.tokenize([SHORT, LONG])
    plain = encoder.encode([SHORT, LONG])
    given = encoder.encode(tokens, inputs_embeds=encoder.embed(tokens.ids))
    torch.testing.assert_close(given.tokens, plain.tokens)
    torch.testing.assert_close(given.pooled, plain.pooled)
    again = encoder.encode([SHORT, LONG])  # nothing of the replacement stays behind
    assert torch.equal(again.tokens, plain.tokens)


def test_gradients_flow_through_given_embeddings(make):
    """Against central differences along random directions, in float64; also where the weights are frozen."""
    encoder = exact(make).eval()
    tokens = encoder.tokenize([SHORT, LONG])
    embeds = encoder.embed(tokens.ids).detach().requires_grad_()
    ruler = [torch.randn_like(part) for part in encoder.encode(tokens)[::2]]

    def height(inputs):
        out = encoder.encode(tokens, inputs_embeds=inputs)
        return (out.tokens * ruler[0]).sum() + (out.pooled * ruler[1]).sum()

    (slope,) = torch.autograd.grad(height(embeds), embeds)
    assert slope.isfinite().all() and slope.norm() > 0
    for _ in range(3):
        aside = torch.randn_like(embeds)
        way = slope / slope.norm() + aside / aside.norm()  # not nearly orthogonal to the slope, or rounding would be all that is seen
        step = 1e-3  # T5 squares in float32 whatever its precision: a smaller step would see its rounding
        rise = (height(embeds.detach() + step * way) - height(embeds.detach() - step * way)) / (2 * step)
        torch.testing.assert_close((slope * way).sum(), rise, rtol=1e-4, atol=0)


def test_only_trained_encoders_build_a_graph_by_themselves(make):
    encoder = make().train()
    out = encoder.encode([SHORT])
    assert out.tokens.requires_grad == encoder.trainable == any(p.requires_grad for p in encoder.parameters())
    assert encoder.training == encoder.trainable


def test_long_texts_are_cut_and_counted(make, caplog):
    encoder = make(max_len=6)
    free = make()
    texts = [SHORT, LONG, " ", "", LONG]
    with caplog.at_level(logging.WARNING):
        tokens = encoder.tokenize(texts)
    lengths = [len(row.ids) for row in free.rows(texts)]
    assert tokens.ids.shape[1] <= 6 and tokens.mask.sum(1).tolist() == [min(6, n) for n in lengths]
    assert encoder.counts == {"texts": 5, "truncated": sum(n > 6 for n in lengths), "empty": 2}
    assert all(row.ids[-1] == ids[mask][-1] for row, ids, mask in zip(free.rows(texts), tokens.ids, tokens.mask, strict=True))
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 1 and "after 6 tokens" in warnings[0]


@pytest.mark.parametrize(("texts", "kind"), [(SHORT, TypeError), ([SHORT, 3], TypeError), ([], ValueError)])
def test_what_is_no_list_of_texts_is_refused(make, texts, kind):
    with pytest.raises(kind, match="got"):
        make().encode(texts)


def test_bytes_need_no_vocabulary():
    encoder = Bytes(max_len=64)
    tokens = encoder.tokenize(["ein rötlicher Kreis 🙂"])
    assert bytes(tokens.ids[0, 1:-1].tolist()).decode() == "ein rötlicher Kreis 🙂"


def test_words_outside_the_vocabulary_are_named():
    encoder = Words(VOCABULARY)
    with pytest.raises(ValueError, match=r"'cirkle' in 'a red cirkle' is not in the vocabulary; did you mean 'circle'"):
        encoder.encode(["a red cirkle"])
    with pytest.raises(ValueError, match="each once"):
        Words(["red", "Red"])
    assert torch.equal(encoder.tokenize(["A Red CIRCLE"]).ids, encoder.tokenize([SHORT]).ids)


# Spans ------------------------------------------------------------------------------------------------------------------------------------


def test_spans_of_phrases_hold_their_words(make):
    encoder = make(max_len=77)
    (spans,) = encoder.spans([LONG], [["a", "blue triangle"]], "t5")
    assert [span.phrase for span in spans] == ["a", "a", "a", "blue triangle"] and {span.source for span in spans} == {"t5"}
    offsets = encoder.rows([LONG])[0].offsets
    for phrase, _, start, stop in spans:
        assert LONG[offsets[start][0] : offsets[stop - 1][1]] == phrase
    with pytest.raises(ValueError, match="there is no 'tri' in"):
        encoder.spans([LONG], [["tri"]])


def test_character_spans_of_the_data_become_token_spans():
    encoder = Words(VOCABULARY, max_len=8)
    batch = Shapes(8, val_items=0).train.fetch(np.arange(64), 0)
    words = [*VOCABULARY]
    found = encoder.spans(batch["text"], batch["spans"])
    for text, given, row, spans in zip(batch["text"], batch["spans"], encoder.rows(batch["text"]), found, strict=True):
        assert spans[: len(given)] == spans
        for phrase, _, start, stop in spans:
            assert " ".join(words[token] for token in row.ids[start:stop]) == phrase or stop == 7, text  # the cut may halve a phrase
        assert len(spans) == sum(len(text[: span.start].split()) < 6 for span in given)  # six words fit


# Published layouts ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return published(tmp_path_factory.mktemp("clip"))


def test_a_local_folder_is_loaded_and_cut_as_transformers_does(folder):
    from transformers import AutoTokenizer, CLIPTextModel

    encoder = CLIPText(str(folder), max_len=7)
    inputs = AutoTokenizer.from_pretrained(folder)([SHORT, LONG], truncation=True, max_length=7, padding=True, return_tensors="pt")
    tokens = encoder.tokenize([SHORT, LONG])
    assert torch.equal(tokens.ids[tokens.mask], inputs["input_ids"][inputs["attention_mask"].bool()])
    theirs = CLIPTextModel.from_pretrained(folder).eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    ours = encoder.encode([SHORT, LONG])
    torch.testing.assert_close(ours.tokens[ours.mask], theirs.last_hidden_state[ours.mask])
    assert (ours.tokens[0, 4] == ours.pooled[0]).all()  # start, three words, end


def test_without_a_network_everything_loads(folder, monkeypatch):
    def closed(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    for encoder in (Bytes(), Words(VOCABULARY), T5.tiny(), CLIPText.tiny(), MiniLM.tiny(), CLIPText(str(folder))):
        assert encoder.encode([SHORT]).tokens.isfinite().all()


@needs_transformers
def test_places_without_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} lacks what is needed"):
        T5(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder models/nowhere; a model on transformers' hub is written hub:models/nowhere"):
        T5("models/nowhere")
    with pytest.raises(ValueError, match="a path or a config"):
        T5()
    with pytest.raises(ValueError, match="77 positions"):
        CLIPText.tiny(max_len=78)
    with pytest.raises(ValueError, match="overflows in float16"):
        T5.tiny(dtype="float16")


@pytest.mark.parametrize("kind", [T5, CLIPText, CLIPImage])
def test_without_transformers_the_extra_is_named(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"diffx\[text\]"):
        kind("anywhere")


# CLIP -------------------------------------------------------------------------------------------------------------------------------------


@needs_transformers
@pytest.mark.parametrize("projection", [False, True])
def test_clip_pools_as_transformers_does(projection):
    encoder = CLIPText.tiny(projection=projection)
    ids, mask = encoder.tokenize([SHORT, LONG])
    theirs = encoder.model(input_ids=ids, attention_mask=mask.long())
    torch.testing.assert_close(encoder.encode([SHORT, LONG]).pooled, theirs.text_embeds if projection else theirs.pooler_output)


@needs_transformers
def test_new_words_do_not_move_clips_pooling():
    """A legacy configuration lets transformers pool at the largest id, where a new word would sit; we look for the end token."""
    encoder = CLIPText(config={**CLIPText.TINY, "eos_token_id": 2})
    ids, mask = encoder.tokenize([SHORT])
    ids[0, 3] = 270  # above the end token 257
    legacy = encoder.model(input_ids=ids, attention_mask=mask.long())
    ours = encoder.encode(Tokenized(ids, mask))
    assert torch.equal(legacy.pooler_output[0], legacy.last_hidden_state[0, 3])  # the trap
    assert torch.equal(ours.pooled[0], legacy.last_hidden_state[0, -1])

    beyond = ids.clone()
    beyond[0, 3] = 5000  # no row in the table: its embedding is given
    embeds = encoder.embed(ids)
    assert torch.equal(encoder.encode(Tokenized(beyond, mask), inputs_embeds=embeds).pooled, ours.pooled)
    with pytest.raises(ValueError, match="end token 257"):
        encoder.encode(Tokenized(ids[:, :-1], mask[:, :-1]))


@needs_transformers
def test_the_layer_before_the_last_comes_without_final_norm():
    encoder = CLIPText.tiny(layer=-2)
    ids, mask = encoder.tokenize([SHORT, LONG])
    shorter = copy.deepcopy(encoder.model)
    shorter.encoder.layers = shorter.encoder.layers[:-1]
    shorter.final_layer_norm = torch.nn.Identity()
    theirs = shorter(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    out = encoder.encode([SHORT, LONG])
    torch.testing.assert_close(out.tokens[mask], theirs[mask])
    assert torch.equal(out.pooled, CLIPText.tiny().encode([SHORT, LONG]).pooled)


@needs_transformers
@pytest.mark.parametrize("form", ["embedding", "patches"])
def test_clip_sees_the_middle_square(form):
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    encoder = CLIPImage.tiny(tokens=form)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    out, square = encoder.encode(x), encoder.encode(x[..., 4:20])
    assert torch.equal(out.tokens, square.tokens) and out.tokens.shape == (2, 1 if form == "embedding" else 17, encoder.dim)
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    theirs = encoder.model(pixel_values=((x[..., 4:20] + 1) / 2 - mean) / std)
    torch.testing.assert_close(out.pooled, theirs.image_embeds)
    assert encoder.encode(torch.zeros(1, 3, 50, 33)).tokens.isfinite().all() and not out.tokens.requires_grad
    x.requires_grad_()
    encoder.encode(x).pooled.sum().backward()
    assert x.grad[..., 4:20].abs().sum() > 0 and x.grad[..., :4].abs().sum() == 0
    with pytest.raises(ValueError, match="RGB pictures"):
        encoder.encode(torch.zeros(1, 1, 16, 16))


@needs_transformers
def test_minilm_from_the_installed_package_knows_english():
    try:
        minilm_folder()
    except ImportError:
        pytest.skip("the extra minilm is not installed")
    encoder = MiniLM()
    pooled = encoder.encode(["a photo of a dog", "a picture of a puppy", "the annual report of a bank"]).pooled
    near, far = pooled[0] @ pooled[1], pooled[0] @ pooled[2]
    assert encoder.dim == 384 and near > far + 0.3
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))


# Identity ---------------------------------------------------------------------------------------------------------------------------------


def test_a_fingerprint_means_these_weights_and_settings(make):
    torch.manual_seed(0)
    one = make()
    torch.manual_seed(0)
    assert make().fingerprint == one.fingerprint and len(one.fingerprint) == 64
    torch.manual_seed(0)
    assert make(max_len=20).fingerprint != one.fingerprint
    torch.manual_seed(0)
    other = make()
    weight = next(other.parameters())
    with torch.no_grad():
        weight.view(-1)[5] = torch.nextafter(weight.view(-1)[5], torch.tensor(9.0))
    assert other.fingerprint != one.fingerprint


def test_a_folder_may_move_but_not_change(folder, tmp_path):
    moved = published(tmp_path / "elsewhere")
    assert CLIPText(str(moved)).fingerprint == CLIPText(str(folder)).fingerprint
    assert CLIPText(str(published(tmp_path / "other", seed=1))).fingerprint != CLIPText(str(folder)).fingerprint


@pytest.mark.parametrize("make", params(FROZEN))
def test_frozen_encoders_keep_precision_and_leave_only_a_stamp(make):
    encoder = make()
    before = encoder.encode([SHORT]).tokens
    assert torch.equal(encoder.to(torch.bfloat16).encode([SHORT]).tokens, before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode([SHORT]).tokens, before)
    state = encoder.state_dict()
    assert list(state) == ["stamp"] and bytes(state["stamp"].tolist()).hex() == encoder.fingerprint
    make().load_state_dict(state)
    with pytest.raises(ValueError, match="trained with another encoder"):
        make(seed=1).load_state_dict(state)
    with pytest.raises(RuntimeError, match="stamp"):
        make().load_state_dict({})


@pytest.mark.parametrize("make", params(LEARNED))
def test_learned_encoders_travel_in_checkpoints(make):
    one, other = make(), make()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.encode([SHORT]).tokens, other.encode([SHORT]).tokens) and "stamp" not in one.state_dict()


def test_mel_hears_loudness_and_pitch():
    encoder, time = Mel(8000, bands=40, n_fft=512, hop=128), torch.arange(4096) / 8000
    tone = torch.sin(2 * math.pi * 1000 * time)[None, None]
    out = encoder.encode(torch.cat([tone, 0.1 * tone, 0 * tone]))
    assert out.tokens.shape == (3, 32, 40) and out.mask.all() and out.pooled is None
    loud, soft, silent = out.tokens[:, 8:24].mean(1)
    corners = torch.linspace(mel_scale(0), mel_scale(4000), 42)
    assert loud.argmax() == (corners[1:-1] - mel_scale(1000)).abs().argmin() and loud.max() == pytest.approx(1, abs=0.05)
    assert (loud - soft).max().item() == pytest.approx(math.log(10) / -math.log(1e-5), abs=1e-3)
    assert silent.abs().max() < 1e-6 and sum(p.numel() for p in encoder.parameters()) == 0
    x = tone.clone().requires_grad_()
    encoder.encode(x).tokens.sum().backward()
    assert x.grad.abs().sum() > 0 and encoder.fingerprint != Mel(8000, bands=41, n_fft=512, hop=128).fingerprint
    for bad in (torch.zeros(2, 2, 4096), torch.zeros(4096), "la"):
        with pytest.raises(ValueError, match="one channel"):
            encoder.encode(bad)
    with pytest.raises(ValueError, match="multiple of hop"):
        encoder.encode(torch.zeros(1, 1, 4000))


def test_codes_are_those_of_the_shrunk_picture():
    torch.manual_seed(0)
    encoder = Codes(PixelLevels(5), (1, 4, 6), width=8, heads=2).train()
    small = torch.randint(5, (2, 1, 4, 6)) / 2 - 1.0
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    out = encoder.encode(small)
    assert out.tokens.shape == (2, 24, 8) and out.mask.all() and torch.equal(out.pooled, out.tokens.mean(1))
    assert torch.equal(encoder.encode(shrink(large, 2)).tokens, encoder.encode(large).tokens)
    out.tokens.sum().backward()
    used = torch.zeros(5).index_add_(0, encoder.codec.encode(small).flatten(), torch.ones(48)) > 0
    assert torch.equal(encoder.table.weight.grad.abs().sum(1) > 0, used)
    vq = VQ(ConvAutoencoder(1, 4, 8, (1, 2), moments=False), Codebook(6, 4))
    told = Codes(vq, (1, 8, 8), width=8, heads=2).train()
    assert told.training and not vq.training
    assert not any(p.requires_grad for p in vq.parameters()) and told.encode(torch.zeros(1, 1, 8, 8)).tokens.shape[1] == 16
    for bad in (torch.zeros(1, 1, 6, 6), torch.zeros(1, 3, 4, 6), torch.zeros(1, 1, 2, 3), "picture"):
        with pytest.raises(ValueError, match="Codes looks at pictures"):
            encoder.encode(bad)
