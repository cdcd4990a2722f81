"""Schedules: rising maps from a position ``u`` in [0, 1] to a noise level ``sigma``.

Training draws ``u``, samplers walk it, experts own a band of it, progressive distillation halves a grid of it.
"""

from .bands import Band, Bands
from .bands import node as node
from .gamma import GammaCosine, Sigmoid
from .process import VP, Cosine, Flow, Tangent
from .schedule import Schedule
from .shifted import Interpolated, Shifted
from .sigma import Karras, LogNormal, LogUniform
from .table import DDPM, DDPMCosine, Levels, Table

__all__ = [
    "DDPM", "VP", "Band", "Bands", "Cosine", "DDPMCosine", "Flow", "GammaCosine", "Interpolated", "Karras", "Levels", "LogNormal",
    "LogUniform", "Schedule", "Shifted", "Sigmoid", "Table", "Tangent",
]  # fmt: skip
