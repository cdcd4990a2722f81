"""Shapes edited by instructions: ``python -m benchmarks.instruct``, which trains the editor where none is and fills its page.

The same held-out scenes are edited from the same noise under several pairs of guidance scales. Of each pair the figures of
`diffx.metrics.shapes_edits` are measured, and one sheet shows pictures before, after, and as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import interpolate

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.data import Shapes
from diffx.metrics.evaluation import requests
from diffx.metrics.real import asked_rows, real_items, take
from diffx.metrics.shapes_edits import EDITS, edit_figures

RUN = Run("shapes/instruct")
N, SHOWN, CHUNK = 300, 8, 100
SCALES = ((1.0, 1.0), (1.0, 1.5), (3.0, 1.5), (7.5, 1.5), (3.0, 1.0), (3.0, 0.0))  # of the text, of the picture
SHEET = SCALES[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, edit, measure, write page and sheet."""
    runs: Path = parser("python -m benchmarks.instruct", __doc__).parse_args(argv).runs
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    assert isinstance(module, diffx.techniques.InstructPix2Pix)
    _, held_out = real_items(Shapes(batch_size=CHUNK, size=16, spans=False, edits="any"), N)
    assert held_out is not None
    cond, _ = requests(module, held_out, N, CHUNK)
    asked, rows = take(held_out, asked_rows(held_out, N)), []
    for text, picture in SCALES:
        edited = module.sample(N, cond, guidance=text, picture_guidance=picture, seed=0, chunk=CHUNK)
        figures = edit_figures(edited, asked)
        rows.append([f"{text:g}", f"{picture:g}", *(f"{figures[name]:.4f}" for name in EDITS)])
        print(*rows[-1], flush=True)
        if (text, picture) == SHEET:
            sheet = torch.cat([x[:SHOWN] for x in (asked["source"], edited, asked["x"])])
            media.save(media.grid(interpolate(sheet, scale_factor=4), columns=SHOWN, zoom=1), DOCS / "images" / "shapes-instruct.png")
    fill("techniques/instruct.md", "figures", table(["$s_T$", "$s_I$", *EDITS], rows))
    fill("techniques/instruct.md", "instructions", ", ".join(f'"{text}"' for text in asked["instruction"][:SHOWN]))


if __name__ == "__main__":
    main()
