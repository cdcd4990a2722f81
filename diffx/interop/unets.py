"""Published U-Nets: guided-diffusion's, EDM's two, and diffusers' ``UNet2DModel``.

| layout | network | notes |
|---|---|---|
| guided-diffusion (ADM) | `UNet` | rows of q, k and v lie head by head (``order="legacy"``) or not (``"new"``): weights do not tell |
| EDM ``DhariwalUNet`` | `UNet` | without its augmentation label, which enters elsewhere |
| EDM ``SongUNet`` | `SongUNet` | DDPM++ and NCSN++ |
| EDM2 | `MPUNet` | without the head that estimates the loss, which sampling does not need |
| diffusers ``UNet2DModel`` | `UNet` | where both can be the same function, see `unet2d_options` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .. import rng
from ..networks.attention import SelfAttention
from ..networks.blocks import ConvResample
from ..networks.layers import Resample
from ..networks.mp_unet import MPUNet
from ..networks.song_unet import SongUNet
from ..networks.unet import UNet
from .edm2 import edm2_entries, edm2_network
from .unet2d import unet2d_options
from .unet_layouts import ADM, DIFFUSERS, Layout, edm, edm_network, edm_sides, taps
from .weights import Entry, Source, config_of, matched, named, read_weights, recognised, refuse

__all__ = ["entries_of_unet2d", "load_unet", "read_unet"]

EDM2 = "EDM2 U-Net"
NETWORKS: dict[str, type[nn.Module]] = {
    "EDM SongUNet": SongUNet, "EDM DhariwalUNet": UNet, EDM2: MPUNet, "guided-diffusion U-Net": UNet, "diffusers UNet2DModel": UNet,
}  # fmt: skip
RES = ("norm1", "conv1", "modulation", "norm2", "conv2", "skip")  # the parts of our residual block, in the order of `Layout.res`


def load_unet(net: nn.Module, source: Source, *, weights: Literal["ema", "raw"] = "ema",
              order: Literal["legacy", "new"] = "legacy") -> Any:  # fmt: skip
    """Fill published weights into a network of the same size.

    Args:
        net: a `UNet`, a `SongUNet` for EDM's network of that name, or an `MPUNet` for EDM2's.
        source: file, folder, mapping or module, see `read_weights`.
        weights: ``"ema"`` or ``"raw"``, where the file holds both.
        order: of the rows of q, k and v in guided-diffusion's layout: ``"new"`` for networks trained with ``use_new_attention_order``.

    Returns:
        ``net``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names are missing or left over or shapes differ, said in the names of the source; the weights are of another
            architecture, which is named; ``order`` is neither.
    """
    if order not in ("legacy", "new"):
        raise ValueError(f'order must be "legacy" or "new", got {order!r}')
    state, kind = _read(source, weights)
    _check_kind(kind, net)
    _check_filters(net, state)
    qkv = _qkv(kind, order)
    made = edm2_entries(net, edm_sides(state)[0], qkv) if kind == EDM2 else _entries(net, _layout(kind, state), qkv)
    matched(net, state, made, named(source), ignored=("resample_filter",))
    return net


def read_unet(source: Source, *, weights: Literal["ema", "raw"] = "ema", order: Literal["legacy", "new"] = "legacy", **options: Any) -> Any:
    """Build the network that published weights belong to, and fill them in.

    Of EDM's networks the sizes are read off names and shapes; of diffusers' they stand in the folder's ``config.json``; of
    guided-diffusion's they cannot be read off, so one of its published sizes is asked for (``size=64``, 128, 256 or 512).

    Args:
        source: see `load_unet`.
        weights: likewise.
        order: likewise.
        options: arguments of the network, before what is read off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `load_unet`; a configuration that no network of diffx computes; no size.
    """
    state, kind = _read(source, weights)
    with rng.forked():
        net = _build(kind, state, source, options)
    return load_unet(net, state if not _has_config(kind) else source, weights=weights, order=order)


def _has_config(kind: str) -> bool:
    return kind == "diffusers UNet2DModel"


def entries_of_unet2d(net: UNet) -> list[Entry]:
    """What each tensor of a network is in diffusers' ``UNet2DModel``."""
    return list(_entries(net, DIFFUSERS, _qkv("diffusers UNet2DModel", "new")))


