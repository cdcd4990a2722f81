"""How well pictures of shapes were edited: is the change there, and is all else as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .shapes_judge import ShapesJudge

__all__ = ["EDITS", "edit_figures"]

EDITS = ("edited", "others_iou", "background")


def edit_figures(samples: Tensor, asked: Mapping[str, Any], judge: ShapesJudge | None = None) -> dict[str, float]:
    """Figures of edited pictures.

    | figure | meaning |
    |---|---|
    | edited | share of the pictures in which the changed object has its new colour and shape |
    | others_iou | mean overlap of the other objects with where they were; NaN where there are none |
    | background | mean absolute difference from the picture before, outside of the changed object, for colours in [0, 1] |

    Args:
        samples: (N, 3, H, W) in [-1, 1].
        asked: columns of N items of `diffx.data.Shapes` with edit pairs, in the order of the samples; "source" in [-1, 1] or uint8.
        judge: who looks.
    """
    found = (judge or ShapesJudge())(samples)
    row, number = torch.arange(len(samples)), asked["edited"]
    colour, shape = asked["colours"][row, number], asked["shapes"][row, number]
    others = (asked["colours"] >= 0) & (torch.arange(asked["colours"].shape[1]) != number[:, None])
    source = asked["source"].float() / 127.5 - 1 if asked["source"].dtype == torch.uint8 else asked["source"]
    outside = ~asked["edit_mask"].bool().expand_as(samples)
    return {
        "edited": (found.shape[row, colour] == shape).double().mean().item(),
        "others_iou": found.mask_iou(asked["colours"], asked["masks"].bool())[others].double().mean().item(),
        "background": ((samples - source).abs() / 2)[outside].double().mean().item(),
    }
