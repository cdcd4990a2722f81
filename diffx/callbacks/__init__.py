"""Callbacks for any Lightning trainer of a `DiffusionModule`."""

from ..averages import Constant, HalfLife, InversePower, Power, reconstruct
from ..files import latest
from .bands import NoiseBands
from .checkpoints import AtomicCheckpointIO, Checkpoints
from .ema import EMA
from .guard import Guard
from .preemption import Preempted, Preemption
from .progress import ProgressLine, progress
from .samples import SampleLogger
from .snapshots import PowerSnapshots
from .throughput import Throughput

__all__ = [
           "EMA",
           "AtomicCheckpointIO",
           "Checkpoints",
           "Constant",
           "Guard",
           "HalfLife",
           "InversePower",
           "NoiseBands",
           "Power",
           "PowerSnapshots",
           "Preempted",
           "Preemption",
           "ProgressLine",
           "SampleLogger",
           "Throughput",
           "latest",
           "progress",
           "reconstruct",
]  # fmt: skip
