"""Textual inversion: a word is learnt, nothing else moves."""

from functools import partial

import lightning as L
import pytest
import torch
from technique_list import edm, new_word, pictures, unet

import diffx
from diffx import EDM, Denoiser, EDMPrecond
from diffx.denoiser import LogSigma
from diffx.techniques import TextualInversion
from diffx.tensors import expand
from diffx.text import Bytes, NewWord, Sources, TokenSpan, Words

VOCABULARY = ["a", "and", "big", "blue", "red"]


def words(**options):
    torch.manual_seed(0)
    return NewWord(Words(VOCABULARY, 8, 1, 2), "sks", "red", **options).eval()


# The encoder ----------------------------------------------------------------------------------------------------------------------------


def test_a_word_begins_as_its_initial_word():
    known, texts = words(), ["a sks and a blue", "sks"]
    made, same = known.encode(texts), known.encoder.encode(["a red and a blue", "red"])
    torch.testing.assert_close(made.tokens, same.tokens)
    assert torch.equal(made.mask, same.mask) and made.pooled is not None
    torch.testing.assert_close(made.pooled, same.pooled)


def test_several_vectors_are_several_tokens():
    known = words(vectors=3)
    row = known.rows(["a sks sks blue"])[0]
    assert row.ids[1:-1] == [known.encoder.ids["a"], -1, -2, -3, -1, -2, -3, known.encoder.ids["blue"]]
    same = known.encoder.encode(["a red red red red red red blue"])
    torch.testing.assert_close(known.encode(["a sks sks blue"]).tokens, same.tokens)


def test_spans_are_those_of_the_text_that_was_given():
    known = words(vectors=2)
    found = known.spans(["a sks and a big blue"], [["sks", "big", "blue", "sks and"]])
    assert found == [[
        TokenSpan("sks", "text", 2, 4), TokenSpan("big", "text", 6, 7), TokenSpan("blue", "text", 7, 8), TokenSpan("sks and", "text", 2, 5),
    ]]  # fmt: skip


def test_longer_texts_are_cut_and_only_whole_words_are_it():
    known = words(vectors=4)
    assert known.tokenize(["sks " * 20]).ids.shape == (1, 32) and known.counts["truncated"] == 1
    with pytest.raises(ValueError, match="'sksy' in 'a sksy' is not in the vocabulary"):
        known.encode(["a sksy"])


def test_several_initial_tokens_begin_with_their_mean(caplog):
    torch.manual_seed(0)
    base = Bytes(8, 1, 2, 24)
    known = NewWord(base, "<cat>", "tom")
    assert "begins with their mean" in caplog.text
    torch.testing.assert_close(known.new[0], base.embed(torch.tensor(list(b"tom"))).mean(0))
    ids = known.tokenize(["a <cat>!"]).ids[0]
    assert ids[:5].tolist() == [256, ord("a"), ord(" "), -1, ord("!")]


def test_gradients_reach_the_rows_and_nothing_else():
    known = words()
    known.encode(["a sks"]).tokens.square().sum().backward()
    assert known.new.grad is not None and known.new.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in known.encoder.parameters())
    assert known.fingerprint != words(vectors=2).fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [({"word": " "}, "needs a name"), ({"vectors": 0}, "at least one vector"), ({"init": "green"}, "'green' in 'green' is not in the voc")],
)
def test_words_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        NewWord(Words(VOCABULARY, 8, 1, 2), **{"word": "sks", "init": "red", **options})


# The technique --------------------------------------------------------------------------------------------------------------------------


class Mean(torch.nn.Module):
    """Data N(m, 1/4), where m is the first value of the word's token behind the start; exact for what the text says."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, cond):
        sigma, precond = (4 * noise).exp(), EDMPrecond(noise=LogSigma())
        scales, mean = precond(sigma), expand(cond.tokens["text"][:, 1, 0], x)
        state, square = x / expand(scales.inp, x), expand(sigma, x) ** 2
        best = (square * mean + 0.25 * state) / (square + 0.25)
        return (best - expand(scales.skip, x) * state) / expand(scales.out, x)


def fitted(module, steps, data, **options):
    trainer = L.Trainer(max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                        accelerator="cpu", **options)  # fmt: skip
    loader = torch.utils.data.DataLoader([{"x": row} for row in data], batch_size=len(data))
    trainer.fit(module, loader)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_the_word_comes_to_say_what_the_pictures_show():
    """Its state is the mean of the pictures in the end: the least loss an exact denoiser can have."""
    torch.manual_seed(0)
    base = EDM(Denoiser(Mean(), EDMPrecond(noise=LogSigma())), shape=(1, 4, 4), text=Words(["red"], 4, 0, 1))
    module = TextualInversion(base, word="sks", init="red", templates=["{}"], optimizer=partial(torch.optim.Adam, lr=0.05))
    data = 0.3 + 0.02 * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted(module, 150, data)
    assert float(module.text["text"].encode(["sks"]).tokens[0, 1, 0].detach()) == pytest.approx(0.3, abs=0.06)


@pytest.mark.filterwarnings("ignore")
def test_everything_else_is_bit_for_bit_as_it_was(tmp_path):
    torch.manual_seed(0)
    module = new_word(optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    groups = module.parameter_groups()
    assert list(module.trained_parameters()) == ["text.words.new", "text.bytes.new"] and groups[0]["weight_decay"] == 0
    trainer = fitted(module, 5, pictures(4)["x"])
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"text.words.new", "text.bytes.new"}
    trainer.save_checkpoint(tmp_path / "word.ckpt")
    again = diffx.load(str(tmp_path / "word.ckpt"), "raw")
    asked = [m.condition({"text": ["blue sks", "sks"]}) for m in (module, again)]
    assert torch.equal(again.sample(2, asked[1], seed=3), module.sample(2, asked[0], seed=3))


def test_pictures_are_told_templates_and_captions_are_not_read():
    module = new_word()
    module.train()
    _, cond = module.inputs({"x": pictures(64)["x"], "text": ["green words that nobody knows"] * 64})
    lengths = cond.masks["words"].sum(1)
    module.check_guidance(3.0, cond)  # the model was trained with hidden conditions, so the word can be guided towards
    assert set(lengths.tolist()) == {4, 5}  # start, two rows, end; and "blue" before them


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TextualInversion(edm(), word="sks", init="red"), "has no text encoder"),
        (lambda: TextualInversion(text_model(), word="sks", init="red", templates=["a thing"]), r"templates need \{\}"),
        (lambda: TextualInversion(text_model(), word="sks", init="red", templates=[]), r"templates need \{\}"),
    ],
)
def test_what_cannot_learn_a_word(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def text_model():
    net = unet(classes=0, tokens={"text": 8})
    return edm(net, text=Sources({"text": Words(["red"], 8, 1, 2)}))


def test_samples_beside_items_are_asked_for_the_word():
    """Evaluations and sample sheets ask for the first template, whatever the items say."""
    module = new_word()
    batch = {**pictures(2), "text": ["red", "blue"]}
    asked, told = module.request(batch), module.condition({**batch, "text": ["sks", "sks"]})
    assert asked.names == told.names and all(torch.equal(asked.tokens[name], told.tokens[name]) for name in asked.tokens)
    assert not torch.equal(asked.tokens["words"], module.condition(batch).tokens["words"])
