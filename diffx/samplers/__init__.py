"""Samplers: one method, one file; the loop is in `Sampler`."""

from .ancestral import Ancestral
from .consistency import MultiStep
from .double_stride import DoubleStride
from .dpmpp_2m import DPMpp2M
from .dpmpp_2m_sde import DPMpp2MSDE
from .euler import Euler
from .heun import Heun
from .learned_ancestral import LearnedAncestral
from .lms import LMS
from .sampler import Sampler
from .scheduler import Scheduler

__all__ = [
    "LMS",
    "Ancestral",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DoubleStride",
    "Euler",
    "Heun",
    "LearnedAncestral",
    "MultiStep",
    "Sampler",
    "Scheduler",
]
