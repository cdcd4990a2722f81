"""A chain of six spins whose joint law is known exactly: what the decoding of tokens is measured on."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

STATES = torch.tensor(list(itertools.product((0, 1), repeat=6)))
COUPLING = 1.2


def chain_law() -> Tensor:
    """Joint law (64,) of a chain of six spins with coupling J."""
    spins = 2 * STATES - 1
    return (COUPLING * (spins[:, :-1] * spins[:, 1:]).sum(1)).double().softmax(0)


def frequencies(ids: Tensor) -> Tensor:
    """Share (64,) of every state among ids (N, 6)."""
    return torch.bincount((ids * 2 ** torch.arange(5, -1, -1)).sum(1), minlength=64).double() / len(ids)


def logits_of(weights: Tensor) -> Tensor:
    """Logits (B, 6, 2) of the single tokens under weights (B, 64) of the states, which need not be normalised."""
    one = weights / weights.sum(1, keepdim=True) @ STATES.double()
    return torch.stack([1 - one, one], -1).clamp_min(1e-20).log()
