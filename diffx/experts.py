"""`Experts`: one denoiser made of several networks, each for its own band of noise (Balaji et al. 2022, eDiff-I, arXiv:2211.01324)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import Cond
from .denoiser import Denoiser, EDMPrecond, Scales
from .dtensors import is_sharded
from .recipes import recorded
from .schedules import Bands

__all__ = ["Experts", "Nets", "branch"]


class Nets(nn.ModuleList):
    """The networks of an ensemble, which take the same input and conditions. What one says of itself holds for all."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not name.isidentifier() or not len(self):
                raise
            return getattr(self[0], name)


@recorded
class Experts(Denoiser):
    """A `Denoiser` that asks, for every sample of every evaluation, the expert in whose band its noise level lies.

    Samplers, guides and distillation see a denoiser like any other. Routing is by the level of the evaluation, not of the sampler's step:
    Heun's second evaluation and churned levels may belong to another expert than the step's first.

    Args:
        net: the trunk; every expert begins as a copy of it, so a fresh ensemble answers as the trunk does.
        bands: who owns which levels, the cleanest first.
        precond: as in `Denoiser`.
        own: patterns of the names of parameters that every expert has for itself; all others, and all buffers, are one and the same in all
            experts. ``["*"]`` gives whole networks, ``["*.mlp.*"]`` the perceptrons of a DiT (ERNIE-ViLG 2.0, arXiv:2210.15257).

    Raises:
        ValueError: a pattern that fits no parameter.
    """

    net: Nets

    def __init__(
        self, net: nn.Module, bands: Bands, precond: Callable[[Tensor], Scales] = EDMPrecond(), *, own: Sequence[str] = ("*",)
    ) -> None:
        super().__init__(Nets(branch(net, len(bands), own)), precond)
        self.bands = bands

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The experts."""
        return tuple(self.net)

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), **inputs: Any) -> tuple[Tensor, Any]:
        """As in `Denoiser`; samples of different bands go to their experts in groups.

        Raises:
            ValueError: ``sigma`` is not (B,); samples of several bands with further ``inputs`` or outputs, which cannot be parted.
        """
        sigma = self._checked(x, sigma)
        band = self.bands.index(sigma)
        present = self._entered(band)
        if len(present) == 1:
            return self._answer(self.net[present[0]], x, sigma, cond, inputs)
        if inputs:
            raise ValueError(f"the levels lie in {len(present)} bands, but {sorted(inputs)} can be handed to one expert only")
        parts = []
        for k in present:
            rows = (band == k).nonzero()[:, 0]
            asked = rows if len(rows) else rows.new_zeros(1)  # a sharded expert is entered by all ranks at once
            out, extra = self._answer(self.net[k], x[asked], sigma[asked], _rows(cond, asked), {})
            if extra is not None:
                raise ValueError(f"the levels lie in {len(present)} bands, and what networks hand on cannot be joined over experts")
            parts.append((rows, out[: len(rows)]))
        whole = x.new_empty((len(x), *parts[0][1].shape[1:]), dtype=parts[0][1].dtype)
        for rows, out in parts:
            whole = whole.index_copy(0, rows, out)
        return whole, None

    def _entered(self, band: Tensor) -> list[int]:
        """Whose turn it is: the experts of the samples' bands, on any rank where the experts are sharded."""
        if not is_sharded(next(self.net.parameters())):
            return band.unique().tolist()
        present = torch.zeros(len(self.bands), device=band.device).index_fill_(0, band, 1)
        torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
        return present.nonzero()[:, 0].tolist()


def branch(net: nn.Module, count: int, own: Sequence[str] = ("*",)) -> list[nn.Module]:
    """``net`` and ``count - 1`` copies of it that share every parameter and buffer whose name fits none of the patterns ``own``.

    Raises:
        ValueError: a pattern that fits no parameter.
    """
    names = [name for name, _ in net.named_parameters()]
    if silent := [pattern for pattern in own if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ValueError(f"no parameter's name fits {silent[0]!r}; names look like {names[:: max(1, len(names) // 5)]}")
    single = [p for name, p in net.named_parameters() if any(fnmatchcase(name, pattern) for pattern in own)]
    mine = {id(p) for p in single}
    shared: dict[int, Any] = {id(p): p for p in (*net.parameters(), *net.buffers()) if id(p) not in mine}
    return [net, *(copy.deepcopy(net, dict(shared)) for _ in range(count - 1))]


def _rows(cond: Cond, rows: Tensor) -> Cond:
    """The conditions of some samples."""
    if not len(cond):
        return cond
    spans = None if cond.spans is None else [cond.spans[row] for row in rows.tolist()]
    return replace(cond.map(lambda t: t[rows]), spans=spans)
