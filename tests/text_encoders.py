"""Small encoders of every kind for the tests, and folders of published layout made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from diffx.data.shapes import VOCABULARY
from diffx.text import T5, Bytes, CLIPText, MiniLM, TextEncoder, Words

SMALL = {"width": 16, "heads": 2}
LEARNED: dict[str, Callable[..., TextEncoder]] = {
    "bytes": partial(Bytes, **SMALL),
    "words": partial(Words, VOCABULARY, **SMALL),
    "words_flat": partial(Words, VOCABULARY, **SMALL, depth=0),
}
FROZEN: dict[str, Callable[..., TextEncoder]] = {
    "t5": T5.tiny,
    "clip": CLIPText.tiny,
    "clip_penultimate": partial(CLIPText.tiny, layer=-2),
    "clip_projected": partial(CLIPText.tiny, projection=True),
    "minilm": MiniLM.tiny,
}


needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="the extra text is not installed")


def params(kinds: dict[str, Any]) -> list[Any]:
    """As pytest parameters; those that need transformers are skipped without it."""
    return [pytest.param(make, id=name, marks=[needs_transformers] if name in FROZEN else []) for name, make in kinds.items()]


def word_tokenizer(words: list[str]) -> Any:
    """A tokenizer of transformers over whole words, with start, end and padding tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    inner = Tokenizer(models.WordLevel(ids, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def published(folder: Path, seed: int = 0) -> Path:
    """A folder as CLIP's text tower is published: random weights, a tokenizer of its own, an end token that is not the largest id."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer(list(VOCABULARY))
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModel(CLIPTextConfig(**{**CLIPText.TINY, **ends, "vocab_size": len(tokenizer)}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
