"""A denoiser whose answer is a given function: for tests that know the truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffx import Cond, Denoiser


class Known(Denoiser):
    """``factor * answer(x, sigma)`` with one trainable factor; remembers what it was asked."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        super().__init__(nn.Identity())
        self.answer, self.asked = answer, []
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        self.asked.append((x, sigma))
        return self.factor * self.answer(x, sigma)
