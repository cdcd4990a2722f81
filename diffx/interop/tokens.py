"""Transformers over tokens in the manner of MaskGIT, which are BERT over codes: names as in ``BertForMaskedLM`` of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..networks.token_transformer import TokenTransformer
from .weights import Entry, Source, matched, named, read_weights, recognised, refuse

__all__ = ["load_tokens"]

IN_LAYER = {
    "out": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
WHOLE = {"norm": "bert.embeddings.LayerNorm", "head": "cls.predictions.transform.dense", "head_norm": "cls.predictions.transform.LayerNorm"}
TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias": "cls.predictions.bias"}
TYPES = "bert.embeddings.token_type_embeddings.weight"


def load_tokens(net: TokenTransformer, source: Source, *, weights: Literal["ema", "raw"] = "ema") -> TokenTransformer:
    """Fill the weights of a BERT over codes, classes and the mask into a network of the same size.

    The rows of its table are the codes, then the classes, then the mask; the class is the first token (as in the published MaskGIT). Its
    first type of tokens is added to the positions; rows of positions beyond the network's are left out.

    Args:
        net: without sources of tokens, which BERT does not have.
        source: see `read_weights`.
        weights: ``"ema"`` or ``"raw"``, where the file holds both.

    Returns:
        ``net``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network attends to text; the head has a table of its own; names or shapes do not fit; another architecture.
    """
    if net.conditions.tokens:
        raise ValueError(f"a BERT over tokens attends to no text, the network to {sorted(net.conditions.tokens)}")
    state = read_weights(source, weights)
    if (kind := recognised(state)) != "BERT":
        raise refuse("transformer over tokens", kind, named(source))
    for name, twin in TIED.items():
        if (tensor := state.pop(name, None)) is not None and not torch.equal(tensor, state[twin]):
            raise ValueError(f"{name} and {twin} differ; the network compares with the table it reads from, so they must be one")
    matched(net, state, _entries(net), named(source), ignored=("position_ids",))
    return net


def _entries(net: TokenTransformer) -> Iterator[Entry]:
    length = len(net.position)
    yield Entry("table.weight", ("bert.embeddings.word_embeddings.weight",), _same)
    yield Entry("position", ("bert.embeddings.position_embeddings.weight", TYPES), lambda places, types: places[:length] + types[0])
    yield Entry("bias", ("cls.predictions.bias",), _same)
    for ours, theirs in WHOLE.items():
        yield from _pair(ours, theirs)
    for i in range(len(net.layers)):
        layer = f"bert.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            rows = tuple(f"{layer}.attention.self.{name}.{kind}" for name in ("query", "key", "value"))
            yield Entry(f"layers.{i}.qkv.{kind}", rows, lambda *parts: torch.cat(parts))
        for ours, theirs in IN_LAYER.items():
            yield from _pair(f"layers.{i}.{ours}", f"{layer}.{theirs}")


def _pair(ours: str, theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",), _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor
