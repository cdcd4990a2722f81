"""The sources of a model: which encoder reads which column of a batch, and under which name a network hears of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .encoder import Encoded, Encoder, TextEncoder

__all__ = ["Sources", "as_sources", "pooled_name"]

NULLS = ("learned", "empty")


def pooled_name(source: str) -> str:
    """The vector of a `Cond` that carries the pooled vector of a source: ``"t5"`` -> ``"t5_pooled"``."""
    return f"{source}_pooled"


@recorded
class Sources(nn.ModuleDict):
    """Encoders by the name of their source.

    The source ``"t5"`` gives the tokens ``"t5"`` (cross-attention, prefix tokens) and the vector ``"t5_pooled"``, each where the network
    takes it: it decides how it is told, by the names and widths in its ``tokens`` and ``vectors``.

    The null policy says what a hidden text is. ``"learned"``: nothing; attention falls back on the network's learned null token, a hidden
    pooled vector is zero. ``"empty"``: the encoding of the empty string, as in Stable Diffusion. Training, guidance and sampling all follow
    it, because it acts where the network is called; it is stored in checkpoints, which refuse to be loaded under another one.

    Args:
        encoders: source name -> encoder.
        null: ``"learned"`` or ``"empty"``; the latter needs frozen encoders of text.

    Raises:
        ValueError: no encoders, names that collide, an unknown policy, an encoder trained along under the policy "empty".
    """

    policy: Tensor

    def __init__(self, encoders: Mapping[str, Encoder], null: Literal["learned", "empty"] = "learned") -> None:
        super().__init__(dict(encoders))
        if wrong := [name for name, encoder in encoders.items() if not isinstance(encoder, Encoder)]:
            raise ValueError(f"the source {wrong[0]!r} must be an Encoder of diffx.text, got {type(encoders[wrong[0]]).__name__}")
        if not encoders or (twice := {pooled_name(name) for name in encoders} & set(encoders)):
            raise ValueError(f"sources cannot be named {sorted(twice)}: pooled vectors are" if encoders else "there are no sources of text")
        if null not in NULLS:
            raise ValueError(f"null must be one of {NULLS}, got {null!r}")
        if null == "empty" and (moving := [name for name, encoder in encoders.items() if encoder.trainable]):
            raise ValueError(f"null = 'empty' needs frozen encoders, but {moving} are trained along; use null = 'learned'")
        self.null = null
        self.register_buffer("policy", torch.tensor(NULLS.index(null), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_policy)
        self._empties: dict[str, Encoded] = {}

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The encoders by the name of their source."""
        return {name: encoder for name, encoder in self.items() if isinstance(encoder, Encoder)}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The encoders: each is entered by a call."""
        return tuple(self.encoders.values())

    def attach(self, net: nn.Module) -> None:
        """Compare the sources with what a network takes, and let the null policy act on it.

        Raises:
            ValueError: a source that the network takes neither as tokens nor as vector, or in another width.
        """
        takes: Any = getattr(net, "conditions", None)
        for name, encoder in self.encoders.items() if takes is not None else ():
            given = ((takes.tokens, name, encoder.dim), (takes.vectors, pooled_name(name), encoder.pooled_dim))
            wanted = [(family[key], width) for family, key, width in given if key in family]
            if not wanted:
                raise ValueError(f"the network takes neither tokens {name!r} nor the vector {pooled_name(name)!r} of the source {name!r}; "
                                 f"give it tokens={{{name}: {encoder.dim}}}. It knows {list(takes.names)}")  # fmt: skip
            if wrong := [(need, width) for need, width in wanted if need != width]:
                raise ValueError(f"the network expects width {wrong[0][0]} of the source {name!r}, but its encoder gives {wrong[0][1]}")
        if self.null == "empty":
            net.register_forward_pre_hook(_EmptyNull(self), with_kwargs=True)

    def cond(self, batch: Mapping[str, Any], takes: Callable[[str], bool] = lambda name: True) -> Cond:
        """Encode the columns of a batch.

        An entry None hides the source for that sample; outside training a column may be missing altogether, which hides it for all.

        Args:
            batch: columns by name; ``"spans"`` (character ranges in ``"text"``) become `Cond.spans`.
            takes: whether the network takes a condition of that name.

        Raises:
            ValueError: a column is missing in training, or all are missing.
        """
        missing = [encoder.reads for encoder in self.encoders.values() if encoder.reads not in batch]
        if missing and (self.training or len(missing) == len(self)):
            raise ValueError(f"the batch has no {missing[0]!r} for the text encoder that reads it; it holds {sorted(batch)}")
        tokens, masks, vectors, keep = {}, {}, {}, dict[str, Tensor]()
        for name, encoder in self.encoders.items():
            if encoder.reads not in batch:
                continue
            column, seen = _seen(batch[encoder.reads])
            made = encoder.encode(column)
            if takes(name):
                tokens[name], masks[name] = made.tokens, made.mask
            if made.pooled is not None and takes(pooled_name(name)):
                vectors[pooled_name(name)] = made.pooled
            if seen is not None:
                keep |= {key: seen.to(made.tokens.device) for key in (name, pooled_name(name)) if key in tokens or key in vectors}
        return Cond(tokens=tokens, masks=masks, vectors=vectors, keep=keep, spans=self._spans(batch))

    def drop(self, cond: Cond, rates: float | Mapping[str, float]) -> Cond:
        """As `Cond.drop`, but a source is dropped as a whole: one coin hides its tokens and its pooled vector."""
        if isinstance(rates, Mapping):
            alone = {name for name in self if name not in cond.tokens and pooled_name(name) in cond.vectors}
            rates = {pooled_name(name) if name in alone else name: rate for name, rate in rates.items()}
        cond = cond.drop(rates)
        tied = {pooled_name(name): cond.keep[name] for name in self if name in cond.keep and pooled_name(name) in cond.vectors}
        both = {name: cond.keep[name] & kept if name in cond.keep else kept for name, kept in tied.items()}
        return replace(cond, keep={**cond.keep, **both})

    def rates(self) -> dict[str, float]:
        """Shares of all texts so far that were cut (``"t5_truncated"``) and that were empty (``"t5_empty"``), by source."""
        counts = {name: encoder.counts for name, encoder in self.encoders.items() if isinstance(encoder, TextEncoder)}
        return {f"{name}_{kind}": n[kind] / max(n["texts"], 1) for name, n in counts.items() for kind in ("truncated", "empty")}

    def nothing(self, name: str) -> Encoded:
        """The encoding (1, L, D) of the empty string by the source ``name``; made once."""
        encoder = self.encoders[name]
        assert isinstance(encoder, TextEncoder)
        if name not in self._empties or self._empties[name].tokens.device != encoder.device:
            before = dict(encoder.counts)
            with torch.no_grad():
                self._empties[name] = encoder.encode([""])
            encoder.counts.update({key: count - encoder.counts[key] for key, count in before.items()})  # it is no text of the data
        return self._empties[name]

    def _spans(self, batch: Mapping[str, Any]) -> list[list[Any]] | None:
        given = batch.get("spans")
        readers = {name: encoder for name, encoder in self.encoders.items() if isinstance(encoder, TextEncoder) and encoder.reads == "text"}
        if given is None or not readers or "text" not in batch:
            return None
        texts = ["" if text is None else text for text in batch["text"]]
        parts = [encoder.spans(texts, given, name) for name, encoder in readers.items()]
        return [[span for part in row for span in part] for row in zip(*parts, strict=True)]


def as_sources(text: Encoder | Mapping[str, Encoder] | Sources | None) -> Sources | None:
    """One encoder is the source ``"text"``; a mapping names several; None is none."""
    if text is None or isinstance(text, Sources):
        return text
    return Sources({"text": text} if isinstance(text, Encoder) else text)


def _seen(column: Any) -> tuple[Any, Tensor | None]:
    """A column without its gaps, and where they are not."""
    if isinstance(column, Tensor) or all(entry is not None for entry in column):
        return column, None
    return ["" if entry is None else entry for entry in column], torch.tensor([entry is not None for entry in column])


def _check_policy(sources: Sources, state: dict[str, Any], prefix: str, *_: Any) -> None:
    stored = state.get(f"{prefix}policy")
    if stored is not None and NULLS[int(stored)] != sources.null:
        raise ValueError(f"the checkpoint was trained with null = {NULLS[int(stored)]!r}, but the sources say null = {sources.null!r}; "
                         "a model must be sampled with the null condition it was trained with")  # fmt: skip


class _EmptyNull:
    """Before a network is called: hidden and absent texts become the encoding of the empty string."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def __deepcopy__(self, memo: dict[int, Any]) -> _EmptyNull:
        """A copied network shares the frozen encoders."""
        return _EmptyNull(self.sources)

    def __call__(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, cond = args[0], args[2] if len(args) > 2 else kwargs.get("cond")
        full = self.filled(net, Cond() if cond is None else cond, len(x))
        return ((*args[:2], full, *args[3:]), kwargs) if len(args) > 2 else (args, {**kwargs, "cond": full})

    def filled(self, net: nn.Module, cond: Cond, batch: int) -> Cond:
        takes = getattr(net, "conditions", None)
        tokens, masks, vectors, keep = dict(cond.tokens), dict(cond.masks), dict(cond.vectors), dict(cond.keep)
        for name, encoder in self.sources.encoders.items():
            if not isinstance(encoder, TextEncoder):
                continue
            key, nothing = pooled_name(name), self.sources.nothing(name)
            if name in tokens or (takes is not None and name in takes.tokens):
                tokens[name], masks[name] = _rows(cond, name, nothing, batch)
                keep.pop(name, None)
            if nothing.pooled is not None and (key in vectors or (takes is not None and key in takes.vectors)):
                hidden = nothing.pooled.expand(batch, -1)
                vectors[key] = torch.where(cond.visible(key)[:, None], vectors[key], hidden) if key in vectors else hidden
                keep.pop(key, None)
        return replace(cond, tokens=tokens, masks=masks, vectors=vectors, keep=keep)


def _rows(cond: Cond, name: str, nothing: Encoded, batch: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a source with ``nothing`` in the hidden rows."""
    if name not in cond.tokens:
        return nothing.tokens.expand(batch, -1, -1), nothing.mask.expand(batch, -1)
    if name not in cond.keep:
        return cond.tokens[name], cond.mask(name)
    length = max(nothing.tokens.shape[1], cond.tokens[name].shape[1])
    own, void = (F.pad(t, (0, 0, 0, length - t.shape[1])) for t in (cond.tokens[name], nothing.tokens))
    real, bare = (F.pad(m, (0, length - m.shape[1])) for m in (cond.mask(name), nothing.mask))
    seen = cond.keep[name][:, None]
    return torch.where(seen[..., None], own, void), torch.where(seen, real, bare)
