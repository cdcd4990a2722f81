"""Prompt-to-prompt: an edited prompt with the attention of the original one (Hertz et al. 2022, arXiv:2208.01626)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import ControlledDenoiser, Guide, as_guide
from ..networks.attention import AttentionController, Site
from ..networks.control import picture_queries
from ..samplers import Euler, Sampler
from .masks import mixed
from .prompts import Unit, refinement, replacement, units_of

__all__ = ["Edited", "PromptToPrompt", "prompt_to_prompt"]


class Edited(NamedTuple):
    """Both sides of an edit.

    Args:
        source: (B, *), what the original prompt gives.
        target: (B, *), what the edited prompt gives.
        mask: (B, 1, *space), 1 = where the target may differ; None without local blending.
    """

    source: Tensor
    target: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class PromptToPrompt:
    """What an edit shares between the two prompts, and for how long. Shares are of the sampler's steps, counted from the noisy end.

    Args:
        mode: ``"replace"``: prompts of as many words, each word's attention goes to the word at its place. ``"refine"``: equal words keep
            their attention, words that were added have their own.
        cross: share of the steps that edit attention to text; or by words of the target, ``{"default": 0.8, "red": 0.4}``.
        self_attention: share of the steps in which the target takes over the source's attention among positions.
        weights: factors on the attention to words of the target where it is edited, without renormalisation; typically -2 to 10.
        largest: self-attention of more positions than this is left alone.
        blend: (word of the source, word of the target): outside of where they are attended to, the source is kept.
        threshold: share of the largest attention from which on a position counts as attending.
        blend_from: share of the steps after which blending begins.

    Raises:
        ValueError: an unknown mode or a share outside [0, 1].
    """

    mode: Literal["replace", "refine"] = "replace"
    cross: float | Mapping[str, float] = 0.8
    self_attention: float = 0.4
    weights: Mapping[str, float] = field(default_factory=dict)
    largest: int = 32 * 32
    blend: tuple[str, str] | None = None
    threshold: float = 0.3
    blend_from: float = 0.2

    def __post_init__(self) -> None:
        if self.mode not in ("replace", "refine"):
            raise ValueError(f"mode must be 'replace' or 'refine', got {self.mode!r}")
        shares = [*self.crosses.values(), self.self_attention, self.threshold, self.blend_from]
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"cross, self_attention, threshold and blend_from are shares in [0, 1], got {shares}")

    @property
    def crosses(self) -> dict[str, float]:
        """The shares ``cross`` by word, ``"default"`` among them."""
        return {"default": 0.8, **self.cross} if isinstance(self.cross, Mapping) else {"default": self.cross}


def prompt_to_prompt(denoiser: Denoiser, source: Cond, target: Cond, noise: Tensor, edit: PromptToPrompt = PromptToPrompt(), *,
                     guidance: float | Guide = 1.0, sampler: Sampler = Euler(50)) -> Edited:  # fmt: skip
    """Sample two prompts from the same noise, the second with attention of the first.

    Works on networks with cross-attention to text (U-Net, DiT, U-ViT, RIN). Costs the sampler's evaluations on batches of 2B, twice that
    under guidance.

    Args:
        denoiser: any preconditioning.
        source: the original prompts, batch B, with the spans of all their words.
        target: the edited ones.
        noise: unit noise (B, *); that of an `diffx.editing.Inversion` to edit a picture that exists.
        edit: what is shared.
        guidance: a number or a guide, such as a `diffx.editing.NullText` of the pictures.
        sampler: a deterministic one.

    Raises:
        ValueError: prompts that do not fit ``edit``: a word that is not there, no spans, other numbers of words in a replacement; or a
            network without attention to text.
    """
    sigmas, step = sampler.sigmas(), sampler.begin()
    pairs = _Pairs(denoiser, edit, source, target, sigmas)
    denoise = as_guide(guidance)(pairs, source.cat(target))  # type: ignore[arg-type]
    state, mask = torch.cat([noise, noise]) * sigmas[0], None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        state = step(denoise, state, a, b, None)
        if edit.blend is not None and i + 1 > edit.blend_from * sampler.steps:
            mask = pairs.mask(noise.shape[2:])
            old, new = state.chunk(2)
            state = torch.cat([old, mixed(mask.to(new), new, old)])
    before, after = state.chunk(2)
    return Edited(before, after, mask)


class _Pairs(ControlledDenoiser):
    """The denoiser of one run: finds the told rows of each call and hands their attention over, source to target."""

    unheard = "prompt-to-prompt needs a network that attends to text (tokens= of a UNet, DiT, UViT or RIN); this one has no such layer"

    def __init__(self, denoiser: Denoiser, edit: PromptToPrompt, source: Cond, target: Cond, sigmas: Sequence[float]) -> None:
        super().__init__(denoiser)
        self.edit, self.count = edit, len(source)
        levels = {word: _level(sigmas, share) for word, share in edit.crosses.items()}
        self.default_level, self.self_level = levels["default"], _level(sigmas, edit.self_attention)
        self.texts = {name: _Text(edit, name, source, target, levels) for name in source.tokens}
        self.maps: dict[tuple[int, ...], Tensor] = {}

    def controller(self, x: Tensor, sigma: Tensor, cond: Cond) -> AttentionController:
        seen = torch.stack([cond.visible(name) for name in self.texts]).any(0).tolist()
        rows = [i for i, row in enumerate(cond.spans or ()) if row and seen[i]]
        if len(rows) != 2 * self.count:
            raise ValueError(f"prompt-to-prompt expects {2 * self.count} rows that see their prompts in every call, got {len(rows)}")
        return _Handover(self, torch.tensor(rows, device=x.device), float(sigma[0]))

    def mask(self, size: Sequence[int]) -> Tensor:
        """Where either word has been attended to so far, (B, 1, *size) of 0 and 1."""
        finest = max(self.maps, key=math.prod)
        total = sum(F.interpolate(seen, size=finest, mode="bilinear") for seen in self.maps.values())
        wide = F.interpolate(F.max_pool2d(total, 3, stride=1, padding=1), size=tuple(size))  # type: ignore[arg-type]
        above = wide > self.edit.threshold * wide.amax((1, 2, 3), keepdim=True)
        return (above[: self.count] | above[self.count :]).float()


class _Text:
    """What an edit does to the tokens of one source of text."""

    def __init__(self, edit: PromptToPrompt, name: str, source: Cond, target: Cond, levels: Mapping[str, float]) -> None:
        length = max(cond.tokens[name].shape[1] for cond in (source, target))
        matrices, ends, factors, words = [], [], [], []
        for row in range(len(source)):
            before, after = _units(source, name, row), _units(target, name, row)
            if edit.mode == "replace":
                matrix, partnered = replacement(before, after, (length, length)), torch.ones(length, dtype=torch.bool)
            else:
                matrix, partnered = refinement(before, after, (length, length))
            end = torch.full((length,), levels["default"])
            for word, level in levels.items():
                if word != "default":
                    end[_tokens(after, word)] = level
            factor = torch.ones(length)
            for word, weight in edit.weights.items():
                factor[_tokens(after, word)] = weight
            matrices.append(matrix)
            ends.append(torch.where(partnered, end, math.inf))
            factors.append(factor)
            words.append(
                [] if edit.blend is None else [_tokens(units, word) for units, word in zip((before, after), edit.blend, strict=True)]
            )
        self.matrix, self.ends, self.factors = torch.stack(matrices), torch.stack(ends), torch.stack(factors)
        self.words = [sides[side] for side in (0, 1) for sides in words if sides]


class _Handover(AttentionController):
    """Acts for one call of a network."""

    def __init__(self, pairs: _Pairs, rows: Tensor, sigma: float) -> None:
        self.pairs, self.rows, self.sigma = pairs, rows, sigma

    def wants(self, site: Site) -> bool:
        if site.kind == "self":
            return self.sigma > self.pairs.self_level and math.prod(site.grid or (site.n_prefix,)) <= self.pairs.edit.largest
        return site.kind == "cross" and any(name in site.key_slices for name in self.pairs.texts)

    def probs(self, probs: Tensor, site: Site) -> Tensor:
        source, target = probs[self.rows].chunk(2)
        edited = source if site.kind == "self" else self._told(source, target, site)
        if site.kind == "cross" and self.pairs.edit.blend is not None and len(site.grid) == 2:
            self._watch(torch.cat([source, edited]), site)
        return probs.index_copy(0, self.rows[self.pairs.count :], edited)

    def _told(self, source: Tensor, target: Tensor, site: Site) -> Tensor:
        """The target's attention to all keys; keys that are no text (null token, RIN's patches) belong to themselves."""
        b, _, _, keys = source.shape
        matrix = torch.eye(keys).repeat(b, 1, 1)
        ends, factors = torch.full((b, keys), self.pairs.default_level), torch.ones(b, keys)
        for name, text in self.pairs.texts.items():
            if (part := site.key_slices.get(name)) is not None:
                matrix[:, part, part], ends[:, part], factors[:, part] = text.matrix, text.ends, text.factors
        moved = torch.einsum("bhqk,bkj->bhqj", source, matrix.to(source)) * factors.to(source)[:, None, None]
        return torch.where((self.sigma > ends).to(source.device)[:, None, None], moved, target)

    def _watch(self, probs: Tensor, site: Site) -> None:
        """Add the attention to the words of the blend to what was seen before, by size of the map."""
        places = picture_queries(site, probs.shape[2])
        seen = probs.new_zeros(len(probs), 1, *site.grid)
        for name, text in self.pairs.texts.items():
            if (part := site.key_slices.get(name)) is not None:
                for row, tokens in enumerate(text.words):
                    columns = [part.start + token for token in tokens]
                    seen[row, 0] += probs[row][:, places][..., columns].mean((0, 2)).view(site.grid)
        before = self.pairs.maps.get(tuple(site.grid))
        self.pairs.maps[tuple(site.grid)] = seen if before is None else before + seen


def _level(sigmas: Sequence[float], share: float) -> float:
    """The level above which evaluations belong to the first ``share`` of the steps; a little higher, because levels are rounded."""
    return sigmas[math.ceil(share * (len(sigmas) - 1) - 1e-9)] * (1 + 1e-5)


def _units(cond: Cond, name: str, row: int) -> list[Unit]:
    spans: list[Any] = list((cond.spans or [None] * (row + 1))[row] or ())
    if not any(span.source == name for span in spans):
        raise ValueError("prompt-to-prompt needs to know where the words of both prompts stand; give the batch 'spans' beside 'text'")
    return units_of(spans, name, int(cond.mask(name)[row].sum()))


def _tokens(units: Sequence[Unit], word: str) -> list[int]:
    """All tokens of a word."""
    if not (found := [j for unit in units if unit.word == word.lower() for j in range(unit.start, unit.stop)]):
        raise ValueError(f"there is no word {word!r} in the prompt {' '.join(unit.word for unit in units if not unit.special)!r}")
    return found
