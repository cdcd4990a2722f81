"""RIN, the recurrent interface network: a few latents read from many patches, think, and write back (Jabri et al. 2023, arXiv:2212.11972).

Distinctive choices
- Most of the computation is attention among the latents, whose number does not grow with the picture.
- The latents are handed on: `forward` returns them, and takes those of the call before as ``carry``. They join through a LayerNorm whose
  scale begins at 0, so a fresh network answers alike whatever it is handed.
- Noise level and label are two of the latents. A hidden or absent label is the bias of its token alone.
- Token sources of text are read together with the patches and never written to.
- The head begins at zero; keys and values are not normalised, as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .attention import AttentionController, Site, active_controller, attend
from .border import NO_COND, Conditions, check_sizes, concat_maps, cross_context, refuse_grid
from .embedders import LabelEmbedding, VectorEmbedding, sinusoid
from .layers import zero
from .patches import patchify, stretched, unpatchify
from .units import Unit

__all__ = ["RIN", "RIN_SIZES"]

RIN_SIZES: Mapping[str, Mapping[str, Any]] = {
    "cifar": {"size": 32, "patch": 2, "width": 256, "latents": 128, "latent_width": 512, "blocks": 3, "depth": 2, "read_heads": 8,
              "write_ratio": 2, "classes": 10},
    "imagenet_64_p8": {"size": 64, "patch": 8, "latent_width": 768},
    "imagenet_64_p4": {"size": 64, "patch": 4, "latent_width": 768},
    "rin_64": {"size": 64, "patch": 4},
    "rin_128": {"size": 128, "patch": 4, "blocks": 6},
    "rin_256": {"size": 256, "patch": 8, "latents": 256, "blocks": 6},
}  # fmt: skip
EPS = 1e-6  # of every LayerNorm, as published


@recorded
class RIN(nn.Module):
    """Recurrent interface network over pictures ``(B, C, H, W)`` or videos ``(B, C, T, H, W)``.

    Side lengths must be divisible by ``patch``.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        size: side length of pictures, or (height, width) or (frames, height, width), that the table of positions is laid out for.
        patch: side of a patch, one number or one per axis of ``size``.
        width: width of the interface, that is of the patches.
        latents: number of latents, those of noise and label among them; at least 3.
        latent_width: width of the latents, divisible by 8 and by ``heads``.
        blocks: rounds of read, compute and write.
        depth: layers among the latents in each round.
        heads: attention heads among the latents.
        read_heads: attention heads of reading and writing, whose inner width is the smaller of the two widths.
        mlp_ratio: hidden width of every perceptron in multiples of its width.
        write_ratio: the same for those of the interface.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the token of the noise level.
        tokens: source of text -> width of its states.
        maps: name -> channels of maps that are concatenated to x, in this order; of the size of x and, like data, in [-1, 1].
        standardise: divide each sample of x by its standard deviation; goes with an input scale other than 1.
        other_sizes: what happens to x of another size than ``size``: an error, or the table of positions is stretched over it
            (interpolated linearly), for another resolution or aspect.

    Raises:
        ValueError: fewer than 3 latents, widths or sizes that do not divide, an unknown ``other_sizes``, condition names used twice.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        size: int | Sequence[int] = 64,
        patch: int | Sequence[int] = 4,
        width: int = 512,
        latents: int = 128,
        latent_width: int = 1024,
        blocks: int = 4,
        depth: int = 4,
        heads: int = 16,
        read_heads: int = 16,
        mlp_ratio: float = 4.0,
        write_ratio: float = 4.0,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        standardise: bool = False,
        other_sizes: Literal["refuse", "stretch"] = "refuse",
    ) -> None:
        super().__init__()
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
        _check(size, self.patch, latents, latent_width, min(width, latent_width), heads, read_heads, other_sizes)
        self.channels, self.out_channels, self.standardise = channels, channels if out_channels is None else out_channels, standardise
        self.grid, self.other_sizes = tuple(side // p for side, p in zip(size, self.patch, strict=True)), other_sizes
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        pixels = math.prod(self.patch)
        self.stem = nn.Linear(pixels * (channels + sum(self.conditions.maps.values())), width)
        self.stem_norm = nn.LayerNorm(width, EPS)
        self.positions = nn.Parameter(torch.empty(1, math.prod(self.grid), width))
        self.noise = NoiseToken(latent_width)
        self.label = LabelEmbedding(classes, latent_width) if classes else None
        self.null_label = nn.Parameter(torch.zeros(latent_width)) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, latent_width) for name, length in self.conditions.vectors.items())
        self.slots = nn.Parameter(torch.empty(1, latents - (2 if classes else 1), latent_width))
        self.carried, self.carried_norm = Perceptron(latent_width, mlp_ratio), nn.LayerNorm(latent_width, EPS)
        self.sources = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(length), nn.Linear(length, width)) for name, length in self.conditions.tokens.items()}
        )
        self.blocks = nn.ModuleList(
            Block(width, latent_width, depth, heads, read_heads, mlp_ratio, write_ratio, f"blocks.{i}") for i in range(blocks)
        )
        self.head_norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, pixels * self.out_channels)
        self.initialise()

    @classmethod
    def published(cls, name: str = "rin_256", **options: Any) -> RIN:
        """A network of the published code (``"cifar"``, ``"imagenet_64_p8"``, ``"imagenet_64_p4"``) or of the sizes of the paper.

        All take labels, of 1,000 classes but for CIFAR's 10. Other ``options`` are those of the class.

        Raises:
            ValueError: another name.
        """
        if name not in RIN_SIZES:
            raise ValueError(f"published names are {list(RIN_SIZES)}; got {name!r}")
        return cls(**{"classes": 1000, **RIN_SIZES[name], **options})

    @torch.no_grad()
    def initialise(self) -> None:
        """Linear maps Xavier-uniform, biases zero; slots and positions N(0, 0.02); the scale of what is carried, and the head, zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for table in (self.slots, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        nn.init.zeros_(self.carried_norm.weight)
        zero(self.head)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, carry: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map scaled data ``(B, channels, *size)`` at noise coordinates ``(B,)`` to the output and the latents ``(B, latents, D)``.

        Args:
            x: pictures or videos.
            noise: (B,); the share of signal in the variance times 1000 where it is as published (`diffx.denoiser.SignalShare`).
            cond: conditions.
            carry: latents that an earlier call returned for the same samples; None is the zeros of a first call.

        Raises:
            ValueError: a size that ``patch`` does not divide or that the positions are not made for, a carry of another shape, or
                conditions that the network does not know (see `Conditions.check`).
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, self.patch)
        self.conditions.check(x, cond)
        grid = tuple(side // p for side, p in zip(x.shape[2:], self.patch, strict=True))
        dtype = self.head.weight.dtype
        if self.standardise:
            x = x / x.flatten(1).std(1).view(-1, *(1,) * (x.ndim - 1))
        x = concat_maps(x.to(dtype), cond, tuple(self.conditions.maps))
        interface = self.stem_norm(self.stem(patchify(x, self.patch))) + self._positions(x, grid)
        latents = self.start(noise, cond, carry)
        texts, mask = cross_context(cond, tuple(self.conditions.tokens), dtype)
        view = View(grid, {name: self.sources[name](states) for name, states in texts.items()}, mask, noise, active_controller())
        for block in self.blocks:
            interface, latents = block(interface, latents, view)
        return unpatchify(self.head(self.head_norm(interface)), self.patch, grid), latents

    def start(self, noise: Tensor, cond: Cond, carry: Tensor | None) -> Tensor:
        """The latents (B, latents, D) before the first block: slots, noise and label, and what is left of ``carry``."""
        batch = len(noise)
        first = self.noise(noise)
        for vector in self.vectors:
            first = first + vector(cond, batch)
        parts = [self.slots.expand(batch, -1, -1), first[:, None]]
        if self.label is not None and self.null_label is not None:
            parts.append((self.label(cond, batch) + self.null_label)[:, None])
        latents = torch.cat(parts, 1)
        before = torch.zeros_like(latents) if carry is None else carry.to(latents.dtype)
        if before.shape != latents.shape:
            raise ValueError(f"carry must hold the latents {tuple(latents.shape)} of these samples, got {tuple(before.shape)}")
        return latents + self.carried_norm(before + self.carried(before))

    def _positions(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        if grid == self.grid:
            return self.positions
        if self.other_sizes == "refuse":
            refuse_grid(x, grid, self.grid, self.patch, "'stretch'")
        return stretched(self.positions.transpose(1, 2).unflatten(2, self.grid), grid).flatten(2).transpose(1, 2)


class View(NamedTuple):
    """What every block is handed beside interface and latents: grid, projected texts and the mask over null and them, noise, controller."""

    grid: tuple[int, ...]
    texts: Mapping[str, Tensor]
    mask: Tensor | None
    noise: Tensor
    control: AttentionController | None


class Block(Unit):
    """Read, compute ``depth`` times, write; every step is an attention and a perceptron, both residual."""

    def __init__(self, width: int, latent_width: int, depth: int, heads: int, read_heads: int, ratio: float, write_ratio: float,
                 layer: str) -> None:  # fmt: skip
        super().__init__()
        self.read = Attention(latent_width, width, read_heads, f"{layer}.read")
        self.read_mlp = Perceptron(latent_width, ratio)
        self.compute = nn.ModuleList(Attention(latent_width, latent_width, heads, f"{layer}.compute.{i}") for i in range(depth))
        self.compute_mlp = nn.ModuleList(Perceptron(latent_width, ratio) for _ in range(depth))
        self.write = Attention(width, latent_width, read_heads, f"{layer}.write")
        self.write_mlp = Perceptron(width, write_ratio)

    def forward(self, interface: Tensor, latents: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Interface ``(B, N, width)`` and latents ``(B, M, latent_width)``, both renewed."""
        m, end = latents.shape[1], interface.shape[1]
        sources, slices = [interface], {"grid": slice(0, end)}
        for name, states in view.texts.items():
            slices[name] = slice(end, end := end + states.shape[1])
            sources.append(states)
        reading = Site("", "cross", (), m, slices, view.noise)
        among = Site("", "self", (), m, {"latents": slice(0, m)}, view.noise)
        writing = Site("", "cross", view.grid, 0, {"latents": slice(0, m)}, view.noise)
        latents = latents + self.read(latents, torch.cat(sources, 1), reading, view.control, _read_mask(interface, view.mask))
        latents = latents + self.read_mlp(latents)
        for attention, mlp in zip(self.compute, self.compute_mlp, strict=True):
            latents = latents + attention(latents, None, among, view.control)
            latents = latents + mlp(latents)
        interface = interface + self.write(interface, latents, writing, view.control)
        return interface + self.write_mlp(interface), latents


