"""The one list of techniques that the contract tests run over: a name, a small module, a batch for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffx import EDM, Cond, Denoiser
from diffx.augment import AugmentPipe
from diffx.denoiser import EDMPrecond, FlowPrecond
from diffx.module import DiffusionModule
from diffx.networks import UNet
from diffx.samplers import Heun
from diffx.schedules import Flow
from diffx.weightings import LearnedUncertainty


@dataclass(frozen=True)
class Case:
    """``make()`` builds a small module, ``batch(n)`` data for it, ``cond(n)`` conditions to sample with."""

    make: Callable[[], DiffusionModule]
    batch: Callable[[int], dict[str, Any]]
    cond: Callable[[int], Cond]


def unet(classes: int = 4, **options: Any) -> UNet:
    return UNet(channels=1, classes=classes, width=16, mults=(1, 2), blocks=1, **options)


def edm(net: UNet | None = None, *, precond: Any = EDMPrecond(), **options: Any) -> EDM:
    return EDM(Denoiser(net or unet(), precond), shape=(1, 8, 8), sampler=Heun(4), **options)


def pictures(n: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n)
    return {"x": torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, "label": torch.arange(n) % 4}


def labels(n: int) -> Cond:
    return Cond(label=torch.arange(n) % 4)


TECHNIQUES = {
    "edm": Case(edm, pictures, labels),
    "edm_unconditional": Case(lambda: edm(unet(classes=0)), pictures, lambda n: Cond()),
    "edm_flow": Case(lambda: edm(precond=FlowPrecond(), schedule=Flow()), pictures, labels),
    "edm_uncertainty": Case(lambda: edm(uncertainty=LearnedUncertainty()), pictures, labels),
    "edm_augment": Case(lambda: edm(unet(vectors={"augment": 9}), augment=AugmentPipe()), pictures, labels),
}
