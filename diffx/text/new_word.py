"""An encoder that knows one word more, whose embedding is learnt while everything else stays as it is."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..recipes import recorded
from .encoder import Row, TextEncoder, Tokenized
from .spans import locate

__all__ = ["NewWord"]

log = logging.getLogger(__name__)


@recorded
class NewWord(TextEncoder):
    """A text encoder and a word that it did not know: the rows of the word are the only parameters that are trained.

    Where the word stands in a text, the encoder reads as many tokens as the word has rows; their embeddings are the rows. They are a
    parameter of their own, so no optimizer ever sees the encoder's table: other words cannot drift. The encoder is frozen. Its weights are
    in the checkpoint where they were trained along with a denoiser, as those of `Words` and `Bytes`; else its fingerprint is.

    Args:
        encoder: the encoder.
        word: as it stands in texts, case included; it need not be a word of the encoder.
        init: words of the encoder whose embedding the rows begin with, their mean if they are several tokens.
        vectors: number of rows.

    Attributes:
        new: the rows (vectors, E).

    Raises:
        ValueError: an empty word, no vectors, ``init`` within ``word``, or an encoder that does not know where its tokens stand.
    """

    def __init__(self, encoder: TextEncoder, word: str, init: str, vectors: int = 1) -> None:
        super().__init__(max_len=encoder.max_len, pad=encoder.pad, reads=encoder.reads, trainable=True)
        if not word.strip() or vectors < 1:
            raise ValueError(f"a new word needs a name and at least one vector, got {word!r} and {vectors}")
        self.encoder = encoder.requires_grad_(False).eval()
        self.word, self.init, self.pad_id = word, init, encoder.pad_id
        self.dim, self.pooled_dim = encoder.dim, encoder.pooled_dim
        ids = self._tokens_of(init)
        if len(ids) > 1:
            log.warning("%r is %d tokens of %s; the new word %r begins with their mean", init, len(ids), type(encoder).__name__, word)
        with torch.no_grad():
            start = encoder.embed(torch.tensor([ids], device=encoder.device)).mean(1)
        self.stand_in = ids[0]
        self.new = nn.Parameter(start.detach().float().repeat(vectors, 1))

    def train(self, mode: bool = True) -> NewWord:
        """As in torch, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """Tokens of the encoder; those of the new word are numbered -1, -2, ... by its rows."""
        return [self._row(text) for text in texts]

    def embed(self, ids: Tensor) -> Tensor:
        known = self.encoder.embed(ids.where(ids >= 0, self.stand_in))
        learnt = self.new.to(known.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where(ids[..., None] >= 0, known, learnt)

    def states(self, tokens: Tokenized, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        embeds = self.embed(tokens.ids) if inputs_embeds is None else inputs_embeds
        return self.encoder.states(Tokenized(tokens.ids.where(tokens.ids >= 0, self.stand_in), tokens.mask), embeds)

    def settings(self) -> Mapping[str, Any]:
        return {"encoder": self.encoder.fingerprint, "word": self.word, "vectors": len(self.new)}

    def _row(self, text: str) -> Row:
        """The text with ``init`` in place of the word, whose tokens then give way to those of the word."""
        places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(self.word)}(?!\w)", text)]
        shift, standing, longer = 0, [], len(self.init) - len(self.word)
        for start, stop in places:
            standing.append((start + shift, stop + shift + longer))
            shift += longer
        row = self.encoder.rows([re.sub(rf"(?<!\w){re.escape(self.word)}(?!\w)", lambda match: self.init, text)])[0]
        if not places:
            return row
        if row.offsets is None:
            raise ValueError(f"the tokenizer of {type(self.encoder).__name__} does not say which characters a token covers; use a fast one")
        ids, offsets = list(row.ids), [self._before(place, standing) for place in row.offsets]
        for (start, stop), own in reversed(list(zip(standing, places, strict=True))):
            first, last = locate(row.offsets, start, stop)
            ids[first:last] = [-1 - k for k in range(len(self.new))]
            offsets[first:last] = [own] * len(self.new)
        return Row(ids, offsets)

    def _before(self, place: tuple[int, int], standing: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Characters of the given text, from those of the text with ``init`` in it."""
        longer = (len(self.init) - len(self.word)) * sum(stop <= place[0] for _, stop in standing)
        return (place[0] - longer, place[1] - longer) if place != (0, 0) else place

    def _tokens_of(self, words: str) -> list[int]:
        row = self.encoder.rows([words])[0]
        if row.offsets is None:
            raise ValueError(f"the tokenizer of {type(self.encoder).__name__} does not say which characters a token covers; use a fast one")
        first, last = locate(row.offsets, 0, len(words))
        if last == first:
            raise ValueError(f"the initial words {words!r} are no token of {type(self.encoder).__name__}; name a word it knows")
        return row.ids[first:last]
