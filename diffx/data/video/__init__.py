"""Clips: drawn on demand, with exact positions, and from files."""

from .clip_folder import ClipFolder
from .moving_digits import MovingDigits
from .moving_shapes import MovingShapes
from .paths import bounce, direction

__all__ = ["ClipFolder", "MovingDigits", "MovingShapes", "bounce", "direction"]
