"""Edits of tokens on the digits: ``python -m benchmarks.token_edits`` fills the table of docs/techniques/masked_tokens.md.

The 297 held-out digits lose a part, which digits/maskgit paints anew, told the class. A judge reads them before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, media
from diffx.data import Digits
from diffx.metrics import ClassJudge, frechet
from diffx.metrics.real import real_items

RUN = Run("digits/maskgit")
SHOWN = 10


def window(n: int, rows: slice, columns: slice) -> Tensor:
    """A mask (n, 1, 8, 8) that is 1 inside the window."""
    mask = torch.zeros(n, 1, 8, 8)
    mask[..., rows, columns] = 1
    return mask


def main(argv: Sequence[str] | None = None) -> None:
    """Train, edit, write the page."""
    runs: Path = parser("python -m benchmarks.token_edits", __doc__).parse_args(argv).runs
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    assert isinstance(module, diffx.techniques.MaskedTokens)
    real, held = real_items(Digits())
    assert held is not None
    x, label, n = held["x"], held["label"], len(held["x"])
    judge = ClassJudge().fit(real["x"], real["label"])
    edits = {
        "the middle 4x4": (window(n, slice(2, 6), slice(2, 6)), label),
        "the right half": (window(n, slice(None), slice(4, 8)), label),
        "the middle 6x6, as the next class": (window(n, slice(1, 7), slice(1, 7)), (label + 1) % 10),
    }
    rows, sheet = [], [x[:SHOWN]]
    for name, (mask, asked) in edits.items():
        black = torch.where(mask.bool(), -1.0, x)
        new = module.edit(x, mask, Cond(label=asked), ring=0, seed=0)
        read = [judge.accuracy(pictures, asked) for pictures in (black, new)]
        far = [frechet(pictures.flatten(1), real["x"].flatten(1)) for pictures in (black, new)]
        rows.append([name, *(f"{value:.3f}" for value in read), *(f"{value:.2f}" for value in far)])
        sheet += [black[:SHOWN], new[:SHOWN]]
    rows.append(["nothing: the digits", "", f"{judge.accuracy(x, label):.3f}", "", f"{frechet(x.flatten(1), real['x'].flatten(1)):.2f}"])
    heads = ["Painted anew", "accuracy, blacked out", "painted", "Fréchet, blacked out", "painted"]
    fill("techniques/masked_tokens.md", "edits", table(heads, rows))
    media.save(media.grid(torch.cat(sheet), columns=SHOWN), "docs/images/digits-maskgit-edits.png")
    print(*rows, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
