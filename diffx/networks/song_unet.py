"""DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456) as EDM trains them (Karras et al. 2022, arXiv:2206.00364, table 1).

They differ from `UNet` in many details at once, hence their own wall around the same blocks: the embedding is added instead of scaling,
every residual sum is multiplied by sqrt(1/2), the decoder attends only in the last block of a level, resampling blocks always project their
residual, label and vectors join the waves of the noise level before the two linear layers, the draw of weights is Xavier's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import SelfAttention, active_controller
from .blocks import Block, BlockStyle, Place, ResBlock, UBody, closing_layers
from .border import Conditions
from .embedders import FourierEmbedding, one_hot, sinusoid, visible_vector
from .layers import Context, Norm, Resample
from .unet import PictureUNet, check_levels, levels_at, name_attention

__all__ = ["SongUNet"]

MULTS = {32: (2, 2, 2), 64: (1, 2, 2, 2)}


@recorded
class SongUNet(PictureUNet):
    """U-Net of the DDPM++ and NCSN++ kind with label, vector and map conditions.

    `ddpmpp` and `ncsnpp` are the published configurations. Side lengths must be divisible by ``2 ** (len(mults) - 1)``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        width: channels of the stem, and of a level before ``mults``.
        mults: multiples of ``width``, one per level; level 0 is the full resolution.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention (one head), counted from 0 = full resolution, -1 = lowest; not side lengths.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding through a linear map without bias, so zeros add nothing;
            EDM's augmentation label is ``{"augment": 9}``.
        maps: name -> channels of maps in [-1, 1] that are concatenated to x, in this order.
        dropout: probability of dropping before the second convolution of each block.
        dropout_of: ``"elements"`` as in the paper, or ``"channels"``, which is faster on CPUs.
        emb_mult: width of the embedding in multiples of ``width``.
        embedding: ``"positional"`` waves (``width`` of them) or ``"fourier"`` features (twice as many) of the noise level.
        pyramid: the residual input of NCSN++, which halves the input beside the encoder and adds it to every level.
        taps: low-pass filter of resampling, (1, 1) or (1, 3, 3, 1).

    Raises:
        ValueError: options that do not fit each other.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        width: int = 128,
        mults: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention_levels: Sequence[int] = (1,),
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        dropout_of: Literal["channels", "elements"] = "elements",
        emb_mult: int = 4,
        embedding: Literal["positional", "fourier"] = "positional",
        pyramid: bool = False,
        taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding is 'positional' or 'fourier', got {embedding!r}")
        self.channels, self.out_channels, self.divisor = channels, out_channels or channels, 2 ** (len(mults) - 1)
        self.conditions = Conditions(classes, dict(vectors or {}), {}, dict(maps or {}))
        attending = check_levels("attention_levels", attention_levels, len(mults))
        half, eps, emb = 0.5**0.5, 1e-6, emb_mult * width
        style = BlockStyle(emb, dropout, dropout_of, scale_shift=False, skip_scale=half, eps=eps, taps=tuple(taps), project=True)

        def block(cin: int, cout: int, place: Place) -> Block:
            chosen = {"encoder": True, "middle": place.first, "decoder": place.last}[place.part]
            attend = chosen and (place.part == "middle" or place.level in attending)
            return Block(ResBlock(cin, cout, style), SelfAttention(cout, 1, eps=eps, skip_scale=half) if attend else None)

        def halve(cin: int, cout: int) -> nn.Module:
            margin = (len(taps) - 1) // 2  # the convolution pads for the filter behind it
            return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1 + margin), Resample("down", taps, pad=0))

        inputs = channels + sum(self.conditions.maps.values())
        self.waves = width if embedding == "positional" else 2 * width
        self.fourier = FourierEmbedding(self.waves) if embedding == "fourier" else None
        self.label = nn.Linear(classes, self.waves) if classes else None
        self.vectors = nn.ModuleDict({name: nn.Linear(length, self.waves, bias=False) for name, length in self.conditions.vectors.items()})
        self.first, self.second = nn.Linear(self.waves, emb), nn.Linear(emb, emb)
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.body = UBody(
            width, [mult * width for mult in mults], [blocks] * len(mults), block=block,
            resample=lambda c, mode: ResBlock(c, c, style, mode), pyramid=halve if pyramid else None, inputs=inputs,
        )  # fmt: skip
        self.norm = Norm(mults[0] * width, eps)
        self.head = nn.Conv2d(mults[0] * width, self.out_channels, 3, padding=1)
        name_attention(self)
        self.initialise()

    @classmethod
    def ddpmpp(cls, size: int = 32, **options: Any) -> SongUNet:
        """EDM's DDPM++ for CIFAR-10 (``size=32``) or FFHQ and AFHQv2 (``size=64``), with its augmentation label ``"augment"``."""
        if size not in MULTS:
            raise ValueError(f"published sizes are {sorted(MULTS)}, got {size}")
        return cls(**{"mults": MULTS[size], "attention_levels": levels_at(size, (16,)), "vectors": {"augment": 9}, **options})

    @classmethod
    def ncsnpp(cls, size: int = 32, **options: Any) -> SongUNet:
        """EDM's NCSN++ for CIFAR-10 (``size=32``) or FFHQ and AFHQv2 (``size=64``), with its augmentation label ``"augment"``."""
        return cls.ddpmpp(size, **{"embedding": "fourier", "pyramid": True, "taps": (1, 3, 3, 1), **options})

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier-uniform weights, times 1e-5 where a residual branch closes and at the head, sqrt(1/5) for q, k and v; zero biases."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if isinstance(layer, SelfAttention):
                nn.init.xavier_uniform_(layer.qkv.weight, gain=0.2**0.5)
        for layer in (*closing_layers(self), self.head):
            nn.init.xavier_uniform_(layer.weight, gain=1e-5)

    def context(self, noise: Tensor, cond: Cond) -> Context:
        """What every block is told of noise coordinates (B,) and conditions."""
        return Context(self.embed(noise, cond), noise, {}, None, active_controller())

    def walk(self, x: Tensor, context: Context) -> Tensor:
        """From stem to head: data with its maps ``(B, C, H, W)`` to ``(B, out_channels, H, W)``."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.head(F.silu(self.norm(self.body(self.stem(x), context, inputs=x))))

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, E)`` of noise, label and vectors that is added in every block."""
        waves = sinusoid(noise, self.waves, endpoint=True) if self.fourier is None else self.fourier(noise)
        waves = waves.roll(self.waves // 2, 1).to(self.first.weight.dtype)  # this family has the sines first
        if self.label is not None:
            waves = waves + self.label(one_hot(cond, self.conditions.classes, noise).to(waves.dtype))
        for name, linear in self.vectors.items():
            vector = visible_vector(cond, name)
            if vector is not None:
                waves = waves + linear(vector.to(waves.dtype))
        return F.silu(self.second(F.silu(self.first(waves))))
