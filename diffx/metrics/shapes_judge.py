"""A judge for pictures of `diffx.data.Shapes` that learns nothing: it finds objects by colour and compares them with the three shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from .. import rng
from ..data.shapes import COLOURS, PALETTE, SHAPES, parse
from ..data.shapes.captions import COLUMNS, ROWS
from .figures import Evidence, Figure

__all__ = ["Findings", "ShapesJudge", "prompt_figures", "shapes_figure"]

NAMES = ("colour_presence", "absent_colours", "pair_recall", "binding", "shape_recall", "full_scene")
CHUNK = 256  # pictures looked at together
SMALLEST = 4  # pixels of the least object


@dataclass(frozen=True, eq=False)
class Findings:
    """What the judge saw in N pictures, colour by colour (P = 4, in the order of `COLOURS`).

    Args:
        masks: (N, P, H, W) bool, the pixels of each colour.
        present: (N, P) bool, whether they are enough to speak of an object.
        boxes: (N, P, 4) float32 pixels, the box around them as (left, top, right, bottom); 0 where there are none.
        shape: (N, P) int64 place in `SHAPES` of the shape they form; -1 where they are too few or form none of the three.
        iou: (N, P) float32, overlap with the template of the best shape.
    """

    masks: Tensor
    present: Tensor
    boxes: Tensor
    shape: Tensor
    iou: Tensor

    @property
    def pairs(self) -> list[frozenset[tuple[str, str]]]:
        """The (colour, shape) of all objects recognised, picture by picture."""
        return [
            frozenset((COLOURS[colour], SHAPES[shape]) for colour, shape in enumerate(row) if shape >= 0) for row in self.shape.tolist()
        ]

    def box_iou(self, colours: Tensor, boxes: Tensor) -> Tensor:
        """Overlap of the box found with the box expected, object by object; 0 for an object that is absent, NaN in empty slots.

        Args:
            colours: (N, K) int64 places in `COLOURS`, -1 in empty slots.
            boxes: (N, K, 4) pixels (left, top, right, bottom).

        Returns:
            (N, K) float32.
        """
        found, wanted = self._of(self.boxes * self.present[..., None], colours), boxes.to(self.boxes)
        sides = torch.minimum(found[..., 2:], wanted[..., 2:]) - torch.maximum(found[..., :2], wanted[..., :2])
        both = sides.clamp(min=0).prod(-1)
        either = (found[..., 2:] - found[..., :2]).prod(-1) + (wanted[..., 2:] - wanted[..., :2]).prod(-1) - both
        return torch.where(colours >= 0, both / either, torch.nan)

    def mask_iou(self, colours: Tensor, masks: Tensor) -> Tensor:
        """Overlap of the pixels found with the region expected, object by object; NaN in empty slots.

        Args:
            colours: (N, K) int64 places in `COLOURS`, -1 in empty slots.
            masks: (N, K, H, W) bool.

        Returns:
            (N, K) float32.
        """
        return torch.where(colours >= 0, _iou(self._of(self.masks, colours), masks), torch.nan)

    def _of(self, values: Tensor, colours: Tensor) -> Tensor:
        return values[torch.arange(len(values), device=values.device)[:, None], colours.clamp(min=0)]


class ShapesJudge:
    """Finds the objects in pictures of coloured shapes.

    All pixels near a palette colour are taken as one object. Its box gives centre and side (the mean of width and height), and the shape
    is the one of three rasterised templates that overlaps most. On clean pictures of 16 pixels and more it makes no mistake.

    Args:
        radius: largest Euclidean distance of a pixel from its palette colour, in RGB of [-1, 1].
        accept: overlap (intersection over union) with the best template that makes it a shape; above it.
        share: a colour is present from this share of the canvas on, and from 4 pixels on; the least object of `diffx.data.Shapes` covers
            more than 4 %.
    """

    def __init__(self, *, radius: float = 0.7, accept: float = 0.6, share: float = 0.01) -> None:
        self.radius, self.accept, self.share = radius, accept, share

    def __call__(self, x: Tensor) -> Findings:
        """Look at pictures.

        Args:
            x: (N, 3, H, W) float in [-1, 1], or uint8.

        Raises:
            ValueError: another number of channels or dimensions.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"the judge looks at RGB pictures (N, 3, H, W), got {tuple(x.shape)}")
        parts = [self._look(part.float() / 127.5 - 1 if x.dtype == torch.uint8 else part.float()) for part in x.split(CHUNK)]
        return Findings(*(torch.cat([getattr(part, name) for part in parts]) for name in Findings.__dataclass_fields__))

    def _look(self, x: Tensor) -> Findings:
        palette = torch.tensor(list(PALETTE.values()), device=x.device)
        away = x[:, None] - rearrange(palette, "p c -> p c 1 1")
        masks = away.square().sum(2) < self.radius**2
        boxes = _boxes(masks)
        present = reduce(masks, "n p h w -> n p", "sum") >= max(SMALLEST, self.share * x[0, 0].numel())
        iou, shape = _iou(masks[:, :, None], _templates(boxes, *x.shape[-2:])).max(-1)
        return Findings(masks, present, boxes, torch.where(present & (iou > self.accept), shape, -1), iou)


