"""Samplers: one method, one file; the loop is in `Sampler`."""

from .ancestral import Ancestral
from .dpmpp_2m import DPMpp2M
from .dpmpp_2m_sde import DPMpp2MSDE
from .euler import Euler
from .heun import Heun
from .lms import LMS
from .sampler import Sampler
from .scheduler import Scheduler

__all__ = ["LMS", "Ancestral", "DPMpp2M", "DPMpp2MSDE", "Euler", "Heun", "Sampler", "Scheduler"]
