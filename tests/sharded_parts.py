"""What the tests of several ranks train: any case of the lists, on a global batch of four that is dealt out to ranks and micro-batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from network_list import NETWORKS
from technique_list import TECHNIQUES
from torch import Tensor, nn

from diffx import rng
from diffx.callbacks import EMA, Checkpoints
from diffx.dtensors import gathered
from diffx.module import DiffusionModule

GLOBAL = 4
SGD = partial(torch.optim.SGD, lr=0.1)


class Regression(DiffusionModule):
    """Any network of the list: everything it gives shall be small, whatever it is told."""

    def __init__(self, name: str, **options: Any) -> None:
        self.case = NETWORKS[name]
        super().__init__(shape=self.case.shape, drop=0.0, **options)
        self.denoiser = self.case.make()

    def check_batch(self, batch: Any) -> None:
        """Any numbers."""

    def loss(self, batch: Any, u: Tensor | None = None) -> dict[str, Tensor]:
        x = batch["x"]
        u = self.positions(len(x)) if u is None else u
        noisy = x + u.view(-1, *[1] * (x.ndim - 1)) * torch.randn_like(x)
        out = self.denoiser(noisy, u, batch["cond"], **({"carry": batch["carry"]} if "carry" in batch else {}))
        parts = out if isinstance(out, tuple) else (out,)
        return {"loss": torch.stack([part.float().square().flatten(1).mean(1) for part in parts]).sum(0)}

    def sample(self, n: int, cond: Any = None, **options: Any) -> Tensor:
        raise NotImplementedError


def awake(module: nn.Module) -> nn.Module:
    """Weights that are away from zero, the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def network(name: str, **options: Any) -> tuple[DiffusionModule, dict[str, Any]]:
    """A module around one network, and the global batch for it."""
    rng.seed_default(0, "weights")
    module = awake(Regression(name, **{"optimizer": SGD, **options}))
    case = NETWORKS[name]
    batch = {"x": case.data(GLOBAL)[0], "cond": case.cond(module.denoiser, GLOBAL), **case.handed(GLOBAL)}
    return module, batch


def technique(name: str, **attributes: Any) -> tuple[DiffusionModule, dict[str, Any]]:
    """A technique of the list, and the global batch for it."""
    rng.seed_default(0, "weights")
    module = awake(TECHNIQUES[name].make())
    for key, value in {"optimizer": SGD, **attributes}.items():
        setattr(module, key, value)
    return module, TECHNIQUES[name].batch(GLOBAL)


def rows(batch: dict[str, Any], at: slice) -> dict[str, Any]:
    return {name: value.rows(at) if hasattr(value, "rows") else value[at] for name, value in batch.items()}


def trained(made: tuple[DiffusionModule, dict[str, Any]], folder: Path, steps: int = 2, *, strategy: Any = "auto", world: int = 1,
            accumulate: int = 1, resume: Any = None, callbacks: Any = (), **options: Any) -> dict[str, Any]:  # fmt: skip
    """Train on this rank; what a checkpoint would hold of it, whole."""
    module, batch = made
    rank, size = int(os.environ["LOCAL_RANK"]) if world > 1 else 0, GLOBAL // (world * accumulate)
    micro = [rows(batch, slice(j * size, (j + 1) * size)) for j in (k * world + rank for k in range(accumulate))]
    loader = torch.utils.data.DataLoader(micro * steps, batch_size=None)
    trainer = L.Trainer(accelerator="cpu", devices=world, strategy=strategy, max_steps=steps, max_epochs=-1, default_root_dir=folder,
                        accumulate_grad_batches=accumulate, logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks), callbacks=list(callbacks),
                        use_distributed_sampler=False, **options)  # fmt: skip
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    state = {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict(), "ema": ema.state_dict() if ema else None}
    return gathered(state, keep=True)


def two_micro_batches(make: Callable[[], Any], folder: Path, **options: Any) -> dict[str, Any]:
    """One process with the whole global batch in two micro-batches: what two ranks must equal."""
    return trained(make(), folder, accumulate=2, **options)


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest difference of two sets of weights."""
    assert left.keys() == right.keys()
    return max(float((value.double() - right[name].double()).abs().max()) for name, value in left.items() if value.numel())
