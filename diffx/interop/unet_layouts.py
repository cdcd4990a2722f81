"""How guided-diffusion, EDM and diffusers name the parts of their U-Nets, block by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..networks.blocks import ConvResample
from ..networks.song_unet import SongUNet
from ..networks.unet import UNet

__all__ = ["ADM", "DIFFUSERS", "Layout", "edm", "edm_network", "edm_places", "edm_sides", "taps"]

EDM_PLACE = re.compile(r"enc\.(\d+)x\1_(conv|down|block\d+)\.")


@dataclass(frozen=True)
class Layout:
    """How a project names the parts of a U-Net.

    Args:
        whole: our parts outside the U -> theirs.
        res: their names of a residual block's first normalisation and convolution, modulation, second ones, and projection.
        attention: their names of an attention's normalisation, the rows of q, k and v (one name or three), and projection.
        places: our blocks and resampling layers, each with their name of it and of its attention.
    """

    whole: Mapping[str, str]
    res: tuple[str, ...]
    attention: tuple[Any, ...]
    places: Callable[[Any], Iterator[tuple[str, str, str]]]


def edm(size: int, song: bool) -> Layout:
    """The layout of EDM's ``SongUNet`` (``song``) or ``DhariwalUNet`` for pictures of side ``size``: blocks are named by side."""
    if song:
        aux = f"dec.{size}x{size}_aux"
        whole = {"label": "map_label", "vectors.augment": "map_augment", "first": "map_layer0", "second": "map_layer1",
                 "fourier.frequencies": "map_noise.freqs", "norm": f"{aux}_norm", "head": f"{aux}_conv"}  # fmt: skip
    else:
        whole = {"label.rows.weight": "map_label.weight", "noise.first": "map_layer0", "noise.second": "map_layer1",
                 "norm": "out_norm", "head": "out_conv"}  # fmt: skip
    names = ("norm0", "conv0", "affine", "norm1", "conv1", "skip")
    return Layout({"stem": f"enc.{size}x{size}_conv", **whole}, names, ("norm2", "qkv", "proj"), partial(edm_places, size))


def edm_sides(state: Mapping[str, Tensor]) -> list[int]:
    """Sides of the maps that the names of EDM's weights tell, the picture's first."""
    return sorted({int(match[1]) for name in state if (match := EDM_PLACE.match(name))}, reverse=True)


