"""Which configurations of diffusers' ``UNet2DModel`` a `UNet` computes, and with which arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..networks.layers import Norm
from ..networks.unet import UNet

__all__ = ["unet2d_options"]

DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "resnet")}
UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resnet")}
FIXED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "center_input_sample": (False, None),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "add_attention": (True,),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


def unet2d_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the `UNet` that is the same function as a ``UNet2DModel``.

    The two agree where diffusers' normalisations have the groups that ours have, which is 32 at 128 channels and more; where blocks attend
    alike on the way down and up; where one kind of resampling is used throughout; and where the options have the values of `FIXED`.

    Args:
        config: of the model, as in its ``config.json``; what is missing has diffusers' default.

    Raises:
        ValueError: no `UNet` computes this; says all that stands against it.
    """
    asked = {**_defaults(), **config}
    problems = [f"{name} = {asked[name]!r} (only {' or '.join(map(repr, known))})" for name, known in FIXED.items()
                if asked[name] not in known]  # fmt: skip
    widths, types = list(asked["block_out_channels"]), (list(asked["down_block_types"]), list(asked["up_block_types"]))
    if unknown := [name for name in types[0] if name not in DOWN] + [name for name in types[1] if name not in UP]:
        raise ValueError(f"no UNet of diffx computes this UNet2DModel: blocks of type {unknown[0]}")
    down, up = [DOWN[name] for name in types[0]], [UP[name] for name in types[1]]
    if [attends for attends, _ in down] != [attends for attends, _ in up][::-1]:
        problems.append(f"blocks attend differently on the way down and up: {types[0]}, {types[1]}")
    steps = {kind or asked["downsample_type"] for _, kind in down[:-1]} | {kind or asked["upsample_type"] for _, kind in up[:-1]}
    if len(steps) > 1 or not steps <= {"conv", "resnet"}:
        problems.append(f"resampling of several kinds: {sorted(map(str, steps))}")
    if "conv" in steps and asked["downsample_padding"] != 1:
        problems.append(f"downsample_padding = {asked['downsample_padding']} (only 1)")
    groups = asked["attn_norm_num_groups"] or (asked["norm_num_groups"] if asked["resnet_time_scale_shift"] == "default" else None)
    if groups != asked["norm_num_groups"]:
        problems.append(f"attn_norm_num_groups = {asked['attn_norm_num_groups']} (only {asked['norm_num_groups']}, as elsewhere)")
    emb = asked["time_embedding_dim"] or 4 * widths[0]
    if emb % widths[0]:
        problems.append(f"time_embedding_dim = {emb} is no multiple of {widths[0]}")
    options: dict[str, Any] = {
        "channels": asked["in_channels"],
        "out_channels": asked["out_channels"],
        "width": widths[0],
        "mults": [_multiple(width, widths[0]) for width in widths],
        "blocks": asked["layers_per_block"],
        "attention_levels": [level for level, (attends, _) in enumerate(down) if attends],
        "classes": asked["num_class_embeds"] or 0,
        **({"heads": 1} if asked["attention_head_dim"] is None else {"head_dim": asked["attention_head_dim"]}),
        "dropout": asked["dropout"],
        "dropout_of": "elements",
        "emb_mult": emb // widths[0],
        "scale_shift": asked["resnet_time_scale_shift"] == "scale_shift",
        "resample": "block" if steps == {"resnet"} else "conv",
    }
    problems = problems or _groups(options, asked["norm_num_groups"])
    if problems:
        raise ValueError(f"no UNet of diffx computes this UNet2DModel: {'; '.join(problems)}")
    return options


def _defaults() -> dict[str, Any]:
    import inspect

    from diffusers import UNet2DModel

    return {name: p.default for name, p in inspect.signature(UNet2DModel.__init__).parameters.items() if p.default is not p.empty}


def _multiple(width: int, unit: int) -> float:
    """The factor that `UNet` turns back into ``width``, which it cuts off to a whole number."""
    factor = width / unit
    return factor if int(factor * unit) == width else math.nextafter(factor, math.inf)


def _groups(options: Mapping[str, Any], groups: int) -> list[str]:
    with torch.device("meta"):
        net = UNet(**options)
    wrong = sorted({(m.num_channels, m.num_groups) for m in net.modules() if isinstance(m, Norm) and m.num_groups != groups})
    return [f"norm_num_groups = {groups}, but {channels} channels are normalised in {own} groups here" for channels, own in wrong[:1]]
