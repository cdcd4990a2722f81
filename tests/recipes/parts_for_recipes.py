"""Stand-ins that the tests of recipes build: every form a target can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from diffx.recipes import recorded


@recorded
class Leaf:
    def __init__(self, size: int, rate: float = 0.5, *, name: str | None = None, kind: Literal["a", "b"] = "a") -> None:
        if size < 0:
            raise ValueError(f"size must be positive, got {size}")
        self.size, self.rate, self.name, self.kind = size, rate, name, kind


class Heir(Leaf):
    """Inherits its constructor."""


class Passing(Leaf):
    def __init__(self, extra: bool = False, **options: Any) -> None:
        super().__init__(size=1, **options)
        self.extra = extra


@recorded
@dataclass(frozen=True)
class Frozen:
    level: float = 1.0
    sizes: Sequence[int] = (1, 2)
    table: dict = field(default_factory=dict)
    hidden: int = field(default=0, init=False)


@recorded
class Many:
    def __init__(self, first: int, *rest: int, last: int = 0) -> None:
        self.all = (first, *rest, last)


@recorded
class Tree:
    def __init__(self, left: Any, right: Any = None, **options: Any) -> None:
        self.left, self.right, self.options = left, right, options


class Net(nn.Module):
    """Keeps no recipe of itself."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


def double(x: float, by: float = 2.0) -> float:
    return x * by
