"""What every encoder is: a column of a batch in, token states, mask and pooled vector out."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..recipes.record import public_name
from ..tensors import handed
from .spans import TokenSpan, find_spans, locate

__all__ = ["Encoded", "Encoder", "Row", "TextEncoder", "Tokenized", "hash_weights", "masked_mean"]

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """What an encoder makes of B inputs.

    Args:
        tokens: (B, L, D) states, zero at padding.
        mask: (B, L) bool, True = real token; every row has at least one.
        pooled: (B, P) one vector for the whole input, or None.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None


class Row(NamedTuple):
    """One text as tokens, special ones included.

    Args:
        ids: token ids; the last is the end token where the encoder has one.
        offsets: range of characters of each token, (0, 0) for special ones; None where the tokenizer cannot tell.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None


class Tokenized(NamedTuple):
    """B texts as padded tokens.

    Args:
        ids: (B, L) int64.
        mask: (B, L) bool, True = may be attended.
    """

    ids: Tensor
    mask: Tensor


class Encoder(nn.Module, ABC):
    """Turns the column ``reads`` of a batch into `Encoded`.

    A *frozen* encoder (``trainable`` False, see `freeze`) is never trained, stays in evaluation mode and in the precision it was given.
    Checkpoints do not hold its weights but its `fingerprint`, and refuse another encoder when they are loaded.

    Attributes:
        dim: width D of the token states.
        pooled_dim: width P of the pooled vector, or None.
        reads: name of the batch column.
        trainable: whether it is trained along with the denoiser.
    """

    dim: int
    pooled_dim: int | None
    stamp: Tensor

    def __init__(self, *, reads: str, trainable: bool) -> None:
        super().__init__()
        self.reads, self.trainable = reads, trainable
        self._fingerprint: str | None = None
        self._prefix = ""  # where it stands in the checkpoint being loaded

    @abstractmethod
    def encode(self, inputs: Any) -> Encoded:
        """Encode the entries of a batch column."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What decides the result besides the weights, as plain types."""

    @property
    def fingerprint(self) -> str:
        """Hash of class, settings and weights, 64 hexadecimal digits: other ones after the smallest change.

        The place it came from and the names of its parameters do not count. Computed once for a frozen encoder.
        """
        if self._fingerprint is None or self.trainable:
            about = {"class": public_name(type(self)), "settings": self.settings(), "weights": hash_weights(self)}
            self._fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def freeze(self) -> None:
        """Call at the end of the constructor of a frozen encoder."""
        self.trainable = False
        self.requires_grad_(False).eval()
        self.register_buffer("stamp", torch.zeros(32, dtype=torch.uint8))
        self.register_state_dict_pre_hook(_write_stamp)
        self.register_state_dict_post_hook(_leave_stamp)
        self.register_load_state_dict_pre_hook(_check_stamp)
        self.register_load_state_dict_post_hook(_forgive_weights)

    def train(self, mode: bool = True) -> Encoder:
        """As in torch; a frozen encoder stays in evaluation mode."""
        return super().train(mode and self.trainable)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        """A frozen encoder moves but keeps its precision: T5 overflows in float16, and a fingerprint must stay true."""

        def moved(t: Tensor) -> Tensor:
            out = fn(t)
            return out if self.trainable or out.dtype == t.dtype else t.to(out.device)

        super()._apply(moved, recurse)
        return self


