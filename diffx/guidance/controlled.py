"""A denoiser whose network's attention is changed in every call, by what the call is about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..networks.attention import AttentionController
from ..networks.control import added_control

__all__ = ["ControlledDenoiser"]


class ControlledDenoiser(ABC):
    """Stands for a denoiser; all it does not do itself, the denoiser does.

    Where the attention is controlled from outside as well, that controller acts second.

    Args:
        denoiser: the denoiser.

    Attributes:
        unheard: what is raised, as a ValueError, when no layer of the network is one that the controller wants; None raises nothing.
    """

    unheard: str | None = None

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @abstractmethod
    def controller(self, x: Tensor, sigma: Tensor, cond: Cond) -> AttentionController | None:
        """What acts in this call, or None for a plain call."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        """The estimate of clean data, as `Denoiser.forward`."""
        return self.denoiser.assemble(x, sigma, self.raw(x, sigma, cond)[0])

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), **inputs: Any) -> tuple[Tensor, Any]:
        """The network's own output, as `Denoiser.raw`."""
        controller = self.controller(x, sigma, cond)
        if controller is None:
            return self.denoiser.raw(x, sigma, cond, **inputs)
        with added_control(controller) as chain:
            out = self.denoiser.raw(x, sigma, cond, **inputs)
        if self.unheard is not None and not chain.heard:
            raise ValueError(self.unheard)
        return out
