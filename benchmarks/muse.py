"""Muse on shapes: ``python -m benchmarks.muse`` trains tokenizer and model where they are missing.

It fills a table and a picture of docs/techniques/masked_tokens.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import diffx
from benchmarks.conditioning import SCENES, figures
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.data import Shapes
from diffx.guidance import Rising
from diffx.masking import ParallelDecoding
from diffx.metrics import evaluate

TOKENIZER, MUSE = Run("shapes/vq"), Run("shapes/muse")
PROMPTS = ("a red circle", "a blue square and a green triangle", "a green triangle and a blue square and a yellow circle",
           "a yellow square and a red triangle")  # fmt: skip
COLUMNS = 9


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.muse", __doc__).parse_args(argv).runs
    train(runs, [TOKENIZER, MUSE])
    module, data = diffx.load(str(MUSE.folder(runs))), Shapes(size=16, spans=False)
    scales = {"1": 1.0, "3": 3.0, "rising to 3": Rising(3.0), "rising to 5": Rising(5.0)}
    rows = []
    for steps in (8, 16):
        for name, guidance in scales.items():
            report = evaluate(module, data, n=300, guidance=guidance, sampler=ParallelDecoding(steps), folder=runs / "muse",
                              name=f"{steps}-{name.replace(' ', '-')}")  # fmt: skip
            rows.append([str(steps), name, *figures(report, (*SCENES, "frechet"))])
    fill("techniques/masked_tokens.md", "muse", table(["Rounds", "Guidance", *SCENES, "frechet"], rows))
    told = module.condition({"text": [prompt for prompt in PROMPTS for _ in range(COLUMNS)]})
    shown = module.sample(len(PROMPTS) * COLUMNS, told, guidance=Rising(3.0), seed=0)
    media.save(media.grid(shown, columns=COLUMNS), "docs/images/shapes-muse.png")
    print(*rows, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
