"""Hand a trained model on: ``python -m diffx.export checkpoint=runs/digits/edm/ID to=diffusers``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import cli
from .recipes.errors import RecipeError

__all__ = ["Options", "main"]

USAGE = """
python -m diffx.export checkpoint=PATH to=safetensors|diffusers|stock [key=value ...]

forms
  to=safetensors   one file: the weights, with the recipe in its header; diffx.load and every verb read it like a checkpoint. A model card
                   stands beside it.
  to=diffusers     a folder that diffusers loads as a pipeline where diffx is installed, with a model card:
                   DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True). The same seed gives the pictures of diffx.sample.
  to=stock         a folder of diffusers' own classes, which needs no diffx, where one is the same function: DDIM with a UNet2DModel for a
                   U-Net without conditions on a discrete table, an AutoencoderKL for a codec that is one. Says what stands against it.

keys
  checkpoint=PATH        a checkpoint, or a run folder (its newest good checkpoint)
  weights=ema            ema, ema:NAME or raw
  out=PATH               a new file or folder; in exports/ of the run folder by default
  license=apache-2.0     of the weights, for the card; what is not given is said not to be known
  data_license=cc-by-4.0 of the data, likewise
  trust=false            true: let the checkpoint build classes of any package; only for files whose origin you know

The card says technique, data, recipe, licences and checksum, and the figures of evaluations of these weights in the run folder.
"""


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.export --help``."""

    checkpoint: str
    to: Literal["safetensors", "diffusers", "stock"]
    weights: str = "ema"
    out: str | None = None
    license: str | None = None
    data_license: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not Path(self.checkpoint).exists():
            problems.append(f"checkpoint={self.checkpoint}: there is no such file or folder")
        if self.out is not None and Path(self.out).exists():
            problems.append(f"out={self.out} exists already; name a new file or folder")
        if problems:
            raise RecipeError(*problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    options = cli.options(cli.parse(argv, USAGE), Options)

    from . import files
    from .interop.card import card, run_of
    from .interop.folder import check_form, sha256, write_pipeline, write_safetensors
    from .interop.stock import write_stock
    from .recipes.load import load, locate

    file = locate(options.checkpoint)
    module = load(file, options.weights, trust=options.trust)
    check_form(module, options.to)
    run = run_of(file, options.weights)
    about: dict[str, Any] = {"weights": options.weights, "config": run.config or None}
    text = card(module, run, weights=options.weights, form=options.to, license=options.license, data_license=options.data_license)
    place = (run.folder or Path()) / "exports" / f"{file.stem}-{options.weights.replace(':', '_')}"
    if options.to == "stock":
        print(write_stock(module, options.out or files.unused(place.with_name(f"{place.name}-stock")), text))
        return
    if options.to == "diffusers":
        written = write_pipeline(module, options.out or files.unused(place), card=text, **about)
        print(written)
        return
    written = write_safetensors(module, options.out or files.unused(place.with_name(f"{place.name}.safetensors")), **about)
    beside = files.unused(written.with_suffix(".md"))
    files.write(beside, lambda handle: handle.write(text.replace("{sha256}", sha256(written)).encode()))
    print(written, beside, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
