"""Cold diffusion on the digits: ``python -m benchmarks.cold`` trains where nothing is trained and fills docs/techniques/cold.md.

The 297 held-out digits are blurred and brought back in three ways. Figures that fail for different reasons: decibels (PSNR) to the digit
that was blurred, a judge's reading of the result, and the Frechet distance of all of them to the training digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import diffx
from benchmarks.cascade import decibels
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.data import Digits
from diffx.degradations import Improved, Naive, OneShot
from diffx.metrics import ClassJudge, frechet
from diffx.metrics.real import real_items

RUN = Run("digits/cold_blur")
WALKS = {"one shot": OneShot(), "improved": Improved(), "naive": Naive()}
LEVELS = (20, 10, 5)
SHOWN = 10  # digits in the picture


def claims(found: dict[tuple[str, int], tuple[float, float, float]]) -> list[tuple[str, float, str, float]]:
    """(claim, measured, comparison, bound): what the restoration of wholly blurred digits must reach."""
    (better, read, near), (worse, _, far) = found["improved", 20], found["naive", 20]
    return [
        ("PSNR of the improved walk, dB", better, ">=", 22.0),
        ("its gain over the naive one, dB", better - worse, ">=", 3.0),
        ("accuracy of what it restores", read, ">=", 0.95),
        ("its Frechet distance over that of the naive one", near / far, "<=", 0.7),
    ]


def picture(module: diffx.techniques.ColdDiffusion, x: Tensor) -> Tensor:
    """Rows: the digits, blurred, on the improved way back at every fourth step, and the naive result."""
    blurred = module.degrade(x)
    improved = list(module.restored(blurred, sampler=Improved()))[3::4]
    *_, naive = module.restored(blurred, sampler=Naive())
    return media.grid(torch.cat([x, blurred.clamp(-1, 1), *improved, naive]), columns=len(x))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.cold", __doc__).parse_args(argv).runs
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    real, held = real_items(Digits())
    assert held is not None
    judge = ClassJudge().fit(real["x"], real["label"])
    found = {}
    for name, walk in WALKS.items():
        for level in LEVELS:
            *_, back = module.restored(module.degrade(held["x"], level), level=level, sampler=walk)
            near = frechet(back.flatten(1), real["x"].flatten(1))
            found[name, level] = decibels(back, held["x"]), judge.accuracy(back, held["label"]), near
    rows = [[name, str(level), f"{d:.2f}", f"{a:.3f}", f"{f:.3f}"] for (name, level), (d, a, f) in found.items()]
    own = frechet(held["x"].flatten(1), real["x"].flatten(1))
    rows.append(["the digits themselves", "", "", f"{judge.accuracy(held['x'], held['label']):.3f}", f"{own:.3f}"])
    fill("techniques/cold.md", "restored", table(["Way back", "From level", "PSNR, dB", "accuracy", "Fréchet"], rows))
    verdicts = []
    for text, value, compare, bound in claims(found):
        met = value >= bound if compare == ">=" else value <= bound
        verdicts.append([text, f"{value:.3f}", f"{compare} {bound:g}", "met" if met else "**missed**"])
    fill("techniques/cold.md", "claims", table(["Claim", "Measured", "Bound", ""], verdicts))
    media.save(picture(module, held["x"][:SHOWN]), "docs/images/digits-cold.png")
    print(*rows, *verdicts, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
