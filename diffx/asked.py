"""What somebody asks a trained module for, in classes, prompts, pictures and steps, as conditions and a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .conditions import Cond
from .data import PictureReader, normalise, size_crop
from .recipes import recipe_of
from .recipes.build import build
from .recipes.check import takes

__all__ = ["conditions", "pictures", "sampler_for"]


def conditions(
    module: Any,
    n: int,
    *,
    labels: Sequence[int] | None = None,
    text: Mapping[str, Sequence[str | None]] | None = None,
    images: Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Cond:
    """What ``n`` samples are to show: classes, prompts through the module's own encoders, small pictures, or nothing.

    Args:
        module: a `DiffusionModule`.
        n: number of samples.
        labels: one class per sample.
        text: by the batch column that an encoder reads, one prompt per sample; None is a sample without one.
        images: pictures in [-1, 1] that the module refines (super-resolution), repeated up to ``n``.
        size: height and width in pixels, where they are not the module's own: what the size and crop condition says. Nothing is cut away.

    Raises:
        ValueError: a column of text that nothing in the module reads; pictures for a module that refines none, or none for one that does.
    """
    label = None if labels is None else torch.tensor(list(labels), device=module.device)
    vectors, shown = _whole(module, n, size), _shown(module, n, images)
    if not text:
        return Cond(label=label, vectors=vectors, maps=shown)
    sources = getattr(module, "text", None)
    read = [] if sources is None else [encoder.reads for encoder in sources.encoders.values()]
    if unknown := [name for name in text if name not in read]:
        reads = f"reads {', '.join(map(repr, read))}: write text={{{read[0]}: ...}}" if read else "was trained without text"
        raise ValueError(f"there is nothing in this model that reads {unknown[0]!r}; it {reads}")
    with torch.no_grad():
        return module.condition({**({} if label is None else {"label": label}), **text, **vectors, **shown})


def pictures(path: str, channels: int) -> Tensor:
    """What a file shows: (n, C, *) in [-1, 1].

    Args:
        path: an ``.npz`` as the verb ``sample`` writes it, whose ``images`` come as they are, or a picture.
        channels: 1 or 3, of a picture.
    """
    if path.endswith(".npz"):
        with np.load(path) as arrays:
            return torch.from_numpy(arrays["images"]).float()
    return normalise(PictureReader(channels=channels).open(Path(path)))[None]


def sampler_for(module: Any, sampler: str | dict[str, Any] | None = None, steps: int | None = None) -> Any:
    """The sampler to draw with; None means the module's own.

    Args:
        module: a `DiffusionModule`; steps and schedule of its own sampler hold unless they are replaced.
        sampler: name of a class in `diffx.samplers`, or a recipe.
        steps: number of steps.

    Raises:
        ValueError: ``steps`` for a module whose sampler takes none.
    """
    if sampler is None and steps is None:
        return None
    own = recipe_of(getattr(module, "sampler", None))
    own = own if isinstance(own, dict) and "_target_" in own else {}
    if isinstance(sampler, dict):
        recipe = sampler
    elif sampler is not None:
        target = f"diffx.samplers.{sampler}"
        recipe = {"_target_": target, **{key: own[key] for key in ("steps", "schedule") if key in own and takes(target, key)}}
    elif own and takes(own["_target_"], "steps"):
        recipe = own
    else:
        raise ValueError(f"steps = {steps}, but {type(module).__name__} has no sampler that takes steps; name one with sampler=")
    return build({**recipe, **({} if steps is None else {"steps": steps})}, at="sampler")


def _shown(module: Any, n: int, images: Tensor | None) -> dict[str, Tensor]:
    """The pictures that the module works from, under the name that they have in a batch and as a map."""
    name = getattr(module, "source", None)
    if images is None and name is not None:
        raise ValueError(f"{type(module).__name__} works from given pictures; give them as images, of shape {module.low_shape}")
    if images is None:
        return {}
    if name is None:
        raise ValueError(f"{type(module).__name__} refines no pictures; leave images out")
    return {name: images.float().to(module.device)[torch.arange(n, device=module.device) % len(images)]}


def _whole(module: Any, n: int, size: Sequence[int] | None) -> dict[str, Tensor]:
    """The size and crop condition of pictures that were never larger, where the network takes one."""
    net = getattr(getattr(module, "denoiser", None), "net", None)
    if "size_crop" not in getattr(getattr(net, "conditions", None), "vectors", ()):
        return {}
    height, width = size or module.shape[-2:]
    return {"size_crop": size_crop(torch.tensor([[height, width, 0, 0, height, width]] * n, device=module.device))}
