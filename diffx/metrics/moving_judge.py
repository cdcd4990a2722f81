"""A judge for clips of `diffx.data.MovingShapes` that learns nothing: which colours are there, and which way they set out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import rng
from ..data.shapes import COLOURS
from .figures import Evidence, Figure, Results, Unsuited
from .shapes_judge import ShapesJudge

__all__ = ["NAMES", "moving_figure", "told_ways"]

NAMES = ("colour_presence", "way", "way_gain")
WAYS = {"up": (0, -1), "down": (0, 1), "left": (1, -1), "right": (1, 1)}  # axis and sign
FIRST = 2  # frames after the first by which an object has set out; later it may have met a wall


def told_ways(prompts: Sequence[str]) -> Tensor:
    """What captions tell: (N, P, 3) int64 for the P colours; whether it is told of, and the sign of its way down and to the right.

    Raises:
        ValueError: a caption that does not name a colour in each of its phrases.
    """
    told = torch.zeros(len(prompts), len(COLOURS), 3, dtype=torch.int64)
    for n, prompt in enumerate(prompts):
        for phrase in prompt.removeprefix("a ").split(" and a "):
            colour, *words = phrase.split()
            if colour not in COLOURS:
                raise ValueError(f"a caption of moving shapes tells the colour of each, as in 'a red circle moving up', got {prompt!r}")
            told[n, COLOURS.index(colour), 0] = 1
            for axis, sign in (WAYS[word] for word in words if word in WAYS):
                told[n, COLOURS.index(colour), 1 + axis] = sign
    return told


def moving_figure(prompts: Sequence[str], real: Tensor | None = None) -> Figure:
    """Three figures of clips (N, 3, T, H, W), T > 2, each beside its value under shuffled prompts, as detail "shuffled".

    | figure | share of |
    |---|---|
    | colour_presence | frames, of the first three, in which a colour asked for is there |
    | way | told ways (up, down, left, right) that the middle of the box of their colour has taken after two frames, by any distance |
    | way_gain | what is lost of it by shuffling: about 0 if ways do not depend on prompts |

    Of real clips 85 % of the ways are seen: some objects meet a wall at once, pass behind another, or move by less than a pixel.

    Args:
        prompts: the caption of each clip.
        real: the clips that have these captions; what they score becomes the detail "held_out".

    Raises:
        ValueError: a caption cannot be read; `Unsuited` if clips have fewer than three frames.
    """

    def compute(evidence: Evidence) -> Results:
        if evidence.samples.shape[2] <= FIRST:
            raise Unsuited(f"ways are seen over {FIRST + 1} frames, got clips of {evidence.samples.shape[2]}")
        order = rng.permutation(len(prompts), evidence.seed, "shuffled prompts").tolist()
        seen, told = _look(evidence.samples), told_ways(prompts)
        own, other = _shares(*seen, told), _shares(*seen, told[order])
        figures = {name: {"value": own[name], "shuffled": other[name]} for name in own}
        for name, value in {} if real is None else _shares(*_look(real), told).items():
            figures[name]["held_out"] = value
        return {**figures, "way_gain": {"value": own["way"] - other["way"]}}

    return Figure(NAMES, compute)


def _look(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Which colours are there, (N, T, P) bool in the first frames, and the signs (N, P, 2) of their ways down and to the right."""
    frames = clips[:, :, : FIRST + 1].transpose(1, 2)
    seen = ShapesJudge()(frames.flatten(0, 1))
    present, boxes = (part.unflatten(0, frames.shape[:2]) for part in (seen.present, seen.boxes))
    middles = (boxes[..., :2] + boxes[..., 2:]).flip(-1)  # (N, T, P, 2): down, right
    return present, (middles[:, FIRST] - middles[:, 0]).sign() * (present[:, 0] & present[:, FIRST])[..., None]


def _shares(present: Tensor, gone: Tensor, told: Tensor) -> dict[str, float]:
    asked, ways = told[..., 0] == 1, told[..., 1:]
    return {"colour_presence": present.double().mean(1)[asked].mean().item(), "way": (gone == ways)[ways != 0].double().mean().item()}
