"""Join experts that were trained one by one: ``python -m diffx.merge parts=[a.ckpt, b.ckpt, c.ckpt] out=ensemble.ckpt``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cli
from .recipes.errors import RecipeError

__all__ = ["Options", "main"]

USAGE = """
python -m diffx.merge parts=[PATH, PATH, ...] out=FILE [key=value ...]

keys
  parts=[...]    checkpoints or run folders of experts, each trained on one band of noise; in any order
  out=FILE       the ensemble's checkpoint
  weights=ema    which weights of the experts: ema, ema:NAME or raw
  trust=false    true: let the checkpoints build classes of any package; only for files whose origin you know

The bands must share out all noise without gap or overlap, and the experts must be alike but for their weights.
"""


@dataclass(frozen=True)
class Options:
    """What the verb takes; see ``python -m diffx.merge --help``."""

    parts: list[str]
    out: str
    weights: str = "ema"
    trust: bool = False

    def __post_init__(self) -> None:
        if missing := [part for part in self.parts if not Path(part).exists()]:
            raise RecipeError(*(f"parts: there is no {part}" for part in missing))
        if len(self.parts) < 2:
            raise RecipeError(f"an ensemble needs at least two parts, got {self.parts}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake on the command line, 1 for anything else."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> None:
    options = cli.options(cli.parse(argv, USAGE), Options)

    from . import files
    from .recipes.load import load
    from .techniques.experts import joined

    whole = joined([load(part, options.weights, trust=options.trust) for part in options.parts])
    checkpoint: dict = {"state_dict": whole.state_dict()}
    whole.on_save_checkpoint(checkpoint)
    files.save_checkpoint(checkpoint, options.out)
    for k, band in enumerate(whole.denoiser.bands):
        print(f"expert {k}: {band} of the training levels, sigma {band.sigma_min:.4g} to {band.sigma_max:.4g}")
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
