"""`LowRank`: a network whose weights stay as they are but for a correction of low rank (Hu et al. 2021, LoRA, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..conditions import Cond
from ..recipes import recorded

__all__ = ["LowRank"]


@recorded
class LowRank(nn.Module):
    """A frozen network with the trained correction ``B A`` on the weights of its linear and convolutional layers.

    It takes and gives what the network takes and gives, and answers as it does until it is trained: B begins at zero. A convolution's
    weight counts as the matrix of its outputs by all that each of them sees.

    Args:
        net: the network; a copy of it is frozen.
        rank: of the corrections, at least 1; no more than a weight's own rank is used.
        layers: patterns of the names of corrected layers.
        scale: factor on the corrections.

    Raises:
        ValueError: a rank below 1, a pattern that fits no linear or convolutional layer.
    """

    own = ("*.parametrizations.weight.0.*",)
    """Patterns of the corrections' names, for `diffx.Experts` that share all but them."""

    def __init__(self, net: nn.Module, rank: int = 8, layers: Sequence[str] = ("*",), scale: float = 1.0) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.net = deepcopy(net).requires_grad_(False)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        found = {name: module for name, module in self.net.named_modules() if isinstance(module, kinds)}
        if silent := [pattern for pattern in layers if not any(fnmatchcase(name, pattern) for name in found)]:
            raise ValueError(f"no layer's name fits {silent[0]!r}; names look like {list(found)[:: max(1, len(found) // 5)]}")
        for name, module in found.items():
            if any(fnmatchcase(name, pattern) for pattern in layers):
                parametrize.register_parametrization(module, "weight", Correction(module.weight, rank, scale))

    def __getattr__(self, name: str) -> Any:
        """What the network says of itself: channels, conditions, divisor."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "net":
                raise
            return getattr(self.net, name)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None, **inputs: Any) -> Any:
        """As the network, with corrected weights."""
        return self.net(x, noise, cond, **inputs)

    def folded(self) -> nn.Module:
        """A plain network of the corrected weights, which is as fast as before and has the names of the original."""
        net = deepcopy(self.net)
        for module in net.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return net.requires_grad_(True)


class Correction(nn.Module):
    """``weight + scale * up @ down``, with ``down`` (rank, inputs) drawn and ``up`` (outputs, rank) zero."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.scale = scale
        self.down = nn.Parameter(torch.randn_like(weight.detach().flatten(1)[:rank]) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros_like(weight.detach().flatten(1)[:, :rank]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)
