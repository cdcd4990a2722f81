"""A degradation of one's own, given as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..recipes import recorded
from .degradation import Degradation, Parameters

__all__ = ["Custom"]


@recorded
@dataclass(frozen=True)
class Custom(Degradation):
    """Any function ``D(x, level)`` with nothing random in it; for one with random parameters write a subclass of `Degradation`.

    Args:
        steps: number of levels.
        function: ``(x (B, *), level (B,) int64 in [0, steps]) -> (B, *)`` with ``D(x, 0) = x``. It need not be differentiable. Recipes
            name a function of a module; of a lambda they cannot, so it is handed over again when a checkpoint is loaded.

    Raises:
        TypeError: no function was given.
    """

    function: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"function must be callable as D(x, level), got {self.function!r}")

    def apply(self, x: Tensor, level: Tensor, parameters: Parameters) -> Tensor:
        """Call the function."""
        assert self.function is not None
        return self.function(x, level)