class TextEncoder(Encoder):
    """An `Encoder` of strings.

    Args:
        max_len: most tokens of a text, special ones included; longer texts are cut, and counted in ``counts``.
        pad: ``"longest"`` pads a batch to its longest text, ``"max"`` to ``max_len`` (one shape for compiled networks), ``"attend"`` does
            that too and treats the padding as tokens, as some published networks were trained (Stable Diffusion's).
        reads: name of the batch column.
        trainable: whether it is trained along with the denoiser.

    Attributes:
        counts: texts encoded so far (``"texts"``), those of them cut to ``max_len`` (``"truncated"``) and without a word (``"empty"``).
        pad_id: token id that fills short rows.
    """

    pad_id: int

    def __init__(self, *, max_len: int, pad: Literal["longest", "max", "attend"], reads: str, trainable: bool) -> None:
        super().__init__(reads=reads, trainable=trainable)
        if pad not in ("longest", "max", "attend") or max_len < 3:
            raise ValueError(f"pad must be 'longest', 'max' or 'attend' and max_len at least 3, got {pad!r} and {max_len}")
        self.max_len, self.pad = max_len, pad
        self.counts: Counter[str] = Counter(texts=0, truncated=0, empty=0)

    @abstractmethod
    def rows(self, texts: Sequence[str]) -> list[Row]:
        """Each text as tokens, of any length."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to the embeddings (B, L, E) that enter the first layer, positions not yet added."""

    @abstractmethod
    def states(self, tokens: Tokenized, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The network itself: states (B, L, D), padding included, and the pooled vectors (B, P) or None."""

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Cut, pad and count texts.

        Raises:
            TypeError: a single string, or entries that are not strings.
            ValueError: no texts.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{type(self).__name__} encodes a list of strings, got {texts!r}")
        if not len(texts):
            raise ValueError(f"{type(self).__name__} got no texts to encode")
        rows = self.rows(texts)
        self._count(texts, rows)
        kept = [self._cut(row).ids for row in rows]
        length = max(map(len, kept)) if self.pad == "longest" else self.max_len
        ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in kept])
        real = torch.arange(length) < torch.tensor([[length if self.pad == "attend" else len(row)] for row in kept])
        return Tokenized(ids, real)

    def encode(self, inputs: Sequence[str] | Tokenized, *, inputs_embeds: Tensor | None = None) -> Encoded:
        """Encode texts, or what `tokenize` made of them.

        Gradients flow into the weights of a trained encoder, and through any encoder into ``inputs_embeds``.

        Args:
            inputs: B texts, or their tokens.
            inputs_embeds: (B, L, E) instead of ``embed(tokens.ids)``, e.g. with learned rows for new words.
        """
        return self(inputs, inputs_embeds=inputs_embeds)

    def forward(self, inputs: Sequence[str] | Tokenized, *, inputs_embeds: Tensor | None = None) -> Encoded:
        """See `encode`."""
        ids, mask = inputs if isinstance(inputs, Tokenized) else self.tokenize(inputs)
        tokens = Tokenized(handed(ids, self.device), handed(mask, self.device))
        through = inputs_embeds is not None and inputs_embeds.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.trainable or through)):
            states, pooled = self.states(tokens, inputs_embeds)
            return Encoded(torch.where(tokens.mask[..., None], states, 0.0), tokens.mask, pooled)

    def spans(self, texts: Sequence[str], phrases: Sequence[Sequence[Any]], source: str = "text") -> list[list[TokenSpan]]:
        """Where phrases stand in the token sequences, one list per text.

        Args:
            texts: B texts.
            phrases: for each text its phrases: words, of which every occurrence is found, or triples that begin with
                (phrase, first character, one after the last). What lies behind the cut at ``max_len`` is left out.
            source: name that the spans carry.

        Raises:
            ValueError: a phrase that is not in its text, or a tokenizer that does not know where its tokens stand.
        """
        found = []
        for text, row, wanted in zip(texts, self.rows(texts), phrases, strict=True):
            offsets = self._cut(row).offsets
            if offsets is None:
                raise ValueError(f"the tokenizer of {type(self).__name__} does not say which characters a token covers; use a fast one")
            ranges = [(phrase, *locate(offsets, start, stop)) for phrase, start, stop in find_spans(text, wanted)]
            found.append([TokenSpan(phrase, source, start, stop) for phrase, start, stop in ranges if stop > start])
        return found

    def _cut(self, row: Row) -> Row:
        """At most ``max_len`` tokens; the end token stays the last."""
        if len(row.ids) <= self.max_len:
            return row
        keep = self.max_len - 1
        return Row(row.ids[:keep] + row.ids[-1:], None if row.offsets is None else row.offsets[:keep] + row.offsets[-1:])

    def _count(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        cut = [text for text, row in zip(texts, rows, strict=True) if len(row.ids) > self.max_len]
        if cut and not self.counts["truncated"]:
            log.warning("%s cuts texts after %d tokens, the first one being %r; further ones are only counted", type(self).__name__,
                        self.max_len, cut[0])  # fmt: skip
        self.counts.update(texts=len(texts), truncated=len(cut), empty=sum(not text.strip() for text in texts))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) of the states (B, L, D) at real tokens."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def hash_weights(module: nn.Module) -> str:
    """Hash of all parameters; by content, so that another library version may rename or reorder them."""
    digests = []
    for p in module.parameters():
        value = p.detach().cpu().contiguous()
        about = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
        about.update(value.reshape(-1).view(torch.uint8).numpy().data)
        digests.append(about.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


# What a frozen encoder leaves in a checkpoint ---------------------------------------------------------------------------------------------


def _write_stamp(encoder: Encoder, prefix: str, keep_vars: bool) -> None:
    encoder.stamp.copy_(torch.frombuffer(bytearray.fromhex(encoder.fingerprint), dtype=torch.uint8))


def _leave_stamp(encoder: Encoder, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and name != f"{prefix}stamp"]:
        del state[name]


def _check_stamp(encoder: Encoder, state: dict[str, Any], prefix: str, *_: Any) -> None:
    encoder._prefix = prefix
    stamp = state.get(f"{prefix}stamp")
    if stamp is not None and (trained_with := bytes(stamp.tolist()).hex()) != encoder.fingerprint:
        raise ValueError(f"the checkpoint was trained with another encoder at {prefix.rstrip('.') or 'its top'}: its fingerprint is "
                         f"{trained_with[:12]}, that of this {type(encoder).__name__} {encoder.fingerprint[:12]}; give the same weights "
                         "and settings")  # fmt: skip


def _forgive_weights(encoder: Encoder, keys: Any) -> None:
    """Only the fingerprint can be missing: the weights are those the encoder was built with."""
    own = encoder._prefix
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.startswith(own) or name == f"{own}stamp"]
