"""Guidance: functions from one `Denoise` to another, so that samplers never know of it.

A *guide* is called with ``(denoiser, cond)`` and returns a `Denoise`. Scales are ``uncond + scale * (cond - uncond)``: 1 is off, 0 is
unconditional. Guides nest in the order in which they act, innermost first: scale (by level, `Interval`), `Rescale`, `DynamicThreshold`,
e.g. ``DynamicThreshold(Rescale(Interval(3.0, 0.3, 3.0)))``.

A `Carry` holds what a network hands to its own next call (RIN's latents). It belongs to one run of a sampler: both branches of a guide read
the same carry, then that of the conditional branch is kept.
"""

from .binding import Carry, Guidance, Guide, Plain, bind, carried
from .channels import FirstChannels
from .contrast import Autoguidance, ClassifierFree, Interval, PerBand, PictureAndText, Piecewise, as_guide, classifier_free
from .controlled import ControlledDenoiser
from .correction import DynamicThreshold, Rescale, StaticThreshold
from .keywords import KeyWordBoost
from .logits import Rising, guided_logits
from .painting import PaintedSpan, PaintWithWords, painted
from .reconstruction import reconstruction_guided, replaced
from .split import Split
from .tiled import Tiled

__all__ = [
    "Autoguidance", "Carry", "ClassifierFree", "ControlledDenoiser", "DynamicThreshold", "FirstChannels", "Guidance", "Guide", "Interval",
    "KeyWordBoost", "PaintWithWords", "PaintedSpan", "PerBand", "PictureAndText", "Piecewise", "Plain", "Rescale", "Rising", "Split",
    "StaticThreshold", "Tiled", "as_guide", "bind", "carried", "classifier_free", "guided_logits", "painted", "reconstruction_guided",
    "replaced",
]  # fmt: skip
