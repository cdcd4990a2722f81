"""The cache of embeddings: hits equal misses, another encoder is refused, killed and rival writers do no harm."""

import json
import logging
import multiprocessing
import os
import signal

import pytest
import torch
from text_encoders import needs_transformers

from diffx import files
from diffx.recipes import recipe_of
from diffx.recipes.build import build
from diffx.text import T5, Bytes, Cached, Encoded, Store

TEXTS = [f"text number {i} {'and more ' * (i % 4)}" for i in range(20)]
fork = multiprocessing.get_context("fork")


class Frozen(Bytes):
    """A byte encoder that is not trained, and notes what it is asked."""

    def __init__(self, seed: int = 0, max_len: int = 64) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(16, 1, 2, max_len)
        self.asked: list[str] = []
        self.freeze()

    def forward(self, inputs, **options):
        self.asked += inputs if isinstance(inputs, list) else []
        return super().forward(inputs, **options)


class Broken(Frozen):
    def states(self, tokens, inputs_embeds):
        states, pooled = super().states(tokens, inputs_embeds)
        return states * torch.nan, pooled


def parts(out: Encoded):
    return [out.tokens, out.mask, out.pooled]


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float32", 0.0)])
def test_a_hit_equals_the_miss_before_it_and_the_encoder_up_to_rounding(tmp_path, dtype, error):
    plain = Frozen().encode(TEXTS)
    miss = Cached(Frozen(), tmp_path, dtype=dtype).train()
    first = miss.encode(TEXTS)
    miss.flush()
    hit = Cached(Frozen(), tmp_path, dtype=dtype, on_miss="raise")
    again = hit.encode(TEXTS)
    assert not hit.encoder.asked and len(hit.store) == 20
    for one, two, three in zip(parts(first), parts(again), parts(plain), strict=True):
        assert torch.equal(one, two) and one.dtype == three.dtype
        torch.testing.assert_close(two.float(), three.float(), rtol=error, atol=0)


def test_order_and_company_of_hits_are_free(tmp_path):
    cached = Cached(Frozen(), tmp_path)
    cached.fill(TEXTS, batch=7)
    whole, part = cached.encode(TEXTS), cached.encode([TEXTS[5], TEXTS[3], TEXTS[5]])
    for row, source in enumerate([5, 3, 5]):
        length = int(whole.mask[source].sum())
        assert int(part.mask[row].sum()) == length and torch.equal(part.tokens[row, :length], whole.tokens[source, :length])
    assert part.tokens[~part.mask].eq(0).all()


def test_each_text_is_encoded_once(tmp_path):
    cached = Cached(Frozen(), tmp_path, shard=4).train()
    cached.encode([TEXTS[0], TEXTS[0], TEXTS[1]])
    cached.encode([TEXTS[1], TEXTS[2]])
    assert cached.encoder.asked == TEXTS[:3] and not list(tmp_path.glob("*.safetensors"))
    cached.encode(TEXTS[2:5])
    assert cached.encoder.asked == TEXTS[:5] and len(list(tmp_path.glob("*.safetensors"))) == 1
    assert cached.fill(TEXTS) == 15 and cached.fill(TEXTS) == 0 and sorted(cached.encoder.asked) == sorted(TEXTS)


def test_sampling_and_dry_runs_write_nothing(tmp_path):
    for cached in (
        Cached(Frozen(), tmp_path / "eval", shard=1).eval(),
        Cached(Frozen(), tmp_path / "dry", shard=1, on_miss="encode").train(),
    ):
        assert cached.encode(TEXTS).mask.any() and not cached.store.folder.exists()
    with pytest.raises(ValueError, match=r"lacks 20 texts, the first being 'text number 0 '"):
        Cached(Frozen(), tmp_path / "raise", on_miss="raise").encode(TEXTS)


def test_what_is_pending_is_written_when_the_cache_goes(tmp_path):
    cached = Cached(Frozen(), tmp_path).train()
    cached.encode(TEXTS[:3])
    assert not list(tmp_path.iterdir())
    del cached
    assert len(Cached(Frozen(), tmp_path).store) == 3


# Identity ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["weights", "settings", "dtype", "class"])
def test_a_cache_of_another_encoder_is_refused(tmp_path, change):
    Cached(Frozen(), tmp_path).fill(TEXTS[:2])
    other = Frozen(max_len=65) if change == "settings" else type("Another", (Frozen,), {})() if change == "class" else Frozen()
    if change == "weights":
        with torch.no_grad():
            weight = other.norm.weight
            weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))  # the smallest change there is
    with pytest.raises(ValueError, match=r"holds embeddings of \S+Frozen \(fingerprint \w{12}, bfloat16, .*but this is \S+ \(finger"):
        Cached(other, tmp_path, dtype="float32" if change == "dtype" else "bfloat16")


def test_keys_name_encoder_and_text(tmp_path):
    one, two = Store(tmp_path / "1", {"fingerprint": "a"}), Store(tmp_path / "2", {"fingerprint": "b"})
    keys = {one.key("red"), one.key("Red"), one.key(""), two.key("red"), one.key("red")}
    assert len(keys) == 4


