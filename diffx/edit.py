"""Edit pictures with a checkpoint: ``python -m diffx.edit method=img2img checkpoint=PATH image=FILE text="a red circle"``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import cli
from .recipes.errors import RecipeError, hint

__all__ = ["NEEDS", "Options", "main"]

USAGE = """
python -m diffx.edit method=NAME checkpoint=PATH [key=value ...]

methods, and what each needs
  img2img              image; text or label: noise is added to the picture and taken away again
  magic_mix            image; text or label: the picture's layout, the prompt's contents
  reconstruct          image; source: DDIM inversion and the way back, without guidance, with it, and with a fitted null text
  inpaint              image, mask; text or label: paint where the mask is white
  repaint              as inpaint, going back and forth so that old and new fit each other
  diffedit             image, source, text: find out what differs between the prompts, change that
  prompt_to_prompt     source, text; image: another prompt with the attention of the source, of the picture if one is given
  imagic               image (one), text: a model fitted to the picture; from the picture to the text in five shares
  instruct             image, text: what to change, by a model that was trained on instructions
  paint_with_words     text, regions: put phrases where they belong
  attention            text: new pictures, and where each word was looked for, one row a word

keys
  checkpoint=PATH      a checkpoint, or a run folder (its newest good checkpoint)
  image=FILE           a picture of the model's size; or FILE.npz, as sample writes it: all its pictures
  text="a blue circle" what the result shows; text=[...] one for each picture
  source="a red circle"  what the picture shows now
  label=3              a class, for models that are told classes
  mask=FILE            a picture of the same size: white = regenerate, black = keep
  regions={red circle: [0, 0, 0.5, 0.5]}   phrase: top, left, bottom, right as shares of the picture
  strength=0.6         img2img, inpaint, diffedit: share of the steps, above 0 to 1
  weight=0.3           paint_with_words: how strongly
  mode=replace         prompt_to_prompt: replace, or refine where words were added
  cross=0.8            prompt_to_prompt: share of the steps whose attention to words is handed over
  self_attention=0.4   prompt_to_prompt: the same, among positions
  weights={red: 2}     prompt_to_prompt: factors on the attention to words
  blend=[red, blue]    prompt_to_prompt: a word of the source and one of the text; the rest of the picture stays
  null_text=true       prompt_to_prompt with image: fit a null text, so that the picture survives the guidance
  guidance=1           1 is off
  picture_guidance=1.5 instruct: how strongly the picture is kept; the model's own by default
  steps=50             sampling steps
  seed=0               picture i is a function of seed + i
  weights_of=ema       ema, ema:NAME or raw
  out=FILE.png         a new file; edits/METHOD.png of the run folder by default, or METHOD-2.png and so on
  device=auto          auto, cpu, cuda, cuda:1, ...
  trust=false          true: let the checkpoint build classes of any package; only for files whose origin you know

The picture written shows, row by row: before, mask or regions where there are any, after.

examples
  python -m diffx.edit method=img2img checkpoint=runs/shapes/text_unet/main image=scene.png text="a red circle" guidance=3
  python -m diffx.edit method=paint_with_words checkpoint=runs/shapes/text_unet/main text="a red circle and a blue square" \\
      'regions={red circle: [0, 0, 0.5, 0.5]}' guidance=3
"""

NEEDS: dict[str, tuple[str, ...]] = {
    "img2img": ("image",),
    "magic_mix": ("image",),
    "reconstruct": ("image", "source"),
    "inpaint": ("image", "mask"),
    "repaint": ("image", "mask"),
    "diffedit": ("image", "source", "text"),
    "prompt_to_prompt": ("source", "text"),
    "imagic": ("image", "text"),
    "instruct": ("image", "text"),
    "paint_with_words": ("text", "regions"),
    "attention": ("text",),
}


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.edit --help``."""

    method: str
    checkpoint: str
    image: str | None = None
    text: str | list[str] | None = None
    source: str | list[str] | None = None
    label: int | None = None
    mask: str | None = None
    regions: dict | None = None
    strength: float | None = None
    weight: float = 0.3
    mode: Literal["replace", "refine"] = "replace"
    cross: float = 0.8
    self_attention: float = 0.4
    weights: dict | None = None
    blend: list[str] | None = None
    null_text: bool = False
    guidance: float = 1.0
    picture_guidance: float | None = None
    steps: int = 50
    seed: int = 0
    weights_of: str = "ema"
    out: str | None = None
    device: str = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.method not in NEEDS:
            problems.append(f"there is no method {self.method!r}{hint(self.method, NEEDS) or '; there are ' + ', '.join(NEEDS)}")
        problems += [f"method={self.method} needs {name}=" for name in NEEDS.get(self.method, ()) if getattr(self, name) is None]
        if self.strength is not None and not 0 < self.strength <= 1:
            problems.append(f"strength must be above 0 and at most 1, got {self.strength}: at 0 nothing would be edited")
        if self.steps < 1:
            problems.append(f"steps must be at least 1, got {self.steps}")
        if self.blend is not None and len(self.blend) != 2:
            problems.append(f"blend must be a word of the source and one of the text, got {self.blend}")
        for phrase, box in (self.regions or {}).items():
            if not _is_box(box):
                problems.append(f"the region of {phrase!r} must be top, left, bottom, right within [0, 1], got {box}")
        if self.out is not None and Path(self.out).exists():
            problems.append(f"out={self.out} is there already; give another name")
        for name in ("checkpoint", "image", "mask"):
            value = getattr(self, name)
            if value is not None and not Path(value).exists():
                problems.append(f"{name}={value}: there is no such file or folder")
        if problems:
            raise RecipeError(*problems)

    def prompts(self, name: str, n: int) -> list[str] | None:
        """The prompts of ``n`` pictures, repeated."""
        given = getattr(self, name)
        listed = given if isinstance(given, list) else [given]
        return None if given is None else [listed[i % len(listed)] for i in range(n)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    options = cli.options(cli.parse(argv, USAGE), Options)
    import torch

    from . import files, media
    from .editing import Editor
    from .edits import METHODS
    from .recipes.load import load, locate
    from .samplers import Euler

    device = cli.device(options.device)
    file = locate(options.checkpoint)
    module = load(file, options.weights_of, device=device, trust=options.trust)
    schedule = getattr(getattr(module, "sampler", None), "schedule", None)
    sampler = None if schedule is None else Euler(options.steps, schedule)
    editor = Editor(module, guidance=options.guidance, sampler=sampler, seed=options.seed)
    rows = METHODS[options.method](editor, options)
    folder = file.parent.with_name("edits") if file.parent.name == "checkpoints" else Path("edits")
    sheet = torch.cat([row.expand(-1, module.shape[0], -1, -1).float().cpu() for row in rows])
    print(media.save(media.grid(sheet, columns=len(rows[0])), options.out or files.unused(folder / f"{options.method}.png")))


def _is_box(box: Any) -> bool:
    """Whether it is top, left, bottom, right as shares of a picture."""
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) and 0 <= side <= 1 for side in box)
    return numbers and box[0] < box[2] and box[1] < box[3]


if __name__ == "__main__":
    sys.exit(main())
