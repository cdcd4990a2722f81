"""Published weights of DiT: the layout of its own checkpoints, and that of diffusers' ``DiTTransformer2DModel``.

| layout | how it is read |
|---|---|
| raw state dict | as it is; the table of positions is compared and left out |
| file of the DiT and SiT trainers: ``ema``, ``model``, ``opt``, ``args`` | its ``ema`` or ``model`` |
| diffusers | renamed; q, k and v are joined, the embedders that it repeats in every block must agree and are kept once |

A network read from diffusers' layout computes what the published one does. diffusers' own class does not: the frequencies of its noise
sinusoid are 10,000^(-j/127) where the published ones are 10,000^(-j/128), so the two agree at timestep 0 only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .. import rng
from ..networks.dit import DIT_SIZES, DiT
from .weights import Source, fill, named, read_weights, recognised, refuse

__all__ = ["load_dit", "read_dit"]

POSITIONS = "pos_embed"
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
WHOLE = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": POSITIONS,
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
IN_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
REPEATED = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}


def load_dit(net: DiT, source: Source, *, weights: Literal["ema", "raw"] = "ema") -> DiT:
    """Fill published weights into a network.

    Args:
        net: of the same size; a table of positions for another grid than the checkpoint's is no hindrance.
        source: file, folder, mapping or module, see `read_weights`.
        weights: ``"ema"`` or ``"raw"``, where the file holds both.

    Returns:
        ``net``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the layout is unknown, names or shapes do not fit, or positions are laid out differently.
    """
    state = _canonical(read_weights(source, weights))
    _check_positions(net, state.pop(POSITIONS, None))
    fill(net, state, named(source))
    return net


def read_dit(source: Source, *, weights: Literal["ema", "raw"] = "ema", **options: Any) -> DiT:
    """Build the network that published weights belong to, and fill them in.

    Width, depth, patch, channels and classes are read off the shapes, ``size`` off the table of positions (of a square grid) and ``heads``
    off the width where it is a published one. ``options`` are those of `DiT` and go before what is read off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `load_dit`, or ``size`` or ``heads`` cannot be read off and must be given.
    """
    state = _canonical(read_weights(source, weights))
    with rng.forked():
        net = DiT(**{**_architecture(state, options), **options})
    return load_dit(net, state)


def _architecture(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    lacking = [name for name in ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight") if name not in state]
    if lacking:
        raise ValueError(f"these are no complete weights of a DiT: {lacking[0]} is missing")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    labels, positions = state.get("y_embedder.embedding_table.weight"), state.get(POSITIONS)
    found: dict[str, Any] = {
        "channels": channels,
        "out_channels": len(state["final_layer.linear.weight"]) // patch**2,
        "patch": patch,
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / width,
        "classes": 0 if labels is None else len(labels) - 1,
    }
    heads = {published: count for published, _, count in DIT_SIZES.values()}
    side = 0 if positions is None else round(positions.shape[-2] ** 0.5)
    if width in heads:
        found["heads"] = heads[width]
    if positions is not None and side**2 == positions.shape[-2]:
        found["size"] = side * patch
    if must := [name for name in ("heads", "size") if name not in {**found, **options}]:
        raise ValueError(
            f"{' and '.join(must)} cannot be read off these weights (width {width}); give {', '.join(f'{m}=...' for m in must)}"
        )
    return found


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as published."""
    if "x_embedder.proj.weight" in state:
        return dict(state)
    if any(BLOCK.match(name) for name in state):
        return _from_diffusers(state)
    if kind := recognised(state):
        raise refuse("DiT", kind, "these weights")
    raise ValueError(f"neither the published layout of DiT nor that of diffusers; the first names are {list(state)[:3]}")


def _from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename; what is not known keeps its name, so that it is reported."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if match := BLOCK.fullmatch(stem):
            index, part = match.groups()
            if part in REPEATED:
                target = f"{REPEATED[part]}.{kind}"
                if target in renamed and not torch.equal(renamed[target], tensor):
                    raise ValueError(
                        f"the blocks hold different {part}.{kind}: DiT has one for all, so these weights were trained as another network"
                    )
                renamed[target] = tensor
            elif part == "attn1.to_q":
                parts = [state.get(f"transformer_blocks.{index}.attn1.to_{letter}.{kind}") for letter in "qkv"]
                if all(p is not None for p in parts):
                    renamed[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
            elif part not in ("attn1.to_k", "attn1.to_v"):
                renamed[f"blocks.{index}.{IN_BLOCK[part]}.{kind}" if part in IN_BLOCK else name] = tensor
        else:
            renamed[WHOLE[name] if name in WHOLE else f"{WHOLE[stem]}.{kind}" if stem in WHOLE else name] = tensor
    return renamed


def _check_positions(net: DiT, table: Tensor | None) -> None:
    """Compare tables of the same grid; weights for another grid bring a table that the network does not need."""
    own = net.pos_embed
    if table is None or table.shape != own.shape:
        return
    gap = (table.to(own) - own).abs().max().item()
    if gap > max(1e-6, torch.finfo(table.dtype).eps):
        raise ValueError(f"positions are laid out differently: the table of the weights is up to {gap:.2g} away from the network's")