def prompt_figures(findings: Findings, prompts: Sequence[str]) -> dict[str, float]:
    """How well pictures show what they were asked to show.

    | figure | share of |
    |---|---|
    | colour_presence | asked colours that are there |
    | absent_colours | other colours that are there (less is better) |
    | pair_recall | asked pairs (colour, shape) that are there |
    | binding | asked colours that are there and have the asked shape, among those that are there |
    | shape_recall | asked shapes that are there in any colour (each as often as it was asked for) |
    | full_scene | pictures whose set of pairs is exactly the asked one |
    | position | asked objects whose colour lies in the told ninth of the picture, within half a pixel; only if prompts tell one |

    Args:
        findings: of N pictures.
        prompts: N captions that tell colour and shape of every object.

    Returns:
        name -> share, NaN where nothing was asked.

    Raises:
        ValueError: counts differ, or a prompt cannot be read or leaves out an attribute.
    """
    wanted, places = _wanted(prompts, len(findings.shape))
    wanted = wanted.to(findings.shape.device)
    asked = wanted >= 0
    right = asked & (findings.shape == wanted)
    figures = {
        "colour_presence": _share(findings.present & asked, asked),
        "absent_colours": _share(findings.present & ~asked, ~asked),
        "pair_recall": _share(right, asked),
        "binding": _share(right, findings.present & asked),
        "shape_recall": _share(torch.minimum(_tally(wanted), _tally(findings.shape)), asked),
        "full_scene": (findings.shape == wanted).all(1).double().mean().item(),
    }
    if places:
        hits = [
            bool(findings.present[n, p]) and _lies(findings.boxes[n, p].tolist(), place, findings.masks.shape[-2:])
            for (n, p), place in places.items()
        ]
        figures["position"] = sum(hits) / len(hits)
    return figures


def shapes_figure(prompts: Sequence[str], judge: ShapesJudge | None = None) -> Figure:
    """The figures of `prompt_figures` for `diffx.metrics.measure`, each with its value under shuffled prompts as detail "shuffled".

    ``prompt_gain`` is what is lost of colour_presence by shuffling: about 0 if the samples do not depend on their prompts.

    Args:
        prompts: the caption of each sample, in the order of the samples.
        judge: who looks.

    Raises:
        ValueError: a prompt cannot be read.
    """

    def compute(evidence: Evidence) -> dict[str, dict[str, Any]]:
        findings = (judge or ShapesJudge())(evidence.samples)
        order = rng.permutation(len(prompts), evidence.seed, "shuffled prompts").tolist()
        own, other = prompt_figures(findings, prompts), prompt_figures(findings, [prompts[i] for i in order])
        gain = own["colour_presence"] - other["colour_presence"]
        return {name: {"value": value, "shuffled": other[name]} for name, value in own.items()} | {"prompt_gain": {"value": gain}}

    told = ("position",) if any(description.position for prompt in prompts for description in parse(prompt)) else ()
    return Figure((*NAMES, *told, "prompt_gain"), compute)