def test_only_frozen_encoders_are_cached(tmp_path):
    with pytest.raises(ValueError, match="trained along"):
        Cached(Bytes(), tmp_path)
    with pytest.raises(ValueError, match="on_miss must be one of"):
        Cached(Frozen(), tmp_path, on_miss="shrug")


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="embeddings of 'text number 0 ' that are not finite"):
        Cached(Broken(), tmp_path).fill(TEXTS)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_does_not_care_whether_texts_were_cached(tmp_path):
    cached, plain = Cached(Frozen(), tmp_path), Frozen()
    assert set(cached.state_dict()) == set(plain.state_dict()) == {"stamp"}
    plain.load_state_dict(cached.state_dict())
    cached.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="another encoder"):
        cached.load_state_dict(Frozen(seed=1).state_dict())


def test_embeddings_and_tokens_pass_the_cache_by(tmp_path):
    cached = Cached(Frozen(), tmp_path).train()
    tokens = cached.tokenize(TEXTS[:2])
    embeds = cached.embed(tokens.ids).detach().requires_grad_()
    cached.encode(tokens, inputs_embeds=embeds).pooled.sum().backward()
    assert embeds.grad.norm() > 0 and torch.equal(cached.encode(tokens).tokens, Frozen().encode(TEXTS[:2]).tokens)
    assert cached.spans(["a red one"], [["red"]]) == Frozen().spans(["a red one"], [["red"]])


@needs_transformers
def test_a_recipe_brings_the_cache_back(tmp_path):
    cached = Cached(T5.tiny(), tmp_path, shard=7)
    cached.fill(["a red circle"])
    again = build(recipe_of(cached))
    assert again.shard == 7 and again.store.key("a red circle") in again.store


# Processes --------------------------------------------------------------------------------------------------------------------------------


def in_child(work, *args) -> int:
    """Run in a forked process; its exit code, negative for a signal."""
    child = fork.Process(target=work, args=args)
    child.start()
    child.join(60)
    return child.exitcode


def dies_while_writing(folder, after):
    """Fill in shards of two, and die in the middle of the bytes of shard number ``after``."""
    plain, written = files.write, []

    def write(path, save, check=None):
        if path.suffix == ".safetensors":
            written.append(path)
        if len(written) > after:
            data: list[bytes] = []
            save(type("Collect", (), {"write": lambda self, some: data.append(some)})())

            def half(file):
                file.write(data[0][: len(data[0]) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

            return plain(path, half, check)
        return plain(path, save, check)

    files.write = write
    Cached(Frozen(), folder, shard=2).fill(TEXTS, batch=2)


@pytest.mark.parametrize("after", [0, 3])
def test_a_killed_writer_leaves_a_readable_cache(tmp_path, after):
    assert in_child(dies_while_writing, tmp_path, after) == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))  # it did die in the middle
    cached = Cached(Frozen(), tmp_path)
    assert len(cached.store) == 2 * after
    plain = Frozen().encode(TEXTS)
    torch.testing.assert_close(cached.encode(TEXTS).tokens, plain.tokens, rtol=2**-8, atol=1e-6)
    assert cached.fill(TEXTS) == 20 - 2 * after and len(Cached(Frozen(), tmp_path).store) == 20


def fills(folder, texts, start):
    cached = Cached(Frozen(), folder, shard=3)
    start.wait(30)
    cached.fill(texts, batch=3)


@pytest.mark.parametrize("same", [True, False])
def test_two_writers_share_a_folder(tmp_path, same):
    """The same texts, or halves that overlap, at the same time: one entry each, all of them right."""
    start = fork.Barrier(2)
    shares = [TEXTS, TEXTS] if same else [TEXTS[:14], TEXTS[6:]]
    children = [fork.Process(target=fills, args=(tmp_path, share, start)) for share in shares]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    cached = Cached(Frozen(), tmp_path, on_miss="raise")
    assert len(cached.store) == 20 and not list(tmp_path.glob(".*.tmp"))
    torch.testing.assert_close(cached.encode(TEXTS).tokens, Frozen().encode(TEXTS).tokens, rtol=2**-8, atol=1e-6)
    if same:  # shards are named by what they hold
        assert len(list(tmp_path.glob("*.safetensors"))) == 7


def test_a_reader_sees_what_others_wrote_since(tmp_path):
    reader = Cached(Frozen(), tmp_path)
    Cached(Frozen(), tmp_path).fill(TEXTS)
    reader.encode(TEXTS)
    assert not reader.encoder.asked


def test_a_damaged_shard_is_passed_over(tmp_path, caplog):
    Cached(Frozen(), tmp_path, shard=10).fill(TEXTS, batch=10)
    one, _ = sorted(tmp_path.glob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        cached = Cached(Frozen(), tmp_path)
    assert len(cached.store) == 10 and f"{one} is damaged" in caplog.text
    assert cached.encode(TEXTS).tokens.isfinite().all()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="no description of an encoder"):
        Cached(Frozen(), tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps(["else"]))
    with pytest.raises(ValueError, match="holds embeddings of something else"):
        Cached(Frozen(), tmp_path)


def test_an_encoder_without_pooled_vectors_is_cached_too(tmp_path):
    class Silent(Frozen):
        def __init__(self):
            super().__init__()
            self.pooled_dim = None

        def states(self, tokens, inputs_embeds):
            return super().states(tokens, inputs_embeds)[0], None

    Cached(Silent(), tmp_path).fill(TEXTS)
    assert Cached(Silent(), tmp_path, on_miss="raise").encode(TEXTS).pooled is None
