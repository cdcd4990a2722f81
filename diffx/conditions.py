"""`Cond`: the one bundle of conditions that travels from a batch to every network.

There are six families and no more, so that the bundle never grows a field per technique: a label, token sequences with masks, vectors,
maps, and for each of them whether a sample may see it. "Hidden" is the null condition, which a network treats as if nothing was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import rng

__all__ = ["Cond"]


@dataclass(frozen=True, eq=False)
class Cond:
    """Conditions of a batch of B samples; every name is unique over the families.

    Args:
        label: (B,) int64 class index.
        tokens: source -> (B, L, D) states, e.g. of a text encoder.
        masks: source -> (B, L) bool, True = real token; a source without a mask is all real.
        vectors: name -> (B, D): pooled text, size and crop, low-resolution noise level, guidance scale, frame rate.
        maps: name -> (B, C, *space): low-resolution image, source image, known frames.
        keep: name -> (B,) bool, False = hidden for that sample; a name without an entry is seen by all.
        spans: one entry per sample, word -> token range, for editing and knowledge enhancement.

    Raises:
        ValueError: batch sizes differ, a name appears in two families, a mask or keep has no partner or is not boolean.
    """

    label: Tensor | None = None
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    spans: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        named = [*(["label"] if self.label is not None else []), *self.tokens, *self.vectors, *self.maps]
        if twice := {name for name in named if named.count(name) > 1}:
            raise ValueError(f"condition names must be unique over label, tokens, vectors and maps; got {sorted(twice)} twice")
        for family, partners in (("masks", set(self.tokens)), ("keep", set(named))):
            flags: Mapping[str, Tensor] = getattr(self, family)
            if unknown := set(flags) - partners:
                raise ValueError(f"{family} names {sorted(unknown)}, but the conditions are {sorted(partners)}")
            if wrong := [name for name, flag in flags.items() if flag.dtype != torch.bool]:
                raise ValueError(f"{family} must be boolean; {wrong[0]!r} is {flags[wrong[0]].dtype}")
        if self.label is not None and (self.label.ndim != 1 or self.label.is_floating_point()):
            raise ValueError(f"label must be (B,) integers, got {tuple(self.label.shape)} {self.label.dtype}")
        if len(sizes := {len(t) for t in self._tensors()}) > 1:
            raise ValueError(f"all conditions must have one batch size, got {sorted(sizes)}")

    @property
    def names(self) -> tuple[str, ...]:
        """What can be dropped by default: the label, token sources and vectors. Maps are structure and are dropped only by name."""
        return (*(["label"] if self.label is not None else []), *self.tokens, *self.vectors)

    def __len__(self) -> int:
        """Batch size, or 0 when there is no condition (take B from the data then)."""
        return next((len(t) for t in self._tensors()), 0)

    def drop(self, rates: float | Mapping[str, float], generator: torch.Generator | None = None) -> Cond:
        """Hide conditions at random, per sample.

        A number hides all of `names` together with that probability (what classifier-free guidance needs); a mapping hides each name
        independently, and its key ``"*"`` all of `names` together. Coins come from ``generator`` or the default CPU generator.

        Raises:
            ValueError: a rate outside [0, 1] or a name that is not there.
        """
        rates = rates if isinstance(rates, Mapping) else {"*": rates}
        known = {*self.names, *self.maps}
        keep = dict(self.keep)
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate to drop {name!r} must lie in [0, 1], got {rate}")
            if name != "*" and name not in known:
                raise ValueError(f"cannot drop {name!r}: the conditions are {sorted(known)}")
            if rate == 0 or not len(self):
                continue
            coin = (rng.rand((len(self),), generator) >= rate).to(self._device, non_blocking=True)
            for hit in self.names if name == "*" else (name,):
                keep[hit] = keep[hit] & coin if hit in keep else coin
        return replace(self, keep=keep)

    def hidden(self, *names: str) -> Cond:
        """The null condition: the named conditions, or all of `names`, hidden for every sample."""
        gone = torch.zeros(len(self), dtype=torch.bool, device=self._device)
        return replace(self, keep={**self.keep, **dict.fromkeys(names or self.names, gone)})

    def cat(self, other: Cond) -> Cond:
        """Stack two bundles along the batch; token sequences of different length are padded and masked.

        Raises:
            ValueError: the bundles do not hold the same names.
        """
        if (mine := {*self.names, *self.maps}) != (theirs := {*other.names, *other.maps}):
            raise ValueError(f"both halves must hold the same conditions (see Cond.hidden), got {sorted(mine)} and {sorted(theirs)}")
        tokens, masks = dict(self.tokens), {}
        for name, left in self.tokens.items():
            right = other.tokens[name]
            length = max(left.shape[1], right.shape[1])
            tokens[name] = torch.cat([F.pad(t, (0, 0, 0, length - t.shape[1])) for t in (left, right)])
            if name in self.masks or name in other.masks or left.shape[1] != right.shape[1]:
                masks[name] = torch.cat([F.pad(c.mask(name), (0, length - c.tokens[name].shape[1])) for c in (self, other)])
        keep = {name: torch.cat([self.visible(name), other.visible(name)]) for name in {**self.keep, **other.keep}}
        spans = None if self.spans is None and other.spans is None else [s for c in (self, other) for s in c.spans or [None] * len(c)]
        return Cond(
            label=None if self.label is None or other.label is None else torch.cat([self.label, other.label]),
            tokens=tokens,
            masks=masks,
            vectors={name: torch.cat([v, other.vectors[name]]) for name, v in self.vectors.items()},
            maps={name: torch.cat([m, other.maps[name]]) for name, m in self.maps.items()},
            keep=keep,
            spans=spans,
        )

    def mask(self, name: str) -> Tensor:
        """(B, L) bool mask of a token source, all True when none was given."""
        tokens = self.tokens[name]
        return self.masks.get(name, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def visible(self, name: str) -> Tensor:
        """(B,) bool: which samples may see the condition ``name``."""
        return self.keep.get(name, torch.ones(len(self), dtype=torch.bool, device=self._device))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Cond:
        """Apply ``fn`` to every tensor, e.g. to move or repeat rows; spans stay as they are."""
        return replace(self, **{f.name: _mapped(fn, getattr(self, f.name)) for f in fields(self) if f.name != "spans"})

    def rows(self, index: slice) -> Cond:
        """The bundle of a part of the batch."""
        return replace(self.map(lambda t: t[index]), spans=None if self.spans is None else self.spans[index])

    def to(self, device: torch.device | str) -> Cond:
        """Move every tensor."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def _tensors(self) -> list[Tensor]:
        families = (self.tokens, self.masks, self.vectors, self.maps, self.keep)
        return [*([self.label] if self.label is not None else []), *(t for family in families for t in family.values())]

    @property
    def _device(self) -> torch.device:
        return next((t.device for t in self._tensors()), torch.device("cpu"))


def _mapped(fn: Callable[[Tensor], Tensor], value: Tensor | Mapping[str, Tensor] | None) -> Any:
    if isinstance(value, Mapping):
        return {name: fn(t) for name, t in value.items()}
    return None if value is None else fn(value)
