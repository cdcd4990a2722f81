"""EDM2's U-Net, whose layers keep the magnitude of what passes through (Karras et al. 2024, arXiv:2312.02696).

Nothing is normalised by statistics of groups and nothing has a bias: weights have unit magnitude, and sums, concatenations and activations
are scaled so that independent inputs of unit variance give outputs of unit variance. Equation numbers are those of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import Site, active_controller, attend
from .blocks import Place, UBody
from .border import Conditions
from .embedders import Exact, one_hot, visible_vector
from .layers import Context
from .unet import PictureUNet, check_levels, levels_at, name_attention
from .units import Constrained, Unit

__all__ = ["MPUNet"]

EPS = 1e-4
RESIDUAL = 0.3  # share of residual branches and attention in their sums
LARGEST = 256.0  # activations beyond it are clipped
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
DROPPING = ("m", "l", "xl", "xxl")


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``x`` with root mean square 1 along ``dim``; tiny values stay tiny (eq. 30)."""
    size = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (EPS + size * math.sqrt(size.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over the root mean square that it gives a normal variable (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """``a`` and a ``share`` of ``b``, of unit variance where both are and do not depend on each other (eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate ``(B, C, H, W)`` and ``(B, D, H, W)`` so that both count the same, whatever their widths (eq. 103)."""
    half = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([a * (half / math.sqrt(a.shape[1])), b * (half / math.sqrt(b.shape[1]))], 1)


class MPLayer(Constrained):
    """A linear map or convolution without bias, each of whose outputs has weights of unit length (eq. 47).

    In training the weights that are kept are brought to unit magnitude, too, once per change (forced weight normalisation, eq. 66):
    otherwise they grow without end, and learning slows down.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution's window; 0 = linear over the last axis.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(kernel,) * (2 if kernel else 0)))
        self._seen = -1  # version of the weights that were brought to unit magnitude last

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map ``(..., inputs)``, or ``(B, inputs, H, W)``; ``gain`` is a factor on the output."""
        if self.training:
            self.constrain()
        weight = unit(self.weight, self._inputs) * (gain / math.sqrt(self.weight[0].numel()))
        if self.weight.ndim == 2:
            return F.linear(x, weight.to(x.dtype))
        return F.conv2d(x, weight.to(x.dtype), padding=self.weight.shape[-1] // 2)

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the weights to unit magnitude where they have changed."""
        if torch.compiler.is_compiling() or self.weight._version != self._seen:
            self.weight.copy_(unit(self.weight, self._inputs))
            if not torch.compiler.is_compiling():
                self._seen = self.weight._version

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(1, self.weight.ndim))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": -1}  # versions count the changes of one tensor, not of its copies


class MPAttention(nn.Module):
    """Self-attention by angles: queries, keys and values have unit magnitude (cosine attention).

    Args:
        channels: channels C of the map.
        heads: number of heads.
    """

    layer = ""  # dotted name, set by the network

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = MPLayer(channels, 3 * channels), MPLayer(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map ``(B, C, H, W)`` to the same."""
        grid = tuple(x.shape[2:])
        rows = rearrange(self.qkv(rearrange(x, "b c ... -> b (...) c")), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k, v = unit(rows, -1).unbind()
        site = Site(self.layer, "self", grid, 0, {"grid": slice(0, q.shape[2])}, context.noise)
        tokens = self.out(rearrange(attend(q, k, v, site, control=context.control), "b h n d -> b n (h d)"))
        return mp_sum(x, tokens.transpose(1, 2).unflatten(2, grid), RESIDUAL)


class MPBlock(Unit):
    """A residual block of the encoder or the decoder (fig. 21), with attention behind it.

    Args:
        cin, cout: channels.
        emb: width of the embedding.
        encoder: project first and bring each pixel to unit magnitude, from which both branches begin; the decoder projects at the end.
        mode: ``"down"`` and ``"up"`` halve and double the sides first.
        heads: of the attention; 0 = none.
        dropout: probability of dropping before the second convolution.
    """

    def __init__(
        self, cin: int, cout: int, emb: int, *, encoder: bool, mode: Literal["keep", "down", "up"] = "keep", heads: int = 0,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.mode, self.dropout = encoder, mode, dropout
        self.skip = MPLayer(cin, cout, 1) if cin != cout else None
        self.conv1 = MPLayer(cout if encoder else cin, cout, 3)
        self.gain, self.modulation = nn.Parameter(torch.zeros(1)), MPLayer(emb, cout)
        self.conv2 = MPLayer(cout, cout, 3)
        self.attention = MPAttention(cout, heads) if heads else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map ``(B, cin, H, W)`` to ``(B, cout, H', W')``."""
        x = F.avg_pool2d(x, 2) if self.mode == "down" else F.interpolate(x, scale_factor=2.0) if self.mode == "up" else x
        if self.encoder:
            x = unit(x if self.skip is None else self.skip(x), 1)
        scale = self.modulation(context.emb, self.gain) + 1
        branch = mp_silu(self.conv1(mp_silu(x)) * scale[:, :, None, None])
        branch = self.conv2(F.dropout(branch, self.dropout, self.training))
        if not self.encoder and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, branch, RESIDUAL)
        if self.attention is not None:
            x = self.attention(x, context)
        return x.clamp(-LARGEST, LARGEST)


class MPFourier(Exact):
    """Cosines of random frequencies and phases, of unit variance (eq. 75); the buffers are published with the weights.

    Args:
        width: number of waves.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, noise: Tensor) -> Tensor:
        """Embed ``(B,)`` as ``(B, width)``."""
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        return (noise[:, None] * self.frequencies.to(noise.dtype) + self.phases.to(noise.dtype)).cos() * math.sqrt(2)


@recorded
class MPUNet(PictureUNet):
    """EDM2's U-Net with label, vector and map conditions; `published` builds its sizes.

    It expects what `diffx.EDMPrecond` gives: input of unit variance and the noise coordinate ln(sigma) / 4. Side lengths must be divisible
    by ``2 ** (len(mults) - 1)``. A fresh network returns zero.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        width: channels of a level before ``mults``.
        mults: multiples of ``width``, one per level; level 0 is the full resolution.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with self-attention, counted from 0 = full resolution, -1 = lowest; not side lengths.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors of unit variance that join the embedding.
        maps: name -> channels of maps in [-1, 1] that are concatenated to x, in this order.
        dropout: probability of dropping before the second convolution of each block.
        head_dim: channels per head.

    Raises:
        ValueError: options that do not fit each other.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        width: int = 192,
        mults: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_levels: Sequence[int] = (-2, -1),
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        self.channels, self.out_channels, self.divisor = channels, out_channels or channels, 2 ** (len(mults) - 1)
        self.conditions = Conditions(classes, dict(vectors or {}), {}, dict(maps or {}))
        attending = check_levels("attention_levels", attention_levels, len(mults))
        widths = [mult * width for mult in mults]
        if odd := [wide for level, wide in enumerate(widths) if (level in attending or level == len(mults) - 1) and wide % head_dim]:
            raise ValueError(f"head_dim = {head_dim} must divide the channels of levels with attention, which are {odd[0]}")
        emb = max(widths)

        def block(cin: int, cout: int, place: Place) -> MPBlock:
            attends = place.first if place.part == "middle" else place.level in attending
            return MPBlock(cin, cout, emb, encoder=place.part == "encoder", heads=cout // head_dim if attends else 0, dropout=dropout)

        def resample(c: int, mode: Literal["down", "up"]) -> MPBlock:
            return MPBlock(c, c, emb, encoder=mode == "down", mode=mode, dropout=dropout)

        self.fourier, self.noise = MPFourier(widths[0]), MPLayer(widths[0], emb)
        self.label = MPLayer(classes, emb) if classes else None
        self.vectors = nn.ModuleDict({name: MPLayer(length, emb) for name, length in self.conditions.vectors.items()})
        self.stem = MPLayer(channels + sum(self.conditions.maps.values()) + 1, widths[0], 3)
        self.body = UBody(widths[0], widths, [blocks] * len(mults), block=block, resample=resample, join=mp_cat)
        self.head, self.gain = MPLayer(widths[0], self.out_channels, 3), nn.Parameter(torch.zeros(1))
        name_attention(self)

    @classmethod
    def published(cls, name: str, size: int = 64, **options: Any) -> MPUNet:
        """A published size, ``"xxs"`` to ``"xxl"``, for 1,000 classes of ImageNet: pixels at 64x64, or latents (``channels=4``).

        Raises:
            ValueError: no such size.
        """
        if name not in WIDTHS:
            raise ValueError(f"published names are {list(WIDTHS)}, got {name!r}")
        found = {"width": WIDTHS[name], "attention_levels": levels_at(size, (16, 8)), "dropout": 0.1 if name in DROPPING else 0.0}
        return cls(**{**found, "classes": 1000, **options})

    def context(self, noise: Tensor, cond: Cond) -> Context:
        """What every block is told of noise coordinates (B,) and conditions."""
        return Context(self.embed(noise, cond), noise, {}, None, active_controller())

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, E)`` of noise, label and vectors; hidden and null ones are zero."""
        emb = self.noise(self.fourier(noise).to(self.stem.weight.dtype))
        if self.label is not None:
            emb = mp_sum(emb, self.label(one_hot(cond, self.conditions.classes, noise).to(emb.dtype)), 0.5)
        for name, layer in self.vectors.items():
            vector = visible_vector(cond, name)
            vector = emb.new_zeros(len(emb), self.conditions.vectors[name]) if vector is None else vector.to(emb.dtype)
            emb = mp_sum(emb, layer(vector), 0.5)
        return mp_silu(emb)

    def walk(self, x: Tensor, context: Context) -> Tensor:
        """From stem to head: data with its maps ``(B, C, H, W)`` to ``(B, out_channels, H, W)``."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1).contiguous(memory_format=torch.channels_last)  # a constant in place of biases
        return self.head(self.body(self.stem(x), context), self.gain)
