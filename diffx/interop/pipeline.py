"""The diffusers pipeline that any technique becomes which makes pictures, clips or sounds.

Nothing in diffx imports this file but the folders that `write_pipeline` writes, so diffusers stays out of ``import diffx``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .. import media
from ..asked import conditions, sampler_for
from ..conditions import Cond
from ..recipes.load import load
from .folder import WEIGHTS, write_pipeline

__all__ = ["DiffxPipeline", "PipelineOutput", "Technique"]


class Technique(nn.Module):
    """What diffusers takes the component ``technique`` of a pipeline folder for; loading it gives the `DiffusionModule` itself."""

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: torch.dtype | None = None, **options: Any) -> Any:
        """The module of a folder with its weights, in evaluation mode; ``options`` of diffusers' own loading have no meaning here."""
        module = load(Path(folder) / Path(WEIGHTS).name)
        return module if torch_dtype is None else module.to(torch_dtype)


@dataclass
class PipelineOutput(BaseOutput):
    """What a pipeline gives back.

    Attributes:
        images: pictures; of clips, the list of frames of each.
        audios: sounds (B, C, L) in [-1, 1], for a technique of sound.
    """

    images: Any = None
    audios: Any = None


class DiffxPipeline(DiffusionPipeline):
    """Draws samples of a technique of diffx, those that `diffx.sample` draws.

    Args:
        technique: the `DiffusionModule`.
    """

    technique: Any

    def __init__(self, technique: Any) -> None:
        super().__init__()
        register: Any = self.register_modules  # type: ignore[attr-defined]  # diffusers' classes are lazy
        register(technique=technique)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: int | Sequence[int] | None = None,
        prompt: str | Sequence[str | None] | None = None,
        image: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw samples.

        Args:
            batch_size: number of samples; by default as many as there are labels or prompts, else 1.
            class_labels: a class for all, or one each.
            prompt: a prompt for all, or one each; for a technique that reads text.
            image: (B, C, h, w) in [-1, 1], small pictures for a technique that refines them.
            height: in pixels, for a technique trained in several sizes; the technique's own by default.
            width: likewise.
            guidance_scale: 1 is off, 0 ignores the condition.
            num_inference_steps: the technique's own by default.
            generator: its first seed counts, not its state: sample i of ``torch.Generator().manual_seed(s)`` is sample i of
                ``diffx.sample`` with ``seed=s``. A list of generators gives one sample each, sample 0 of each seed.
            output_type: ``"pil"``; ``"np"`` or ``"pt"``, pictures in [0, 1] in the axes of diffusers; ``"raw"``, the tensor in [-1, 1].
            return_dict: False gives a tuple.

        Raises:
            ValueError: an unknown ``output_type``, only one of height and width, or what the technique does not take.
        """
        if output_type not in ("pil", "np", "pt", "raw"):
            raise ValueError(f"output_type must be pil, np, pt or raw, got {output_type!r}")
        if (height is None) != (width is None):
            raise ValueError(f"give height and width, or neither; got {height} and {width}")
        module, size = self.technique, None if height is None or width is None else (height, width)
        column = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        classes = None if class_labels is None else [class_labels] if isinstance(class_labels, int) else list(class_labels)
        given = 0 if generator is None or isinstance(generator, torch.Generator) else len(generator)
        n = batch_size or max(len(column), len(classes or []), given, 0 if image is None else len(image))
        cond = conditions(
            module,
            n,
            labels=None if classes is None else [classes[i % len(classes)] for i in range(n)],
            text={} if prompt is None else {self._column(): [column[i % len(column)] for i in range(n)]},
            images=image,
            size=size,
        )
        walk = sampler_for(module, None, num_inference_steps)
        asked: dict[str, Any] = {"guidance": guidance_scale, **({} if walk is None else {"sampler": walk})}
        asked |= {} if size is None else {"shape": (*module.shape[:-2], *size)}
        x = _drawn(module, n, cond, generator, asked)
        out = _output(x.float().cpu(), output_type)
        return out if return_dict else out.to_tuple()

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Write the folder again, as `diffx.interop.write_pipeline` does; it must be new.

        Raises:
            FileExistsError: there is something already.
        """
        write_pipeline(self.technique, save_directory)

    def _column(self) -> str:
        """The batch column that the first encoder reads."""
        sources = getattr(self.technique, "text", None)
        return "text" if sources is None else next(iter(sources.encoders.values())).reads


def _drawn(module: Any, n: int, cond: Cond, generator: Any, asked: Mapping[str, Any]) -> Tensor:
    """Samples (n, *) from the seeds of one generator or of several."""
    if generator is None or isinstance(generator, torch.Generator):
        return module.sample(n, cond, seed=None if generator is None else generator.initial_seed(), **asked)
    each = [module.sample(1, cond.rows(slice(i, i + 1)), seed=g.initial_seed(), **asked) for i, g in enumerate(generator)]
    return torch.cat(each)


def _output(x: Tensor, kind: str) -> PipelineOutput:
    """Samples (B, C, H, W), (B, C, T, H, W) or (B, C, L) in [-1, 1] in the form asked for."""
    if kind == "raw":
        return PipelineOutput(audios=x) if x.ndim == 3 else PipelineOutput(images=x)
    if x.ndim == 3:
        return PipelineOutput(audios=x if kind == "pt" else x.numpy())
    frames = x.transpose(1, 2) if x.ndim == 5 else x  # clips: (B, T, C, H, W)
    if kind == "pt":
        return PipelineOutput(images=(frames + 1) / 2)
    if kind == "np":
        return PipelineOutput(images=np.moveaxis(((frames + 1) / 2).numpy(), -3, -1))
    shown = media.to_uint8(frames)
    return PipelineOutput(images=[[media.picture(frame) for frame in clip] if x.ndim == 5 else media.picture(clip) for clip in shown])
