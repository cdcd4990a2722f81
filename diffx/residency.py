"""Sampling with experts that do not fit on a device together: one of them is there, the others wait in host memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import files
from .experts import Experts

if TYPE_CHECKING:
    from .module import DiffusionModule

__all__ = ["Residents", "offloaded"]


class Residents:
    """Which experts lie on the device; made by `offloaded`.

    Attributes:
        loads: how often an expert was brought to the device, the first time included.
        peak: most bytes of experts that lay there at once.
    """

    def __init__(self, homes: Sequence[list[tuple[Tensor, Tensor]]], device: torch.device, ahead: bool) -> None:
        self.homes, self.device, self.ahead = homes, device, ahead
        self.loads, self.peak = 0, 0
        self._here: set[int] = set()
        self._stream = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None

    def enter(self, k: int) -> None:
        """Have expert ``k`` on the device, and with ``ahead`` its cleaner neighbour on the way; send the others home."""
        wanted = {k, k - 1} if self.ahead and k else {k}
        for other in self._here - wanted:
            self._send_home(other)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._load(k)
        if len(wanted) > 1:
            with torch.cuda.stream(self._stream) if self._stream is not None else ExitStack():
                self._load(k - 1)

    def _load(self, k: int) -> None:
        if k in self._here:
            return
        for tensor, home in self.homes[k]:
            copy = torch.empty_like(home, device=self.device)
            if self._stream is not None:
                copy.record_stream(torch.cuda.default_stream(self.device))
            tensor.data = copy.copy_(home, non_blocking=True)
        self._here.add(k)
        self.loads += 1
        self.peak = max(self.peak, sum(home.nbytes for j in self._here for _, home in self.homes[j]))

    def _send_home(self, k: int) -> None:
        for tensor, home in self.homes[k]:
            tensor.data = home
        self._here.discard(k)

    def leave(self) -> None:
        """Send all experts home."""
        for k in tuple(self._here):
            self._send_home(k)


@contextmanager
def offloaded(
    module: DiffusionModule, device: str | torch.device, *, folder: str | Path | None = None, ahead: bool = False
) -> Iterator[Residents]:
    """A block in which a module samples on ``device`` with one expert there at a time.

    All else of the module is moved there. An expert comes when it is called for and replaces the one before, so a walk down the noise
    levels moves each expert once, whatever the number of samples: draw them at once, and let `diffx.guidance.Split` say how many a network
    sees. What is registered does not change: parameters keep their names, and their values can be read at any time. They are not to be
    trained here.

    Afterwards the module lies where it did, its experts' own weights in host memory, or mapped from ``folder``.

    Args:
        module: its denoiser is an `Experts`.
        device: where it samples.
        folder: where the experts' weights are written, as ``expert_0.pt`` and so on in place of earlier ones, and then mapped into memory
            page by page, instead of being held; None = they are held in host memory, pinned if the device is a GPU.
        ahead: bring the next cleaner expert while one is at work; two are on the device then.

    Raises:
        TypeError: the denoiser is no `Experts`.
    """
    experts, device = module.denoiser, torch.device(device)
    if not isinstance(experts, Experts):
        raise TypeError(f"offloaded takes turns among diffx.Experts, got {type(experts).__name__}; a single network is moved by module.to")
    before, owned = module.device, own_tensors(experts.networks)
    homes = []
    for k, tensors in enumerate(owned):
        values = [tensor.data.cpu() for tensor in tensors]
        if folder is not None:
            values = _mapped(values, Path(folder) / f"expert_{k}.pt")
        elif device.type == "cuda":
            values = [value.pin_memory() for value in values]
        homes.append(list(zip(tensors, values, strict=True)))
    residents = Residents(homes, device, ahead)
    _move_rest(module, homes, device)
    hooks = [
        net.register_forward_pre_hook(lambda net, inputs, k=k: residents.enter(k)) for k, net in enumerate(experts.networks)
    ]  # fmt: skip
    try:
        yield residents
    finally:
        for hook in hooks:
            hook.remove()
        residents.leave()
        _move_rest(module, homes, before)


def own_tensors(nets: Sequence[nn.Module]) -> list[list[Tensor]]:
    """The parameters and buffers that each network has for itself."""
    every = [{id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())} for net in nets]
    shared = set.intersection(*(set(tensors) for tensors in every)) if len(every) > 1 else set()
    return [[tensor for key, tensor in tensors.items() if key not in shared] for tensors in every]


def _mapped(values: list[Tensor], path: Path) -> list[Tensor]:
    """The same values, written to a file and mapped from it; an earlier file of that name lives on for those who have it mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: torch.save(values, file))
    return torch.load(path, mmap=True, weights_only=True)


def _move_rest(module: DiffusionModule, homes: Sequence[list[tuple[Tensor, Tensor]]], device: torch.device) -> None:
    """Move all but the experts' own tensors, which are at home afterwards."""
    for tensor, home in chain.from_iterable(homes):
        tensor.data = home.new_empty(0)
    module.to(device)
    for tensor, home in chain.from_iterable(homes):
        tensor.data = home