def _boxes(masks: Tensor) -> Tensor:
    """(N, P, H, W) bool to boxes (N, P, 4) around all True pixels, 0 where there are none."""
    (left, right), (top, bottom) = (_ends(masks.any(axis)) for axis in (-2, -1))
    return torch.stack([left, top, right, bottom], -1).float()


def _ends(line: Tensor) -> tuple[Tensor, Tensor]:
    """First True and one after the last True along the last axis; 0 and 0 where all are False."""
    place = torch.arange(line.shape[-1], device=line.device)
    stop = torch.where(line, place + 1, 0).amax(-1)
    return torch.where(line, place, line.shape[-1]).amin(-1).minimum(stop), stop


def _templates(boxes: Tensor, height: int, width: int) -> Tensor:
    """The three shapes in the square that each box suggests: (N, P, 3, H, W) bool, in the order of `SHAPES`."""
    left, top, right, bottom = (rearrange(edge, "n p -> n p 1 1") for edge in boxes.unbind(-1))
    side = (right - left + bottom - top) / 2
    y, x = torch.meshgrid(torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device), indexing="ij")
    down, across = y + 0.5 - (top + bottom) / 2, (x + 0.5 - (left + right) / 2).abs()
    square = (across <= side / 2) & (down.abs() <= side / 2)
    circle = across.square() + down.square() <= side.square() / 4
    triangle = square & (across <= (down + 0.5 + side / 2) / 2)
    return torch.stack([circle, square, triangle], 2)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of (*, H, W) bool regions; 0 if both are empty."""
    both, either = (reduce(region, "... h w -> ...", "sum").float() for region in (a & b, a | b))
    return both / either.clamp(min=1)


def _wanted(prompts: Sequence[str], count: int) -> tuple[Tensor, dict[tuple[int, int], str]]:
    """The asked shape of each colour, (N, P) int64 with -1 = colour not asked for, and the told positions by (picture, colour)."""
    if len(prompts) != count:
        raise ValueError(f"every picture needs its prompt: got {count} pictures and {len(prompts)} prompts")
    wanted, places = torch.full((count, len(COLOURS)), -1), {}
    for n, prompt in enumerate(prompts):
        for colour, shape, position in parse(prompt):
            if colour is None or shape is None:
                raise ValueError(f"prompts must tell colour and shape of every object to be judged by, got {prompt!r}")
            wanted[n, COLOURS.index(colour)] = SHAPES.index(shape)
            if position is not None:
                places[n, COLOURS.index(colour)] = position
    return wanted, places


def _share(hits: Tensor, of: Tensor) -> float:
    return (hits.sum().double() / of.sum()).item()


def _tally(shapes: Tensor) -> Tensor:
    """How often each shape occurs: (N, P) with -1 = none to (N, 3)."""
    return torch.stack([(shapes == kind).sum(1) for kind in range(len(SHAPES))], 1)


def _lies(box: Sequence[float], place: str, canvas: Sequence[int]) -> bool:
    """Whether a box's middle lies in the named ninth of the canvas, give or take the half pixel by which drawing may move it."""
    ninths = zip((box[1] + box[3], box[0] + box[2]), canvas, ((ROWS, place), (COLUMNS, place)), strict=True)
    for ends, side, (words, said) in ninths:
        third = next((k for k in (0, 2) if words[k] in said.split()), 1)
        if not third / 3 * side - 0.5 <= ends / 2 <= (third + 1) / 3 * side + 0.5:
            return False
    return True