class Attention(nn.Module):
    """LayerNorm, then attention of ``x`` over ``memory`` as it is, or over itself."""

    def __init__(self, width: int, memory: int, heads: int, layer: str) -> None:
        super().__init__()
        inner = min(width, memory)
        self.heads, self.layer = heads, layer
        self.norm = nn.LayerNorm(width, EPS)
        self.query, self.key, self.value = nn.Linear(width, inner), nn.Linear(memory, inner), nn.Linear(memory, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self, x: Tensor, memory: Tensor | None, site: Site, control: AttentionController | None, mask: Tensor | None = None
    ) -> Tensor:
        """What is added to ``x``; the layer names itself in the ``site``."""
        x = self.norm(x)
        memory = x if memory is None else memory
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (self.query(x), self.key(memory), self.value(memory)))
        mixed = attend(q, k, v, site._replace(layer=self.layer), mask=mask, control=control)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class Perceptron(nn.Sequential):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, width: int, ratio: float) -> None:
        hidden = int(width * ratio)
        super().__init__(nn.LayerNorm(width, EPS), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class NoiseToken(nn.Module):
    """The noise level as a latent ``(B, D)``: sinusoid of D / 4 waves, standardised, linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = width // 4
        self.first, self.second = nn.Linear(self.waves, width), nn.Linear(width, width)

    def forward(self, noise: Tensor) -> Tensor:
        waves = F.layer_norm(sinusoid(noise, self.waves), (self.waves,))
        return self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))


def _read_mask(interface: Tensor, mask: Tensor | None) -> Tensor | None:
    """Mask (B, 1, 1, keys) over patches, which are always read, and texts, from the one over null token and texts."""
    if mask is None:
        return None
    patches = mask[:, :1].expand(-1, interface.shape[1])
    return torch.cat([patches, mask[:, 1:]], 1)[:, None, None]


def _check(size: tuple[int, ...], patch: tuple[int, ...], latents: int, latent_width: int, inner: int, heads: int, read_heads: int,
           other_sizes: str) -> None:  # fmt: skip
    if len(size) not in (2, 3) or len(patch) != len(size) or any(side % p for side, p in zip(size, patch, strict=True)):
        raise ValueError(f"size must have 2 axes, or 3 for video, each divisible by its side of a patch; got size {size} and patch {patch}")
    if latents < 3:
        raise ValueError(f"RIN needs at least 3 latents, for noise, label and one that is free; got {latents}")
    if latent_width % heads or latent_width % 8 or inner % read_heads:
        raise ValueError(f"latent_width must be divisible by 8 and by heads = {heads}, and the smaller width by read_heads = {read_heads}; "
                         f"got {latent_width} and {inner}")  # fmt: skip
    if other_sizes not in ("refuse", "stretch"):
        raise ValueError(f"other_sizes is 'refuse' or 'stretch', got {other_sizes!r}")
