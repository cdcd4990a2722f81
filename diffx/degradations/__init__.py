"""Degradations: data made worse in steps, for models that learn the way back (cold diffusion).

A `Degradation` is a function ``(x, level, parameters) -> x`` with levels 0, which changes nothing, to ``steps``. The walks lead back.
`Blind` has no levels: it spoils the small pictures that super-resolution learns from.
"""

from .blind import Blind
from .blur import Blur
from .custom import Custom
from .degradation import Degradation, check_degradation
from .fade import Desaturate, Fade
from .mask import GaussianMask
from .noise import HotNoise
from .pixelate import Pixelate
from .start import GaussianStart
from .walks import Improved, Naive, OneShot, Walk

__all__ = [
    "Blind", "Blur", "Custom", "Degradation", "Desaturate", "Fade", "GaussianMask", "GaussianStart", "HotNoise", "Improved", "Naive",
    "OneShot", "Pixelate", "Walk", "check_degradation",
]  # fmt: skip
