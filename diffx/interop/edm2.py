"""How EDM2 names the parts of its magnitude-preserving U-Net: blocks by the side of their maps, as EDM's earlier networks do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..networks.mp_unet import MPUNet
from .unet_layouts import edm_places, edm_sides
from .weights import Entry

__all__ = ["edm2_entries", "edm2_network"]

WHOLE = {"fourier.frequencies": "emb_fourier.freqs", "fourier.phases": "emb_fourier.phases", "noise.weight": "emb_noise.weight",
         "label.weight": "emb_label.weight", "head.weight": "out_conv.weight", "gain": "out_gain"}  # fmt: skip
BLOCK = {"gain": "emb_gain", "conv1.weight": "conv_res0.weight", "modulation.weight": "emb_linear.weight",
         "conv2.weight": "conv_res1.weight", "skip.weight": "conv_skip.weight", "attention.out.weight": "attn_proj.weight"}  # fmt: skip


def edm2_network(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> MPUNet:
    """A fresh network of the sizes that names and shapes of EDM2's weights tell; ``options`` go before them."""
    sides = edm_sides(state)
    wide = [len(state[f"enc.{side}x{side}_block0.conv_res0.weight"]) for side in sides]
    label = state.get("emb_label.weight")
    found = {
        "channels": state[f"enc.{sides[0]}x{sides[0]}_conv.weight"].shape[1] - 1,
        "width": wide[0],
        "mults": tuple(width // wide[0] for width in wide),
        "blocks": sum(name.startswith(f"enc.{sides[0]}x{sides[0]}_block") and name.endswith("conv_res0.weight") for name in state),
        "attention_levels": tuple(i for i, side in enumerate(sides) if f"enc.{side}x{side}_block0.attn_qkv.weight" in state),
        "classes": 0 if label is None else label.shape[1],
    }
    return MPUNet(**{**found, **options})


def edm2_entries(net: Any, size: int, qkv: Callable[[Tensor, int], Tensor]) -> Iterator[Entry]:
    """What each tensor of a network for pictures of side ``size`` is made of; ``qkv`` turns rows of q, k and v to ours."""
    own = net.state_dict()

    def entry(ours: str, theirs: str) -> Entry:
        return Entry(ours, (theirs,), lambda tensor: tensor.reshape(own[ours].shape) if tensor.numel() == own[ours].numel() else tensor)

    yield entry("stem.weight", f"enc.{size}x{size}_conv.weight")
    yield from (entry(ours, theirs) for ours, theirs in WHOLE.items() if ours in own)
    for place, theirs, _ in edm_places(size, net):
        yield from (entry(f"{place}.{part}", f"{theirs}.{name}") for part, name in BLOCK.items() if f"{place}.{part}" in own)
        rows = f"{place}.attention.qkv.weight"
        if rows in own:
            heads = net.get_submodule(f"{place}.attention").heads
            yield Entry(rows, (f"{theirs}.attn_qkv.weight",), lambda tensor, heads=heads: qkv(tensor.flatten(1), heads))
