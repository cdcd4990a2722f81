"""Where things are that move in straight lines and bounce off the walls."""

from __future__ import annotations

import numpy as np

__all__ = ["bounce", "direction", "walk"]

WORDS = (("up", "", "down"), ("left", "", "right"))  # by the sign of the velocity, -1, 0 and 1
STILL = 0.25  # share of the top speed below which an axis is not spoken of


def bounce(place: np.ndarray, room: float) -> np.ndarray:
    """Fold places on an endless line into [0, room], as a ball between two walls moves: a triangular wave of period 2 room."""
    if room == 0:
        return np.zeros_like(place)
    return room - np.abs(np.mod(place, 2 * room) - room)


def walk(start: np.ndarray, velocity: np.ndarray, frames: int, room: tuple[float, float]) -> np.ndarray:
    """Places (frames, 2) of what starts at ``start`` (2,) with ``velocity`` (2,) a frame, inside walls at 0 and ``room``."""
    straight = start + velocity * np.arange(frames)[:, None]
    return np.stack([bounce(straight[:, axis], room[axis]) for axis in range(2)], 1)


def direction(velocity: np.ndarray, speed: float) -> str:
    """Words for a velocity (down, right) at the start of a clip: "up and left", or "resting" below a quarter of ``speed`` in both."""
    words = [WORDS[axis][int(np.sign(v)) + 1 if abs(v) >= STILL * speed else 1] for axis, v in enumerate(velocity.tolist())]
    spoken = [word for word in words if word]
    return f"moving {' and '.join(spoken)}" if spoken else "resting"
