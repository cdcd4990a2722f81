"""Published text encoders through the package transformers (the extra ``text``): T5, CLIP's text tower, a MiniLM sentence encoder.

Each takes a folder of published weights, or a configuration, which gives a network of random weights over bytes: small ones exercise the
same code without any file (``T5.tiny()``).
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .. import rng
from ..recipes import recorded
from .encoder import Row, TextEncoder, Tokenized, masked_mean
from .learned import BYTES, byte_row
from .library import Precision, load_part, minilm_folder, precision, transformers

__all__ = ["T5", "CLIPText", "MiniLM", "Pretrained"]

Pad = Literal["longest", "max", "attend"]


class Pretrained(TextEncoder):
    """What these encoders share: frozen, outside autocast, tokenized by their own tokenizer.

    Args:
        path: folder of published weights with its tokenizer; ``hub:NAME`` lets transformers download NAME. Exclusive with ``config``.
        config: entries of the configuration class of transformers, for random weights over bytes.
        max_len, pad, reads: see `TextEncoder`.
        dtype: precision of weights and computation; states come out in float32 at least.
        seed: of random weights.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there are no weights at ``path``.
        ValueError: both or neither of ``path`` and ``config``.
    """

    TINY: ClassVar[Mapping[str, Any]]

    def __init__(
        self, path: str | None, config: Mapping[str, Any] | None, *, max_len: int, pad: Pad, dtype: Precision, reads: str, seed: int
    ) -> None:
        super().__init__(max_len=max_len, pad=pad, reads=reads, trainable=False)
        if (path is None) == (config is None):
            raise ValueError(f"{type(self).__name__} takes a path or a config, got path = {path!r} and config = {config!r}")
        kind = precision(dtype)
        if path is not None:
            self.tokenizer = load_part(transformers().AutoTokenizer.from_pretrained, path)
            self.model = self.load(path, kind)
            self.pad_id = self.tokenizer.pad_token_id or 0
        else:
            self.tokenizer, self.pad_id = None, BYTES["pad"]
            with rng.forked("text encoder", seed):
                self.model = self.assemble(dict(config or {})).to(kind)
        self.freeze()

    @classmethod
    def tiny(cls, **options: Any) -> Self:
        """Random weights, width 32, two layers."""
        return cls(config=cls.TINY, **options)

    @abstractmethod
    def load(self, path: str, dtype: torch.dtype) -> nn.Module:
        """The network with published weights."""

    @abstractmethod
    def assemble(self, config: dict[str, Any]) -> nn.Module:
        """The network with random weights."""

    @abstractmethod
    def compute(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """States (B, L, D) and pooled vectors (B, P)."""

    def states(self, tokens: Tokenized, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        kind = next(self.model.parameters()).dtype
        embeds = None if inputs_embeds is None else inputs_embeds.to(kind)
        with torch.autocast(self.device.type, enabled=False):
            out, pooled = self.compute(*tokens, embeds)
        wide = torch.promote_types(kind, torch.float32)
        return out.to(wide), pooled.to(wide)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids.to(self.device))  # type: ignore[operator]

    def rows(self, texts: Sequence[str]) -> list[Row]:
        if self.tokenizer is None:
            return [byte_row(text) for text in texts]
        known = self.tokenizer.is_fast
        made = self.tokenizer(list(texts), return_offsets_mapping=known, return_attention_mask=False, verbose=False)
        offsets = [[tuple(pair) for pair in row] for row in made["offset_mapping"]] if known else [None] * len(texts)
        return [Row(list(ids), where) for ids, where in zip(made["input_ids"], offsets, strict=True)]

    def settings(self) -> Mapping[str, Any]:
        words = None if self.tokenizer is None else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        tokenizer = "bytes" if words is None else hashlib.sha256(words.encode()).hexdigest()
        return {"tokenizer": tokenizer, "max_len": self.max_len, "pad": self.pad}


@recorded
class T5(Pretrained):
    """T5's encoder: the last states; pooled is their mean over real tokens.

    Args:
        path: folder with weights and tokenizer, or ``hub:NAME``.
        config: entries of ``transformers.T5Config``, for random weights.
        max_len: most tokens of a text.
        pad: see `TextEncoder`.
        dtype: ``"float32"`` or ``"bfloat16"`` (``"float64"`` for checks).
        reads: name of the batch column.
        seed: of random weights.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `Pretrained`.
    """

    TINY: ClassVar[Mapping[str, Any]] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 272}

    def __init__(
        self, path: str | None = None, config: Mapping[str, Any] | None = None, *, max_len: int = 128, pad: Pad = "longest",
        dtype: Precision = "float32", reads: str = "text", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(path, config, max_len=max_len, pad=pad, dtype=dtype, reads=reads, seed=seed)
        self.dim = self.pooled_dim = self.model.config.d_model  # type: ignore[union-attr, assignment]

    def load(self, path: str, dtype: torch.dtype) -> nn.Module:
        return load_part(transformers().T5EncoderModel.from_pretrained, path, dtype=dtype)

    def assemble(self, config: dict[str, Any]) -> nn.Module:
        return transformers().T5EncoderModel(transformers().T5Config(**config))

    def compute(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        given = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        states = self.model(attention_mask=mask.long(), **given).last_hidden_state
        return states, masked_mean(states, mask)


@recorded
class CLIPText(Pretrained):
    """CLIP's text tower; pooled is the state at the end token.

    The end token is looked for by its id: new words, whose ids are larger, do not move it.

    Args:
        path: folder with weights and tokenizer, or ``hub:NAME``.
        config: entries of ``transformers.CLIPTextConfig``, for random weights.
        layer: whose states are the tokens: -1 = last, after the final normalisation; -2 = the one before it, without (SDXL's choice).
            Pooled always comes from the last.
        projection: send pooled through CLIP's text projection, into the space that it shares with images.
        max_len: most tokens of a text.
        pad: see `TextEncoder`.
        dtype: ``"float32"`` or ``"bfloat16"`` (``"float64"`` for checks).
        reads: name of the batch column.
        seed: of random weights.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `Pretrained`; another layer; more tokens than the network has positions; when
            encoding, a row without end token.
    """

    TINY: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 24,
        "max_position_embeddings": 77, "vocab_size": 272,
    }  # fmt: skip

    def __init__(
        self, path: str | None = None, config: Mapping[str, Any] | None = None, *, layer: Literal[-1, -2] = -1, projection: bool = False,
        max_len: int = 77, pad: Pad = "longest", dtype: Precision = "float32", reads: str = "text", seed: int = 0,
    ) -> None:  # fmt: skip
        if layer not in (-1, -2):
            raise ValueError(f"layer must be -1 (last) or -2 (the one before), got {layer}")
        self.layer, self.projection = layer, projection
        super().__init__(path, config, max_len=max_len, pad=pad, dtype=dtype, reads=reads, seed=seed)
        about: Any = self.model.config
        if max_len > about.max_position_embeddings:
            raise ValueError(f"max_len = {max_len}, but this CLIP has {about.max_position_embeddings} positions")
        self.dim, self.pooled_dim = about.hidden_size, about.projection_dim if projection else about.hidden_size
        self.end = BYTES["end"] if self.tokenizer is None else self.tokenizer.eos_token_id

    def load(self, path: str, dtype: torch.dtype) -> nn.Module:
        library = transformers()
        kind = library.CLIPTextModelWithProjection if self.projection else library.CLIPTextModel
        return load_part(kind.from_pretrained, path, dtype=dtype)

    def assemble(self, config: dict[str, Any]) -> nn.Module:
        library = transformers()
        about = library.CLIPTextConfig(
            **{"bos_token_id": BYTES["start"], "eos_token_id": BYTES["end"], "pad_token_id": BYTES["pad"], **config}
        )
        return (library.CLIPTextModelWithProjection if self.projection else library.CLIPTextModel)(about)

    def settings(self) -> Mapping[str, Any]:
        return {**super().settings(), "layer": self.layer, "projection": self.projection}

    def compute(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        ends = (ids == self.end) & mask
        if not ends.any(1).all():
            raise ValueError(f"every row must hold the end token {self.end}, where CLIP's pooled vector is read; tokenize() puts it there")
        tower: Any = self.model.text_model if self.projection else self.model
        with _embedded(tower, inputs_embeds):
            known = ids if inputs_embeds is None else ids.clamp(max=tower.config.vocab_size - 1)  # new words have no row of their own
            out = tower(input_ids=known, attention_mask=mask.long(), output_hidden_states=True)
        last = out.last_hidden_state
        pooled = last[torch.arange(len(ids), device=ids.device), ends.int().argmax(1)]
        states = last if self.layer == -1 else out.hidden_states[-2]
        return states, self.model.text_projection(pooled) if self.projection else pooled  # type: ignore[operator]


@recorded
class MiniLM(Pretrained):
    """A sentence encoder of the BERT family; pooled is the mean over real tokens, scaled to length 1.

    Without ``path`` and ``config`` it is all-MiniLM-L6-v2 (width 384, six layers) as the extra ``minilm`` installs it: no download.

    Args:
        path: folder with weights and tokenizer, or ``hub:NAME``.
        config: entries of ``transformers.BertConfig``, for random weights.
        max_len: most tokens of a text.
        pad: see `TextEncoder`.
        dtype: ``"float32"`` or ``"bfloat16"`` (``"float64"`` for checks).
        reads: name of the batch column.
        seed: of random weights.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `Pretrained`; the extra ``minilm`` is not installed.
    """

    TINY: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 272,
    }

    def __init__(
        self, path: str | None = None, config: Mapping[str, Any] | None = None, *, max_len: int = 128, pad: Pad = "longest",
        dtype: Precision = "float32", reads: str = "text", seed: int = 0,
    ) -> None:  # fmt: skip
        place = str(minilm_folder()) if path is None and config is None else path
        super().__init__(place, config, max_len=max_len, pad=pad, dtype=dtype, reads=reads, seed=seed)
        self.dim = self.pooled_dim = self.model.config.hidden_size  # type: ignore[union-attr, assignment]

    def load(self, path: str, dtype: torch.dtype) -> nn.Module:
        return load_part(transformers().BertModel.from_pretrained, path, dtype=dtype)

    def assemble(self, config: dict[str, Any]) -> nn.Module:
        return transformers().BertModel(transformers().BertConfig(**config), add_pooling_layer=False)

    def compute(self, ids: Tensor, mask: Tensor, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        given = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        states = self.model(attention_mask=mask.long(), **given).last_hidden_state
        return states, nn.functional.normalize(masked_mean(states, mask), dim=-1)


@contextmanager
def _embedded(tower: Any, embeds: Tensor | None) -> Iterator[None]:
    """Let the token table of a network that takes ids only answer with ``embeds`` inside the block."""
    if embeds is None:
        yield
        return
    handle = tower.get_input_embeddings().register_forward_hook(lambda *_: embeds)
    try:
        yield
    finally:
        handle.remove()
