"""The tokenizer of emoji: ``python -m benchmarks.vq`` trains it where nothing is trained and fills docs/techniques/vq.md.

A sheet of originals above reconstructions goes to ``runs/emoji-vq.png``, not into the docs: emoji have a licence of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import diffx
from benchmarks.pages import fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.data import Emoji
from diffx.metrics.real import real_items
from diffx.techniques.vq import perplexity
from diffx.tensors import psnr

RUN = Run("emoji/vq")
SHOWN = 12


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.vq", __doc__).parse_args(argv).runs
    train(runs, [RUN])
    module = diffx.load(str(RUN.folder(runs)))
    assert isinstance(module, diffx.techniques.VQAutoencoder)
    size, rows = module.codec.codebook_size, []
    for name, items in zip(("trained on", "not trained on"), real_items(Emoji(size=32, fit="ink")), strict=True):
        assert items is not None
        ids = torch.cat([module.codec.encode(part) for part in items["x"].split(100)])
        back = torch.cat([module.reconstruct(part) for part in items["x"].split(100)])
        decibels = psnr(items["x"], back)
        used = len(ids.unique()) / size
        rows.append(
            [name, str(len(ids)), f"{decibels.mean():.2f}", f"{decibels.quantile(0.1):.2f}", f"{perplexity(ids, size):.1f}", f"{used:.3f}"]
        )
    heads = ["Emoji", "pictures", "PSNR, dB", "PSNR of the worst tenth, at most", f"perplexity (of {size})", "codes in use"]
    fill("techniques/vq.md", "figures", table(heads, rows))
    media.save(media.grid(torch.cat([items["x"][:SHOWN], back[:SHOWN]]), columns=SHOWN), runs / "emoji-vq.png")
    print(*rows, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
