"""Open the studio: ``python -m diffx.studio checkpoint=runs/shapes/text_unet/main``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..recipes.errors import RecipeError

__all__ = ["Options", "main"]

USAGE = """
python -m diffx.studio checkpoint=PATH [key=value ...]

Opens a web page on this machine to sample, paint with words, inpaint and edit with a trained model. It needs Gradio:
pip install 'diffx[studio]'. The page listens on the loopback address alone: nobody else on the network sees it.

keys
  checkpoint=PATH      a checkpoint, or a run folder (its newest good checkpoint)
  port=7860            of the page
  weights=ema          ema, ema:NAME or raw
  device=auto          auto, cpu, cuda, cuda:1, ...
  trust=false          true: let the checkpoint build classes of any package; only for files whose origin you know
"""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.studio --help``."""

    checkpoint: str
    port: int = 7860
    weights: str = "ema"
    device: str = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not Path(self.checkpoint).exists():
            problems.append(f"checkpoint={self.checkpoint}: there is no such file or folder")
        if not 0 < self.port < 65536:
            problems.append(f"port must lie in [1, 65535], got {self.port}")
        if problems:
            raise RecipeError(*problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> int:
    options = cli.options(cli.parse(argv, USAGE), Options)
    from ..recipes.load import load, locate
    from .actions import Studio
    from .page import build, gradio

    try:
        gradio()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    file = locate(options.checkpoint)
    studio = Studio(load(file, options.weights, device=cli.device(options.device), trust=options.trust))
    page = build(studio, f"diffx studio: {file.parent.parent.name}/{file.stem}")
    print(f"http://{LOOPBACK}:{options.port}  (Ctrl-C ends it)", flush=True)
    page.launch(server_name=LOOPBACK, server_port=options.port, share=False, quiet=True, show_error=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
