"""Super-resolution and cascades: ``python -m benchmarks.cascade`` trains where nothing is trained and fills a page.

- ``digits``, ``shapes``: held-out pictures from small ones as they are and spoilt by noise, by networks that were trained with and without
  noise-conditioning augmentation, shapes with three training seeds;
- ``emoji``: three stages on emoji, 16 to 32 to 64 pixels, beside bicubic enlargement.

The page is docs/techniques/super_resolution.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import Cond, media
from diffx.cascade import Cascade
from diffx.data import Digits, Emoji, Shapes
from diffx.metrics import frechet
from diffx.metrics.real import real_items
from diffx.resizing import enlarge, shrink
from diffx.tensors import psnr

PAGE = "techniques/super_resolution.md"
SPOILT = 0.15  # standard deviation of the noise on small pictures
LEVELS = (0.0, 0.15, 0.3)
SEEDS = 3
UNTOLD = ("module.noise=[0.0,0.0]",)
STAGES = tuple(Run(f"emoji/cascade_{side}") for side in (16, 32, 64))
SHOWN = 8
ENLARGED = ("Small picture enlarged", "Seed", "clean input, dB", "spoilt input, dB")
HEADS = {
    "digits": ENLARGED,
    "shapes": ENLARGED,
    "emoji": ("", "PSNR, dB", "PSNR at 16x16", "contrast of neighbours, share of real", "Fréchet of spectra", "Fréchet of pixels at 16x16"),
}


def variants(experiment: str, seeds: int) -> Iterator[tuple[int, Run, Run]]:
    """(seed, trained without augmentation, with it)."""
    for seed in range(seeds):
        told = (f"seed={seed}",) if seed else ()
        end = f"_w{seed}" if seed else ""
        yield seed, Run(experiment, f"clean{end}", (*UNTOLD, *told)), Run(experiment, f"w{seed}" if seed else "main", told)


def load(run: Run, runs: Path) -> Any:
    """The averaged weights of a run."""
    return diffx.load(str(run.folder(runs)))


def decibels(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [-1, 1], over all pixels."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def augmentation(runs: Path, name: str, data: Any, seeds: int, n: int) -> list[list[str]]:
    """Rows of one experiment: decibels on clean and on spoilt input."""
    held = real_items(data)[1]
    assert held is not None
    x, label = held["x"][:n], held["label"][:n] if "label" in held else None
    small = shrink(x, 2)
    spoilt = (small + SPOILT * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    inputs, rows = (small, spoilt), []

    def row(who: str, seed: str, made: Sequence[Tensor]) -> None:
        rows.append([who, seed, *(f"{decibels(pictures, x):.2f}" for pictures in made)])

    def drawn(module: Any, level: float) -> list[Tensor]:
        told = label if module.denoiser.takes("label") else None
        return [module.sample(len(x), Cond(label=told, maps={"low_res": low}), seed=0, level=level, chunk=250).cpu() for low in inputs]

    bicubic = [enlarge(low, x.shape[2:]) for low in inputs]
    row("bicubic", "", bicubic)
    for seed, clean, main in variants(name, seeds):
        train(runs, [clean, main])
        untold = drawn(load(clean, runs), 0.0)
        row("without augmentation", str(seed), untold)
        module = load(main, runs)
        told = {level: drawn(module, level) for level in LEVELS}
        for level, made in told.items():
            row(f"with it, level {level:g}", str(seed), made)
        if seed == 0:
            sheet = torch.cat([pictures[:SHOWN] for pictures in (bicubic[1], untold[1], told[0.0][1], x)])
            media.save(media.grid(sheet, columns=SHOWN), DOCS / "images" / f"{name.replace('/', '-').replace('_', '-')}.png")
    return rows


def spectrum(x: Tensor) -> Tensor:
    """Features (B, 31) of square pictures (B, 3, 64, 64): log power of their grey values by spatial frequency, in rings of one cycle."""
    power = torch.fft.fft2(x.mean(1)).abs().square()
    place = torch.fft.fftfreq(x.shape[-1], 1 / x.shape[-1])
    ring = (place[:, None].square() + place.square()).sqrt().round().long().flatten()
    flat = torch.zeros(len(x), int(ring.max()) + 1).index_add_(1, ring, power.flatten(1))
    return (flat / ring.bincount()).clamp_min(1e-3).log()[:, 1 : x.shape[-1] // 2]


def finest(x: Tensor) -> float:
    """Root mean square difference of neighbouring pixels."""
    return float((x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean()).sqrt())


def emoji(runs: Path) -> list[list[str]]:
    """Rows on emoji that were not trained on; of the sheets, the one drawn from names goes into the docs, the enlarged ones to the runs."""
    train(runs, STAGES)
    base, middle, fine = (load(run, runs) for run in STAGES)
    held, small = (real_items(Emoji(size=side, fit="ink"))[1] for side in (64, 16))
    assert held is not None and small is not None
    x, n = held["x"], len(held["x"])
    half, quarter = shrink(x, 2), shrink(shrink(x, 2), 2)
    cascade = Cascade([base, middle, fine])
    cond = base.condition({"x": small["x"], "text": held["text"]})
    named = cascade.sample(n, cond, seed=0, options={0: {"guidance": 2.0, "chunk": 76}, 1: {"chunk": 76}, 2: {"chunk": 76}})
    found = {
        "from 32: bicubic": enlarge(half, (64, 64)),
        "from 32: one stage": fine.sample(n, Cond(maps={"low_res": half}), seed=0, level=0.0, chunk=76).cpu(),
        "from 16: bicubic": enlarge(quarter, (64, 64)),
        "from 16: two stages": Cascade([base, middle, fine]).sample(
            n, start=1, given=quarter, seed=0, options={1: {"level": 0.0, "chunk": 76}, 2: {"chunk": 76}}
        )[-1].cpu(),
        "from names: bicubic": enlarge(named[0].cpu(), (64, 64)),
        "from names: three stages": named[-1].cpu(),
        "real": x,
    }  # fmt: skip
    rows = []
    for name, pictures in found.items():
        of_one = name.startswith(("from 32", "from 16"))  # made from the very picture that they are compared with
        near = [f"{psnr(x, pictures).mean().item():.2f}", f"{decibels(shrink(pictures, 4), quarter):.2f}"] if of_one else ["–", "–"]
        far = frechet(spectrum(pictures), spectrum(x)), frechet(shrink(pictures, 4).flatten(1), quarter.flatten(1))
        rows.append([name, *near, f"{finest(pictures) / finest(x):.3f}", f"{far[0]:.3f}", f"{far[1]:.1f}"])
    made = list(found)
    for path, names in ((runs / "emoji/cascade.png", made[:4]), (DOCS / "images/emoji-named.png", made[4:6])):
        media.save(media.grid(torch.cat([found[name][:SHOWN] for name in names]), columns=SHOWN), path)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    line = parser("python -m benchmarks.cascade", __doc__)
    line.add_argument("--only", nargs="+", choices=HEADS, default=list(HEADS), help="tables to fill")
    given = line.parse_args(argv)
    torch.set_num_threads(1)
    makers: dict[str, Callable[[Path], list[list[str]]]] = {
        "digits": lambda runs: augmentation(runs, "digits/super_resolution", Digits(), 1, 297),
        "shapes": lambda runs: augmentation(runs, "shapes/super_resolution", Shapes(size=32, spans=False), SEEDS, 250),
        "emoji": emoji,
    }
    for place, heads in HEADS.items():
        if place in given.only:
            rows = makers[place](given.runs)
            fill(PAGE, place, table(heads, rows))
            print(place, *rows, sep="\n")


if __name__ == "__main__":
    main()
