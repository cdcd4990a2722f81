"""Residual blocks of the U-Net families and the U itself: what ADM, EDM's DDPM++ and NCSN++ share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention, SelfAttention
from .layers import Context, Norm, Pointwise, Resample
from .units import Unit

__all__ = ["Block", "BlockStyle", "ConvResample", "Place", "ResBlock", "UBody", "block_maker", "closing_layers", "joined"]


@dataclass(frozen=True)
class BlockStyle:
    """What all residual blocks of one network have in common.

    Args:
        emb: width E of the embedding that modulates the blocks.
        dropout: probability in [0, 1) before the second convolution, 0 = none.
        dropout_of: ``"channels"`` drops whole feature channels of a sample; ``"elements"`` drops single values, as the papers do, and costs
            several times as much on a CPU.
        scale_shift: the embedding scales and shifts the second normalisation; False = it is added before it.
        skip_scale: factor on every sum with a residual.
        eps: of the normalisations.
        taps: low-pass filter of blocks that change the resolution, see `Resample`.
        project: blocks that change the resolution have a projection on the residual even at equal widths.
    """

    emb: int
    dropout: float = 0.0
    dropout_of: Literal["channels", "elements"] = "channels"
    scale_shift: bool = True
    skip_scale: float = 1.0
    eps: float = 1e-5
    taps: tuple[float, ...] = (1, 1)
    project: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {self.dropout}")
        if self.dropout_of not in ("channels", "elements"):
            raise ValueError(f"dropout_of is 'channels' or 'elements', got {self.dropout_of!r}")


class ResBlock(Unit):
    """Norm-SiLU-conv twice around a residual, modulated by the embedding (Dhariwal & Nichol 2021, arXiv:2105.05233).

    Args:
        cin: channels of the input.
        cout: channels of the output.
        style: what it shares with the other blocks.
        resample: None keeps the resolution; ``"down"`` and ``"up"`` change it by two, on both branches.
    """

    def __init__(self, cin: int, cout: int, style: BlockStyle, resample: Literal["down", "up"] | None = None) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale, self.dropout = style.scale_shift, style.skip_scale, style.dropout
        self.drop = F.dropout2d if style.dropout_of == "channels" else F.dropout
        self.norm1 = Norm(cin, style.eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.modulation = nn.Linear(style.emb, 2 * cout if style.scale_shift else cout)
        self.norm2 = Norm(cout, style.eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.resample = None if resample is None else Resample(resample, style.taps)
        self.skip = Pointwise(cin, cout) if cin != cout or (resample and style.project) else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        modulation = self.modulation(context.emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, 1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        h = F.silu(h)
        if self.dropout:
            h = self.drop(h, self.dropout, self.training)
        h = self.conv2(h) + (x if self.skip is None else self.skip(x))
        return h if self.skip_scale == 1 else h * self.skip_scale


class Block(Unit):
    """A residual block, then self-attention and cross-attention where a network wants them."""

    def __init__(self, res: nn.Module, attention: SelfAttention | None = None, cross: CrossAttention | None = None) -> None:
        super().__init__()
        self.res, self.attention, self.cross = res, attention, cross

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.res(x, context)
        if self.attention is not None:
            x = self.attention(x, context)
        if self.cross is not None:
            x = self.cross(x, context)
        return x


def block_maker(
    style: BlockStyle, tokens: Mapping[str, int], attends: Callable[[Place], bool], crosses: Callable[[Place], bool],
    heads: Callable[[int], int],
) -> Callable[[int, int, Place], Block]:  # fmt: skip
    """What makes the blocks of a `UBody`.

    Args:
        style: of the residual blocks.
        tokens: source -> width of its states, for cross-attention; empty = none anywhere.
        attends: whether the block at a place has self-attention.
        crosses: whether it has cross-attention.
        heads: number of heads of attention over so many channels.
    """

    def block(cin: int, cout: int, place: Place) -> Block:
        attention = SelfAttention(cout, heads(cout), skip_scale=style.skip_scale) if attends(place) else None
        cross = CrossAttention(cout, heads(cout), tokens, skip_scale=style.skip_scale) if tokens and crosses(place) else None
        return Block(ResBlock(cin, cout, style), attention, cross)

    return block


class ConvResample(Unit):
    """Change the resolution by two with one 3x3 convolution (Ho et al. 2020): strided downwards, after nearest neighbour upwards."""

    def __init__(self, channels: int, mode: Literal["down", "up"]) -> None:
        super().__init__()
        self.up = Resample("up") if mode == "up" else None
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if mode == "up" else 2, padding=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.conv(x if self.up is None else self.up(x))


class Place(NamedTuple):
    """Where in a U a block stands: its part, its level (0 = full resolution), and whether it is the first or last of its part and level."""

    part: Literal["encoder", "middle", "decoder"]
    level: int
    first: bool
    last: bool


def joined(x: Tensor, partner: Tensor, scale: float | None = None) -> Tensor:
    """Concatenate two maps, the second one times ``scale`` if there is one."""
    return torch.cat([x, partner if scale is None else partner * scale], 1)


class UBody(nn.Module):
    """The U between stem and head: every map of the way down is concatenated to its partner on the way up.

    The encoder has ``blocks[level]`` blocks on a level, the decoder one more (it also takes the map that came from the level above); two
    blocks stand in the middle.

    Args:
        stem: channels that come in.
        widths: channels of each level, full resolution first.
        blocks: residual blocks of each level.
        block: makes a block from (channels in, channels out, place).
        resample: makes the step between two levels from (channels, ``"down"`` or ``"up"``).
        pyramid: makes a layer from (channels in, channels out) that halves the network's input beside the encoder; its output joins the
            encoder after each step down (the residual input of NCSN++). None = no such path.
        inputs: channels of the network's input, for the pyramid.
        join: makes one map of that on the way up (B, C, H, W) and its partner (B, D, H, W): (B, C + D, H, W).
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        block: Callable[[int, int, Place], nn.Module],
        resample: Callable[[int, Literal["down", "up"]], nn.Module],
        pyramid: Callable[[int, int], nn.Module] | None = None,
        inputs: int = 0,
        join: Callable[[Tensor, Tensor], Tensor] = joined,
    ) -> None:
        super().__init__()
        self.join = join
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, skips = stem, [stem]
        for level, (target, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                self.down.append(resample(width, "down"))
                skips.append(width)
                if pyramid is not None:
                    self.pyramid.append(pyramid(inputs, width))
                    inputs = width
            row = nn.ModuleList()
            for i in range(count):
                row.append(block(width, target, Place("encoder", level, i == 0, i == count - 1)))
                width = target
                skips.append(width)
            self.encoder.append(row)
        bottom = len(widths) - 1
        self.middle = nn.ModuleList(block(width, width, Place("middle", bottom, i == 0, i == 1)) for i in range(2))
        for level in range(bottom, -1, -1):
            row = nn.ModuleList()
            for i in range(blocks[level] + 1):
                row.append(block(width + skips.pop(), widths[level], Place("decoder", level, i == 0, i == blocks[level])))
                width = widths[level]
            self.decoder.append(row)
            if level:
                self.up.append(resample(width, "up"))

    def forward(self, x: Tensor, context: Context, inputs: Tensor | None = None) -> Tensor:
        """Map ``(B, stem, H, W)`` to ``(B, widths[0], H, W)``; ``inputs`` is what entered the network, for the pyramid."""
        skips = [x]
        for level, row in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](x, context)
                if self.pyramid:
                    inputs = x = (x + self.pyramid[level - 1](inputs)) * 0.5**0.5
                skips.append(x)
            for block in row.children():
                x = block(x, context)
                skips.append(x)
        for block in self.middle:
            x = block(x, context)
        for depth, row in enumerate(self.decoder):
            for block in row.children():
                x = block(self.join(x, skips.pop()), context)
            if depth < len(self.up):
                x = self.up[depth](x, context)
        return x


def closing_layers(net: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    """The layer that ends each residual branch: where it is zero, the branch starts as the identity."""
    for module in net.modules():
        if isinstance(module, ResBlock):
            yield module.conv2
        elif isinstance(module, (SelfAttention, CrossAttention)):
            yield module.out
