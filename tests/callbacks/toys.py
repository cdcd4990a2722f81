"""A technique of a few weights with everything an average can trip over, data for it, and trainers that count in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn

from diffx.conditions import Cond
from diffx.data import Arrays
from diffx.module import DiffusionModule

SIDE, CLASSES = 4, 3


class ToyNet(nn.Module):
    """Class-conditional, with dropout and (with ``counts``) an integer buffer that counts and a float buffer that drifts."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts = counts
        self.embed = nn.Embedding(CLASSES, 8)
        self.first = nn.Linear(SIDE**2, 8)
        self.last = nn.Linear(8, SIDE**2)
        self.drop = nn.Dropout(0.1)
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("drift", torch.zeros(2))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if self.training and self.counts:
            self.calls += 1
            self.drift += 0.1
        return self.last(self.drop(self.first(x.flatten(1)).tanh() + self.embed(label))).view_as(x)


class Toy(DiffusionModule):
    """Predicts the picture from picture plus noise; ``teacher`` is frozen, ``side`` trained but not averaged."""

    trained = ("denoiser", "side")

    def __init__(self, teacher: int = 0, counts: bool = True, **options: Any) -> None:
        super().__init__(shape=(1, SIDE, SIDE), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2), **options)
        generator = torch.Generator().manual_seed(5)
        self.denoiser = ToyNet(counts)
        self.side = nn.Parameter(torch.ones(3))
        self.teacher = nn.Linear(teacher, teacher).requires_grad_(False) if teacher else None
        for p in self.denoiser.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3

    def loss(self, batch: Any, u: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x, cond = self.inputs(batch)
        u = self.positions(len(x)) if u is None else u
        error = self.denoiser(x + u.view(-1, 1, 1, 1) * torch.randn_like(x), cond.label) - x
        return {"loss": error.square().flatten(1).mean(1) + self.side.square().sum()}

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: Any = 1.0, sampler: Any = None, seed: int | None = None,
               shape: Any = None, chunk: int | None = None) -> torch.Tensor:  # fmt: skip
        def draw(size, cond, generators):
            noise = torch.stack([torch.randn(size[1:], generator=g) for g in generators])
            return self.denoiser(noise.to(self.device), cond.label)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)


def toy_data(batch_size: int = 4, val: float = 0.25) -> Arrays:
    pixels = np.random.default_rng(0).integers(0, 255, (48, SIDE, SIDE)).astype(np.uint8)
    return Arrays({"images": pixels, "labels": np.arange(48) % CLASSES}, batch_size, labels="labels", val=val, classes=CLASSES)


def trainer(folder: Path, steps: int, callbacks: Any = (), *, logger: Any = False, **options: Any) -> L.Trainer:
    callbacks = list(callbacks)
    saves = any(type(callback).__name__ == "Checkpoints" for callback in callbacks)
    options = {"val_check_interval": 100_000, "num_sanity_val_steps": 0, "enable_progress_bar": False, **options}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=-1, max_steps=steps, callbacks=callbacks, logger=logger,
                     default_root_dir=folder, enable_checkpointing=saves, enable_model_summary=False, check_val_every_n_epoch=None,
                     **options)  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Bitwise equality of nested states."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right