def edm_network(song: bool, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module:
    """A fresh network of the sizes that names and shapes of EDM's weights tell; ``options`` go before them.

    Args:
        song: a `SongUNet`, else a `UNet`.
        state: weights of one of EDM's networks.
        options: arguments of the network.

    Raises:
        ValueError: a network with another place for its augmentation label.
    """
    if not song and "map_augment.weight" in state:
        raise ValueError("this DhariwalUNet takes an augmentation label before its two linear layers; no network of diffx does that")
    sides = edm_sides(state)
    embedded, waves = state["map_layer0.weight"].shape
    fourier = "map_noise.freqs" in state
    width = len(state[f"enc.{sides[0]}x{sides[0]}_conv.weight"]) if song else waves
    last = [len(state[f"enc.{side}x{side}_block0.conv0.weight"]) for side in sides]
    labels, augment = state.get("map_label.weight"), state.get("map_augment.weight")
    found: dict[str, Any] = {
        "channels": state[f"enc.{sides[0]}x{sides[0]}_conv.weight"].shape[1],
        "out_channels": len(state[f"dec.{sides[0]}x{sides[0]}_aux_conv.weight" if song else "out_conv.weight"]),
        "width": width,
        "mults": [channels // width for channels in last],
        "blocks": sum(name.startswith(f"enc.{sides[0]}x{sides[0]}_block") and name.endswith("conv0.weight") for name in state),
        "attention_levels": [level for level, side in enumerate(sides) if f"enc.{side}x{side}_block0.qkv.weight" in state],
        "classes": 0 if labels is None else labels.shape[1],
        "emb_mult": embedded // width,
    }
    if not song:
        return UNet(**{**found, **options})
    found |= {} if augment is None else {"vectors": {"augment": augment.shape[1]}}
    kernel = state.get(f"enc.{sides[-1]}x{sides[-1]}_down.conv0.resample_filter")
    pyramid = any("aux_residual" in name for name in state)
    found |= {"embedding": "fourier" if fourier else "positional", "pyramid": pyramid}
    found |= {"taps": (1, 3, 3, 1) if pyramid else (1, 1)} if kernel is None else {"taps": taps(kernel)}
    return SongUNet(**{**found, **options})


def taps(kernel: Tensor) -> tuple[float, ...]:
    """The line whose outer product with itself is the filter ``kernel`` (..., k, k), in multiples of its first entry."""
    line = kernel.flatten(0, -3)[0] if kernel.ndim > 2 else kernel
    return tuple(round(value, 3) for value in (line[0] / line[0, 0]).tolist())


def _adm_places(net: UNet) -> Iterator[tuple[str, str, str]]:
    """Blocks are counted through, resampling included; what stands in one place is counted, too."""
    count = 0
    for level, row in enumerate(net.body.encoder):
        if level:
            count += 1
            conv = isinstance(net.body.down[level - 1], ConvResample)
            yield f"body.down.{level - 1}", f"input_blocks.{count}.0{'.op' if conv else ''}", ""
        for i in range(len(row)):  # type: ignore[arg-type]
            count += 1
            yield f"body.encoder.{level}.{i}", f"input_blocks.{count}.0", f"input_blocks.{count}.1"
    yield "body.middle.0", "middle_block.0", "middle_block.1"
    yield "body.middle.1", "middle_block.2", ""
    count = -1
    for depth, row in enumerate(net.body.decoder):
        for i in range(len(row)):  # type: ignore[arg-type]
            count += 1
            yield f"body.decoder.{depth}.{i}", f"output_blocks.{count}.0", f"output_blocks.{count}.1"
        if depth < len(net.body.up):
            last = 1 + (row[-1].attention is not None)  # type: ignore[index]
            conv = isinstance(net.body.up[depth], ConvResample)
            yield f"body.up.{depth}", f"output_blocks.{count}.{last}{'.conv' if conv else ''}", ""


def _diffusers_places(net: UNet) -> Iterator[tuple[str, str, str]]:
    for ours, theirs in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        for depth, row in enumerate(getattr(net.body, ours)):
            for i in range(len(row)):
                yield f"body.{ours}.{depth}.{i}", f"{theirs}.{depth}.resnets.{i}", f"{theirs}.{depth}.attentions.{i}"
    for i in range(2):
        yield f"body.middle.{i}", f"mid_block.resnets.{i}", "mid_block.attentions.0"
    for ours, theirs in (("down", "down_blocks.{}.downsamplers.0"), ("up", "up_blocks.{}.upsamplers.0")):
        for depth, step in enumerate(getattr(net.body, ours)):
            yield f"body.{ours}.{depth}", theirs.format(depth) + (".conv" if isinstance(step, ConvResample) else ""), ""


def edm_places(size: int, net: Any) -> Iterator[tuple[str, str, str]]:
    """Blocks are named by the side of their maps."""
    levels = len(net.body.encoder)
    found = []
    for level in range(levels):
        side = f"{size >> level}x{size >> level}"
        found += [(f"body.encoder.{level}.{i}", f"enc.{side}_block{i}") for i in range(len(net.body.encoder[level]))]
        found += [(f"body.down.{level - 1}", f"enc.{side}_down")] if level else []
        found += [(f"body.pyramid.{level - 1}.0", f"enc.{side}_aux_residual")] if level and len(net.body.pyramid) else []
        depth = levels - 1 - level
        found += [(f"body.decoder.{depth}.{i}", f"dec.{side}_block{i}") for i in range(len(net.body.decoder[depth]))]
        found += [(f"body.up.{depth - 1}", f"dec.{side}_up")] if depth else [(f"body.middle.{i}", f"dec.{side}_in{i}") for i in range(2)]
    for ours, theirs in found:
        yield ours, theirs, theirs


ADM = Layout(
    {"stem": "input_blocks.0.0", "noise.first": "time_embed.0", "noise.second": "time_embed.2", "label.rows.weight": "label_emb.weight",
     "norm": "out.0", "head": "out.2"},
    ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    ("norm", "qkv", "proj_out"),
    _adm_places,
)  # fmt: skip
DIFFUSERS = Layout(
    {"stem": "conv_in", "noise.first": "time_embedding.linear_1", "noise.second": "time_embedding.linear_2",
     "label.rows.weight": "class_embedding.weight", "norm": "conv_norm_out", "head": "conv_out"},
    ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    ("group_norm", ("to_q", "to_k", "to_v"), "to_out.0"),
    _diffusers_places,
)  # fmt: skip
