"""The one list of samplers that the sampler tests run over: name -> ``make(steps, schedule)``."""

from __future__ import annotations

from functools import partial

from diffx.samplers import LMS, Ancestral, DoubleStride, DPMpp2M, DPMpp2MSDE, Euler, Heun

DETERMINISTIC = {
    "euler": Euler,
    "heun": Heun,
    "ralston": partial(Heun, alpha=2 / 3),
    "midpoint": partial(Heun, alpha=0.5),
    "ancestral_eta0": partial(Ancestral, eta=0.0),
    "dpmpp_2m": DPMpp2M,
    "dpmpp_2m_sde_eta0": partial(DPMpp2MSDE, eta=0.0),
    "lms": LMS,
}
STOCHASTIC = {
    "heun_churn": partial(Heun, churn=10.0),
    "ancestral": Ancestral,
    "ancestral_large": partial(Ancestral, variance=1.0),
    "ancestral_half": partial(Ancestral, eta=0.5, variance=0.5),
    "dpmpp_2m_sde": DPMpp2MSDE,
    "double_stride": DoubleStride,
}
SAMPLERS = {**DETERMINISTIC, **STOCHASTIC}
