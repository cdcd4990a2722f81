"""Models that look at pictures and say what is in them, for `diffx.data.annotate` to ask once about a whole data set."""

from .captioning import Captioner
from .detection import Detector

__all__ = ["Captioner", "Detector"]