def _read(source: Source, weights: Literal["ema", "raw"]) -> tuple[dict[str, Tensor], str]:
    """Weights with the prefixes of wrappers taken off, and what they are of."""
    state = {name: tensor for name, tensor in read_weights(source, weights).items() if not name.startswith("logvar_")}
    for prefix in ("module.", "model.", "unet."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state, recognised(state)


def _build(kind: str, state: Mapping[str, Tensor], source: Source, options: Mapping[str, Any]) -> nn.Module:
    if kind == "diffusers UNet2DModel":
        return UNet(**{**unet2d_options(config_of(source)), **options})
    if kind == EDM2:
        return edm2_network(state, options)
    if kind in ("EDM SongUNet", "EDM DhariwalUNet"):
        return edm_network(kind == "EDM SongUNet", state, options)
    if kind != "guided-diffusion U-Net":
        raise refuse("U-Net", kind, named(source))
    if "size" not in options:
        raise ValueError(
            "the sizes of a guided-diffusion U-Net cannot be read off its weights; give size=64, 128, 256 or 512, or load_unet"
        )
    labels = state.get("label_emb.weight")
    found = {"classes": 0 if labels is None else len(labels), "out_channels": len(state["out.2.weight"])}
    return UNet.adm(**{**found, **options})


def _check_kind(kind: str, net: nn.Module) -> None:
    if kind not in NETWORKS:
        raise refuse("U-Net", kind, "these weights")
    if not isinstance(net, NETWORKS[kind]):
        raise ValueError(f"weights of the {kind} belong into {NETWORKS[kind].__name__}, got {type(net).__name__}")


def _layout(kind: str, state: Mapping[str, Tensor]) -> Layout:
    if kind == "guided-diffusion U-Net":
        return ADM
    if kind == "diffusers UNet2DModel":
        return DIFFUSERS
    return edm(edm_sides(state)[0], kind == "EDM SongUNet")


def _check_filters(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """EDM keeps the low-pass filters of resampling beside the weights; they are none, but must be ours."""
    ours = next((step.kernel for step in net.modules() if isinstance(step, Resample)), None)
    ours = torch.full((2, 2), 0.25) if ours is None else ours
    for name, tensor in state.items():
        if name.endswith("resample_filter") and (tensor.shape[-2:] != ours.shape or not torch.allclose(tensor[0, 0].to(ours), ours)):
            raise ValueError(f"{name} is a filter {taps(tensor)}, that of the network is {taps(ours)}; build it with taps={taps(tensor)}")


def _qkv(kind: str, order: str) -> Callable[[Tensor, int], Tensor]:
    """Rows of their q, k and v to ours: first all of q, head after head."""
    if kind.startswith("EDM"):
        return lambda rows, heads: rearrange(rows, "(h d three) ... -> (three h d) ...", three=3, h=heads)
    if kind == "guided-diffusion U-Net" and order == "legacy":
        return lambda rows, heads: rearrange(rows, "(h three d) ... -> (three h d) ...", three=3, h=heads)
    return lambda rows, heads: rows


def _entries(net: Any, layout: Layout, qkv: Callable[[Tensor, int], Tensor]) -> Iterator[Entry]:
    """What each of our tensors is made of."""
    own = net.state_dict()
    for name in own:
        if name.endswith(".kernel"):
            yield Entry(name, (), partial(own.get, name))  # formulas, see `_check_filters`
    for ours, theirs in layout.whole.items():
        for kind in ("", ".weight", ".bias"):
            if f"{ours}{kind}" in own:
                yield Entry(f"{ours}{kind}", (f"{theirs}{kind}",), partial(_shaped, own[f"{ours}{kind}"]))
    for place, theirs, attends in layout.places(net):
        block: Any = net.get_submodule(place)
        if isinstance(block, (ConvResample, nn.Conv2d)):
            yield from _plain(own, f"{place}.conv" if isinstance(block, ConvResample) else place, theirs)
            continue
        res = place if hasattr(block, "conv1") else f"{place}.res"
        for part, name in zip(RES, layout.res, strict=True):
            yield from _plain(own, f"{res}.{part}", f"{theirs}.{name}")
        if (attention := getattr(block, "attention", None)) is not None:
            yield from _attention(own, f"{place}.attention", attention, attends, layout.attention, qkv)


def _attention(own: Mapping[str, Tensor], ours: str, layer: SelfAttention, theirs: str, names: tuple[Any, ...],
               qkv: Callable[[Tensor, int], Tensor]) -> Iterator[Entry]:  # fmt: skip
    norm, rows, out = names
    yield from _plain(own, f"{ours}.norm", f"{theirs}.{norm}")
    yield from _plain(own, f"{ours}.out", f"{theirs}.{out}")
    for kind in ("weight", "bias"):
        like = own[f"{ours}.qkv.{kind}"]
        if isinstance(rows, str):
            turned = partial(_turned, like, qkv, layer.heads)
            yield Entry(f"{ours}.qkv.{kind}", (f"{theirs}.{rows}.{kind}",), turned)
        else:
            yield Entry(f"{ours}.qkv.{kind}", tuple(f"{theirs}.{row}.{kind}" for row in rows), lambda *parts: torch.cat(parts))


def _turned(like: Tensor, qkv: Callable[[Tensor, int], Tensor], heads: int, rows: Tensor) -> Tensor:
    return _shaped(like, qkv(rows, heads))


def _plain(own: Mapping[str, Tensor], ours: str, theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        if f"{ours}.{kind}" in own:
            yield Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",), partial(_shaped, own[f"{ours}.{kind}"]))


def _shaped(like: Tensor, tensor: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix, and one-hot labels' matrix as rows; anything else as it is, to be compared later."""
    if like.ndim == 2 and tensor.ndim > 2 and tensor[0, 0].numel() == 1:
        tensor = tensor.flatten(1)
    return tensor.T if like.ndim == 2 and tensor.shape != like.shape and tensor.T.shape == like.shape else tensor
