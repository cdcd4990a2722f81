"""Encoders that are trained along with the denoiser: bytes, and a closed list of words. They need no files and no further package."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..recipes import recorded
from ..recipes.errors import hint
from .encoder import Row, TextEncoder, Tokenized, masked_mean

__all__ = ["BYTES", "Bytes", "Layer", "Learned", "Words", "byte_row"]

BYTES = {"start": 256, "end": 257, "pad": 258}
"""Symbols beyond the 256 values of a byte."""


class Learned(TextEncoder):
    """A small pre-norm transformer over learned symbols and positions; pooled is the mean over real tokens.

    Args:
        symbols: number of token ids.
        width: width of the states.
        depth: number of transformer layers; 0 gives the normalised embeddings.
        heads: attention heads; must divide ``width``.
        max_len, pad, reads: see `TextEncoder`.
    """

    def __init__(
        self, symbols: int, *, width: int, depth: int, heads: int, max_len: int, pad: Literal["longest", "max", "attend"], reads: str
    ) -> None:
        super().__init__(max_len=max_len, pad=pad, reads=reads, trainable=True)
        if width % heads:
            raise ValueError(f"heads = {heads} does not divide width = {width}")
        self.dim = self.pooled_dim = width
        self.table = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(max_len, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.positions.weight, std=0.3)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def states(self, tokens: Tokenized, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens.ids) if inputs_embeds is None else inputs_embeds
        x = x + self.positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, tokens.mask)
        x = self.norm(x)
        return x, masked_mean(x, tokens.mask)

    def settings(self) -> Mapping[str, Any]:
        return {"max_len": self.max_len, "pad": self.pad, "heads": [layer.heads for layer in self.layers]}


class Layer(nn.Module):
    """Self-attention and perceptron, each on the norm of what it is added to.

    Args:
        width: of the states.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, D) at real tokens, ``mask`` (B, L) True, to states."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return x + self.mlp(x)


@recorded
class Bytes(Learned):
    """The UTF-8 bytes of a text, between a start and an end symbol: any language, no vocabulary.

    Args:
        width: width of the states.
        depth: number of transformer layers.
        heads: attention heads.
        max_len: most symbols of a text; longer ones are cut and counted.
        pad: see `TextEncoder`.
        reads: name of the batch column.
    """

    pad_id = BYTES["pad"]

    def __init__(
        self, width: int = 64, depth: int = 2, heads: int = 4, max_len: int = 128, *,
        pad: Literal["longest", "max", "attend"] = "longest", reads: str = "text",
    ) -> None:  # fmt: skip
        super().__init__(256 + len(BYTES), width=width, depth=depth, heads=heads, max_len=max_len, pad=pad, reads=reads)

    def rows(self, texts: Sequence[str]) -> list[Row]:
        return [byte_row(text) for text in texts]


@recorded
class Words(Learned):
    """A closed list of words, case ignored, between a start and an end symbol; the fastest, for captions from a grammar.

    Args:
        vocabulary: every word and punctuation mark that a text may hold.
        width: width of the states.
        depth: number of transformer layers.
        heads: attention heads.
        max_len: most symbols of a text; longer ones are cut and counted.
        pad: see `TextEncoder`.
        reads: name of the batch column.

    Raises:
        ValueError: an empty vocabulary or a word twice; when encoding, a word that is not in it.
    """

    def __init__(
        self, vocabulary: Sequence[str], width: int = 64, depth: int = 1, heads: int = 4, max_len: int = 32, *,
        pad: Literal["longest", "max", "attend"] = "longest", reads: str = "text",
    ) -> None:  # fmt: skip
        words = [str(word).lower() for word in vocabulary]
        if not words or len(set(words)) < len(words):
            raise ValueError(f"the vocabulary must hold words, each once (case is ignored); got {list(vocabulary)}")
        super().__init__(len(words) + 3, width=width, depth=depth, heads=heads, max_len=max_len, pad=pad, reads=reads)
        self.ids = {word: place for place, word in enumerate(words)}
        self.start, self.end, self.pad_id = range(len(words), len(words) + 3)

    def rows(self, texts: Sequence[str]) -> list[Row]:
        return [self._row(text) for text in texts]

    def settings(self) -> Mapping[str, Any]:
        listed = "\n".join(self.ids)
        return {**super().settings(), "vocabulary": hashlib.sha256(listed.encode()).hexdigest()}

    def _row(self, text: str) -> Row:
        found = [(match.group().lower(), match.span()) for match in re.finditer(r"\w+|[^\w\s]", text)]
        if unknown := [word for word, _ in found if word not in self.ids]:
            near = hint(unknown[0], self.ids)
            raise ValueError(f"{unknown[0]!r} in {text!r} is not in the vocabulary{near or '; it holds ' + ', '.join(self.ids)}")
        return Row([self.start, *(self.ids[word] for word, _ in found), self.end], [(0, 0), *(span for _, span in found), (0, 0)])


def byte_row(text: str) -> Row:
    """A text as bytes between start and end; all bytes of a character cover that character."""
    ids, offsets = [BYTES["start"]], [(0, 0)]
    for place, letter in enumerate(text):
        own = list(letter.encode("utf-8", "surrogatepass"))
        ids += own
        offsets += [(place, place + 1)] * len(own)
    return Row([*ids, BYTES["end"]], [*offsets, (0, 0)])
