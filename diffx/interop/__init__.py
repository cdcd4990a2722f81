"""Published checkpoint layouts in: weights of other projects read into networks of diffx."""

from .dit import load_dit, read_dit
from .weights import fill, read_weights

__all__ = ["fill", "load_dit", "read_dit", "read_weights"]
