"""The U-Net of the ADM family (Dhariwal & Nichol 2021, arXiv:2105.05233), as EDM trains it (Karras et al. 2022, arXiv:2206.00364).

Distinctive choices
- Levels are counted, not sized: ``attention_levels=(-1,)`` is the lowest level whatever the picture; `levels_at` converts side lengths.
- Label, vectors, token sources and maps are all optional and named; whatever is not given or hidden is the null condition.
- Feature maps run channels-last inside, 1x1 projections are linear maps on them, attention is one fused call.
- No dropout by default; when asked for, it drops channels, not single values.
- A fresh network returns exactly zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import active_controller, count_heads
from .blocks import BlockStyle, ConvResample, Place, ResBlock, UBody, block_maker, closing_layers
from .border import NO_COND, Conditions, check_input, concat_maps, cross_context
from .embedders import LabelEmbedding, NoiseEmbedding, VectorEmbedding, with_conditions
from .layers import Context, Norm, zero

__all__ = ["PictureUNet", "UNet", "UShell", "blocks_per_level", "check_levels", "levels_at", "name_attention"]

# size: (width, mults, blocks per level, attention options) of the published ImageNet networks; all attend at side lengths 32, 16 and 8.
ADM: dict[int, tuple[int, tuple[float, ...], int, dict[str, int]]] = {
    64: (192, (1, 2, 3, 4), 3, {"head_dim": 64}),
    128: (256, (1, 1, 2, 3, 4), 2, {"heads": 4}),
    256: (256, (1, 1, 2, 2, 4, 4), 2, {"head_dim": 64}),
    512: (256, (0.5, 1, 1, 2, 2, 4, 4), 2, {"head_dim": 64}),
}


class PictureUNet(nn.Module, ABC):
    """The border of U-Nets over pictures: what is given is checked and cast here, and nowhere behind it.

    Attributes:
        channels: channels of x.
        divisor: what side lengths must be divisible by.
        conditions: what the network takes.
        stem: the first layer; its ``weight`` says in what precision the network computes.
    """

    channels: int
    divisor: int
    conditions: Conditions
    stem: Any

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled data ``(B, channels, H, W)`` at noise coordinates ``(B,)`` to ``(B, out_channels, H, W)``.

        Raises:
            ValueError: sizes that do not divide, or conditions the network does not know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_input(x, noise, self.channels, self.divisor)
        self.conditions.check(x, cond)
        x = concat_maps(x.to(self.stem.weight.dtype), cond, tuple(self.conditions.maps))
        return self.walk(x, self.context(noise, cond))

    @abstractmethod
    def context(self, noise: Tensor, cond: Cond) -> Context:
        """What every block is told of noise coordinates (B,) and conditions."""

    @abstractmethod
    def walk(self, x: Tensor, context: Context) -> Tensor:
        """From stem to head: data with its maps ``(B, C, H, W)`` to ``(B, out_channels, H, W)``."""


class UShell(PictureUNet):
    """What U-Nets over pictures have around their body: the embedding of noise and conditions, a stem before it and a head behind.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        conditions: what the network takes.
        width: of the sines and cosines of the noise coordinate.
        stem: channels that the body takes and gives.
        emb: width of the embedding.
        body: makes the body, a module ``(x (B, stem, H, W), context) -> (B, stem, H, W)``.
    """

    def __init__(
        self, channels: int, out_channels: int | None, conditions: Conditions, width: int, stem: int, emb: int,
        body: Callable[[], nn.Module],
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.out_channels, self.conditions = channels, out_channels or channels, conditions
        self.noise = NoiseEmbedding(width, emb)
        self.label = LabelEmbedding(conditions.classes, emb) if conditions.classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, emb) for name, length in conditions.vectors.items())
        self.stem = nn.Conv2d(channels + sum(conditions.maps.values()), stem, 3, padding=1)
        self.body = body()
        self.norm = Norm(stem)
        self.head = nn.Conv2d(stem, self.out_channels, 3, padding=1)

    @torch.no_grad()
    def initialise(self) -> None:
        """Zero what closes each residual branch and the head; everything else keeps torch's uniform law with variance 1 / (3 fan_in).

        Labels are standard normal. These are the laws of EDM's ADM network.
        """
        zero(*closing_layers(self), self.head)

    def context(self, noise: Tensor, cond: Cond) -> Context:
        """What every block is told of noise coordinates (B,) and conditions."""
        tokens, mask = cross_context(cond, tuple(self.conditions.tokens), self.stem.weight.dtype)
        return Context(self.embed(noise, cond), noise, tokens, mask, active_controller())

    def walk(self, x: Tensor, context: Context) -> Tensor:
        """From stem to head: data with its maps ``(B, C, H, W)`` to ``(B, out_channels, H, W)``."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.head(F.silu(self.norm(self.body(x, context))))

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, E)`` of noise, label and vectors that modulates every block."""
        return F.silu(with_conditions(self.noise(noise), cond, self.label, self.vectors))


@recorded
class UNet(UShell):
    """U-Net over images with label, vector, token and map conditions.

    Side lengths must be divisible by ``2 ** (len(mults) - 1)``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        width: channels of level 0 before ``mults``.
        mults: multiples of ``width``, one per level; level 0 is the full resolution, each further level has half the side lengths.
        blocks: residual blocks per level of the encoder, one number or one per level; the decoder has one more.
        attention_levels: levels with self-attention, counted from 0 = full resolution, -1 = lowest; these are neither side lengths nor
            strides (see `levels_at`). The middle of the U always attends.
        cross_levels: levels with cross-attention to the token sources, counted alike; None = ``attention_levels``. The middle always has
            it.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        tokens: source -> width of token states for cross-attention.
        maps: name -> channels of maps that are concatenated to x, in this order. They must have the size of x and, like clean data, lie
            in [-1, 1]: they are concatenated as they come.
        head_dim: channels per attention head.
        heads: number of heads of every attention; None = from ``head_dim``.
        dropout: probability of dropping before the second convolution of each block; default 0.
        dropout_of: ``"channels"`` or, as in the papers and slower on CPUs, ``"elements"``.
        emb_mult: width of the embedding in multiples of ``width``.
        scale_shift: the embedding scales and shifts each block's second normalisation; False = it is added before it (DDPM).
        resample: ``"block"`` changes the resolution by residual blocks (ADM, BigGAN), ``"conv"`` by single convolutions (DDPM).
        skip_scale: factor on every sum with a residual.

    Raises:
        ValueError: options that do not fit each other: levels out of range, channels that heads do not divide, names used twice.
    """

    body: UBody

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        width: int = 128,
        mults: Sequence[float] = (1, 2, 2),
        blocks: int | Sequence[int] = 2,
        attention_levels: Sequence[int] = (-1,),
        cross_levels: Sequence[int] | None = None,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        head_dim: int = 64,
        heads: int | None = None,
        dropout: float = 0.0,
        dropout_of: Literal["channels", "elements"] = "channels",
        emb_mult: int = 4,
        scale_shift: bool = True,
        resample: Literal["block", "conv"] = "block",
        skip_scale: float = 1.0,
    ) -> None:
        if resample not in ("block", "conv"):
            raise ValueError(f"resample is 'block' or 'conv', got {resample!r}")
        widths = [int(mult * width) for mult in mults]
        attending = check_levels("attention_levels", attention_levels, len(mults))
        crossing = attending if cross_levels is None else check_levels("cross_levels", cross_levels, len(mults))
        counts = blocks_per_level(blocks, len(mults))
        style = BlockStyle(emb_mult * width, dropout, dropout_of, scale_shift, skip_scale)
        conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))

        def step(width: int, mode: Literal["down", "up"]) -> nn.Module:
            return ConvResample(width, mode) if resample == "conv" else ResBlock(width, width, style, mode)

        def body() -> UBody:
            block = block_maker(style, conditions.tokens, _at(attending), _at(crossing), lambda cout: count_heads(cout, head_dim, heads))
            return UBody(widths[0], widths, counts, block=block, resample=step)

        super().__init__(channels, out_channels, conditions, width, widths[0], style.emb, body)
        self.divisor = 2 ** (len(mults) - 1)
        name_attention(self)
        self.initialise()

    @classmethod
    def adm(cls, size: int, *, classes: int = 1000, **options: Any) -> UNet:
        """The published ImageNet network for ``size`` 64, 128, 256 or 512; ``out_channels=6`` for its learned variance.

        At size 64 with the default three outputs this is the network of EDM. Other ``options`` are those of the class.
        """
        if size not in ADM:
            raise ValueError(f"published sizes are {sorted(ADM)}, got {size}")
        width, mults, blocks, attention = ADM[size]
        preset = {"width": width, "mults": mults, "blocks": blocks, "attention_levels": levels_at(size, (32, 16, 8)), **attention}
        return cls(**{"classes": classes, **preset, **options})

    @classmethod
    def adm_upsampler(cls, *, classes: int = 1000, **options: Any) -> UNet:
        """The published ImageNet upsampler from 64 to 256 pixels; the low-resolution image, resized to 256, is the map ``"low_res"``."""
        levels = levels_at(256, (32, 16, 8))
        preset = {"width": 192, "mults": (1, 1, 2, 2, 4, 4), "attention_levels": levels, "heads": 4, "maps": {"low_res": 3}}
        return cls(**{"classes": classes, **preset, **options})


def _at(levels: frozenset[int]) -> Callable[[Place], bool]:
    """Blocks on these levels, and the first one of the middle whatever they are."""
    return lambda place: place.first if place.part == "middle" else place.level in levels


def levels_at(size: int, sides: Sequence[int]) -> tuple[int, ...]:
    """Levels at which maps of a picture of ``size`` have the side lengths ``sides``: ``levels_at(64, (16, 8))`` is ``(2, 3)``.

    Raises:
        ValueError: a side that halving ``size`` never meets.
    """
    met = {size >> level: level for level in range(size.bit_length()) if size % (1 << level) == 0}
    if missed := [side for side in sides if side not in met]:
        raise ValueError(f"a picture of side {size} has maps of side {list(met)}, not {missed}")
    return tuple(met[side] for side in sides)


def blocks_per_level(blocks: int | Sequence[int], levels: int) -> list[int]:
    """One number of blocks for each level.

    Raises:
        ValueError: another number of numbers.
    """
    counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    if len(counts) != levels:
        raise ValueError(f"blocks names {len(counts)} levels, mults {levels}")
    return counts


def check_levels(option: str, levels: Sequence[int], count: int) -> frozenset[int]:
    """Resolve negative levels.

    Raises:
        ValueError: a level out of range, most likely a side length or a stride.
    """
    if wrong := [level for level in levels if not -count <= level < count]:
        raise ValueError(
            f"{option} counts the {count} levels, 0 = full resolution to {count - 1} = lowest (or -1); got {wrong[0]}. "
            "For side lengths write levels_at(size, sides)"
        )
    return frozenset(level % count for level in levels)


def name_attention(net: nn.Module) -> None:
    """Tell every attention layer its dotted name, which controllers see as `Site.layer`."""
    for name, module in net.named_modules():
        if hasattr(type(module), "layer"):
            module.layer = name
