"""diffx: train, distil, cascade, edit and scale diffusion models on PyTorch Lightning.

What is typed often stands here. Each name is imported from its own room when it is asked for, so that ``import diffx`` itself imports
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .callbacks import EMA, Checkpoints, NoiseBands, SampleLogger, Throughput
    from .conditions import Cond
    from .data import Arrays, Digits, ImageFolder
    from .denoiser import Denoiser, EDMPrecond, EpsPrecond, FlowPrecond, VPrecond, X0Precond
    from .module import DiffusionModule
    from .networks import UNet
    from .recipes.load import load
    from .samplers import LMS, Ancestral, DPMpp2M, DPMpp2MSDE, Euler, Heun, Scheduler
    from .schedules import DDPM, VP, Cosine, Flow, Karras, LogNormal, Shifted, Sigmoid
    from .sharding import FSDP
    from .techniques import EDM

_ROOMS = {
    "callbacks": "EMA Checkpoints NoiseBands SampleLogger Throughput",
    "conditions": "Cond",
    "data": "Arrays Digits ImageFolder",
    "denoiser": "Denoiser EDMPrecond EpsPrecond FlowPrecond VPrecond X0Precond",
    "module": "DiffusionModule",
    "networks": "UNet",
    "recipes.load": "load",
    "samplers": "LMS Ancestral DPMpp2M DPMpp2MSDE Euler Heun Scheduler",
    "sharding": "FSDP",
    "schedules": "DDPM VP Cosine Flow Karras LogNormal Shifted Sigmoid",
    "techniques": "EDM",
}
_ROOM = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = [
    "DDPM",
    "EDM",
    "EMA",
    "FSDP",
    "LMS",
    "VP",
    "Ancestral",
    "Arrays",
    "Checkpoints",
    "Cond",
    "Cosine",
    "DPMpp2M",
    "DPMpp2MSDE",
    "Denoiser",
    "DiffusionModule",
    "Digits",
    "EDMPrecond",
    "EpsPrecond",
    "Euler",
    "Flow",
    "FlowPrecond",
    "Heun",
    "ImageFolder",
    "Karras",
    "LogNormal",
    "NoiseBands",
    "SampleLogger",
    "Scheduler",
    "Shifted",
    "Sigmoid",
    "Throughput",
    "UNet",
    "VPrecond",
    "X0Precond",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    # Nothing is kept in globals(): recipes name a class by the room that exports it, whatever was asked for here before.
    if name not in _ROOM:
        raise AttributeError(f"module 'diffx' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diffx.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
