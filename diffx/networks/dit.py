"""DiT: a transformer over patches, modulated by noise level and label (Peebles & Xie 2023, arXiv:2212.09748).

Distinctive choices
- Parameters have the names and shapes of the published checkpoints, which therefore load as they are (`diffx.interop`).
- Blocks are adaLN-Zero: a fresh block is the identity, a fresh network returns exactly zero.
- Positions are a fixed formula, not weights: no part of ``state_dict``, and any token grid can be given. Those of clips are the sum of
  the positions of pictures and of the same waves over time.
- The null label is a learned row of the table, as published; what is hidden or absent reads it.
- Text enters by cross-attention between a block's self-attention and its perceptron, not modulated, with an output that begins at zero
  (PixArt-alpha, arXiv:2310.00426); without sources of tokens there is no such layer.
- The noise sinusoid has frequencies 10,000^(-j/128), as published. (The class of the same name in diffusers divides by 127.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import Site, TokenAttention, active_controller, attend
from .border import NO_COND, Conditions, check_sizes, concat_maps, cross_context, refuse_grid
from .embedders import VectorEmbedding, sinusoid, with_conditions
from .layers import Context, zero
from .patches import patchify, position_table, unpatchify, waves
from .units import Unit

__all__ = ["DIT_SIZES", "DiT"]

# letter: (width, depth, heads) of the published networks; each exists with patches of 2, 4 and 8.
DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
WAVES = 256  # of the noise sinusoid


@recorded
class DiT(nn.Module):
    """Diffusion transformer over pictures ``(B, C, H, W)``, clips ``(B, C, T, H, W)`` or their latents.

    It takes label, vector, token and map conditions. Side lengths must be divisible by ``patch``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``, twice that for a learned variance.
        size: side length of pictures, or (height, width) or (frames, height, width), that the position table is laid out for.
        patch: side length p of a patch, one number or one per axis of ``size``; a picture has H W / p^2 tokens.
        width: width D of the tokens, divisible by 4 and by ``heads``.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width of a block's hidden layer in multiples of ``width``.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the embedding.
        tokens: source -> width of token states that every block attends to.
        maps: name -> channels of maps that are concatenated to x, in this order. They must have the size of x and, like clean data, lie
            in [-1, 1].
        other_sizes: what happens to x of another size than ``size``. ``"refuse"`` is an error; ``"stretch"`` lays the new grid over the
            extent of the old one (interpolated positions, for another resolution); ``"count"`` counts tokens from the top left corner
            (for other aspects at the same resolution).

    Raises:
        ValueError: a width or size that does not divide, an unknown ``other_sizes``, condition names used twice.
    """

    pos_embed: Tensor

    def __init__(
        self,
        channels: int = 4,
        out_channels: int | None = None,
        size: int | Sequence[int] = 32,
        patch: int | Sequence[int] = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        other_sizes: Literal["refuse", "stretch", "count"] = "refuse",
    ) -> None:
        super().__init__()
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
        if width % heads or width % 4:
            raise ValueError(f"width must be divisible by heads = {heads} and by 4, got {width}")
        if len(size) not in (2, 3) or len(self.patch) != len(size):
            raise ValueError(f"size has two or three axes and patch as many, got {size} and {patch}")
        if any(side % p for side, p in zip(size, self.patch, strict=True)):
            raise ValueError(f"size must be divisible by patch = {patch}, got {size}")
        if other_sizes not in ("refuse", "stretch", "count"):
            raise ValueError(f"other_sizes is 'refuse', 'stretch' or 'count', got {other_sizes!r}")
        self.channels, self.out_channels = channels, channels if out_channels is None else out_channels
        self.width, self.other_sizes = width, other_sizes
        self.grid = tuple(side // p for side, p in zip(size, self.patch, strict=True))
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        self.x_embedder = PatchEmbedder(channels + sum(self.conditions.maps.values()), self.patch, width)
        self.t_embedder = NoiseEmbedder(width)
        self.y_embedder = LabelTable(classes, width) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, width) for name, length in self.conditions.vectors.items())
        sources = self.conditions.tokens
        self.blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio), f"blocks.{i}", sources) for i in range(depth))
        self.final_layer = FinalLayer(width, math.prod(self.patch) * self.out_channels)
        self.register_buffer("pos_embed", torch.empty(1, math.prod(self.grid), width), persistent=False)
        self.initialise()

    @classmethod
    def published(cls, name: str = "XL/2", *, classes: int = 1000, **options: Any) -> DiT:
        """A network of the paper, ``"S/8"`` to ``"XL/2"``: size and patch.

        As published it takes ImageNet labels and latents ``(4, 32, 32)``, and predicts mean and variance (``out_channels=8``). Other
        ``options`` are those of the class.

        Raises:
            ValueError: a name that is not published.
        """
        letter, _, patch = name.partition("/")
        if letter not in DIT_SIZES or patch not in ("2", "4", "8"):
            raise ValueError(f"published names are a size of {list(DIT_SIZES)}, a slash and a patch of 2, 4 or 8; got {name!r}")
        width, depth, heads = DIT_SIZES[letter]
        preset = {"out_channels": 8, "patch": int(patch), "width": width, "depth": depth, "heads": heads}
        return cls(**{"classes": classes, **preset, **options})

    @torch.no_grad()
    def initialise(self) -> None:
        """Lay out the positions; linear maps and patches Xavier-uniform, labels and noise N(0, 0.02), what modulates and the head zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.x_embedder.proj.bias))
        tables = [] if self.y_embedder is None else [self.y_embedder.embedding_table]
        for layer in (*tables, self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(Tensor, layer.weight), std=0.02)
        zero(*(part.adaLN_modulation[1] for part in (*self.blocks, self.final_layer)), self.final_layer.linear)
        zero(*(layer.out for layer in self.modules() if isinstance(layer, TextAttention)))
        self.pos_embed.copy_(self.positions(self.grid, torch.float64))

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled data ``(B, channels, *size)`` at noise coordinates ``(B,)`` to ``(B, out_channels, *size)``.

        Raises:
            ValueError: a size that ``patch`` does not divide or that the positions are not made for, or conditions the network does not
                know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, self.patch)
        self.conditions.check(x, cond)
        grid = tuple(side // p for side, p in zip(x.shape[2:], self.patch, strict=True))
        positions = self.pos_embed if grid == self.grid else self._other(x, grid)
        weight = self.final_layer.linear.weight
        tokens = self.x_embedder(concat_maps(x.to(weight.dtype), cond, tuple(self.conditions.maps))) + positions.to(weight.dtype)
        told, mask = cross_context(cond, tuple(self.conditions.tokens), weight.dtype)
        context = Context(self.embed(noise, cond), noise, told, mask, active_controller())
        for block in self.blocks:
            tokens = block(tokens, context, grid)
        return unpatchify(self.final_layer(tokens, context), self.patch, grid)

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, width)`` of noise, label and vectors that modulates every block, before its activation."""
        return with_conditions(self.t_embedder(noise), cond, self.y_embedder, self.vectors)

    def positions(self, grid: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The table ``(1, N, width)`` for a ``grid`` (frames,) rows, columns, stretched over the network's own or counted."""
        stretch = [own / side if self.other_sizes == "stretch" else 1.0 for own, side in zip(self.grid, grid, strict=True)]
        lines = [torch.arange(side, dtype=dtype, device=self.pos_embed.device) * s for side, s in zip(grid, stretch, strict=True)]
        table = position_table(lines[-2], lines[-1], self.width)
        if len(grid) == 3:
            table = (waves(lines[0], self.width)[:, None] + table).flatten(0, 1)
        return table[None]

    def _other(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        if self.other_sizes == "refuse":
            refuse_grid(x, grid, self.grid, self.patch, "'stretch' or 'count'")
        return self.positions(grid)


class PatchEmbedder(nn.Module):
    """One linear map of each patch. Its weight has the layout of a strided convolution, as published."""

    def __init__(self, channels: int, patch: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = (nn.Conv2d if len(patch) == 2 else nn.Conv3d)(channels, width, patch, stride=patch)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight.movedim(1, -1).flatten(1)
        return F.linear(patchify(x, self.patch), weight, self.proj.bias)  # contiguous tokens, unlike the convolution's


class NoiseEmbedder(nn.Module):
    """Sinusoid, linear, SiLU, linear: ``(B,)`` to ``(B, width)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise: Tensor) -> Tensor:
        return self.mlp(sinusoid(noise, WAVES).to(cast(Tensor, self.mlp[0].weight).dtype))


class LabelTable(nn.Module):
    """One learned row per class and, as row ``classes``, one for the null label: that of samples whose label is hidden or absent."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.embedding_table = classes, nn.Embedding(classes + 1, width)

    def forward(self, cond: Cond, batch: int) -> Tensor:
        if cond.label is None:
            return self.embedding_table.weight[self.classes].expand(batch, -1)
        visible = cond.keep.get("label")
        return self.embedding_table(cond.label if visible is None else torch.where(visible, cond.label, self.classes))


class Attention(nn.Module):
    """Every token attends to all tokens of its sample."""

    def __init__(self, width: int, heads: int, layer: str) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Context, grid: tuple[int, ...]) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        site = Site(self.layer, "self", grid, 0, {"grid": slice(0, x.shape[1])}, context.noise)
        return self.proj(rearrange(attend(q, k, v, site, control=context.control), "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Linear, GELU (its tanh form, as published), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TextAttention(TokenAttention):
    """Every token of the picture attends to the sources, after a LayerNorm; residual around."""

    def __init__(self, width: int, heads: int, sources: Mapping[str, int], layer: str) -> None:
        super().__init__(width, heads, sources, nn.LayerNorm(width, eps=1e-6, elementwise_affine=False))
        self.layer = layer

    def forward(self, x: Tensor, context: Context, grid: tuple[int, ...]) -> Tensor:
        return x + self.read(self.norm(x), context, grid)


class Block(Unit):
    """Attention, text if any, and a perceptron; first and last after a modulated LayerNorm and with a gate on the way back (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, hidden: int, layer: str, sources: Mapping[str, int]) -> None:
        super().__init__()
        self.attn = Attention(width, heads, f"{layer}.attn")
        self.cross = TextAttention(width, heads, sources, f"{layer}.cross") if sources else None
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, context: Context, grid: tuple[int, ...]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(context.emb)[:, None].chunk(6, -1)
        x = torch.addcmul(x, gate1, self.attn(modulated(x, shift1, scale1), context, grid))
        if self.cross is not None:
            x = self.cross(x, context, grid)
        return torch.addcmul(x, gate2, self.mlp(modulated(x, shift2, scale2)))


class FinalLayer(nn.Module):
    """A modulated LayerNorm and the linear map to the pixels of each patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        shift, scale = self.adaLN_modulation(context.emb)[:, None].chunk(2, -1)
        return self.linear(modulated(x, shift, scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights of its own, then ``(1 + scale) x + shift``."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
