"""A prior and its decoder on shapes: ``python -m benchmarks.unclip`` trains both where they are missing and fills docs/techniques/prior.md.

The prior is judged by the cosine between the embedding it draws for a held-out caption and the true one, beside that to the true one of
another caption. The decoder is judged by the pictures it makes of the true embedding, of the prior's, and of either with the caption.
Pictures of the first held-out captions are written beside the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import diffx
from benchmarks.pages import DOCS, fill, table
from benchmarks.training import Run, parser, train
from diffx import media
from diffx.data import Shapes
from diffx.metrics import evaluate
from diffx.metrics.real import real_items, take

PRIOR, DECODER = Run("shapes/prior"), Run("shapes/decoder")
SCENES = ("colour_presence", "absent_colours", "pair_recall", "full_scene", "frechet")
SHOWN = 10
TOLD = {"true embedding": (False, False), "prior's": (True, False), "prior's and caption": (True, True), "caption alone": (None, True)}


@dataclass(frozen=True)
class Pair:
    """A decoder that is told what `TOLD` says, by a prior where it says so."""

    prior: Any
    decoder: Any
    drawn: bool | None
    caption: bool

    @property
    def sampler(self) -> Any:
        """The decoder's own."""
        return self.decoder.sampler

    def condition(self, batch: Mapping[str, Any]) -> Any:
        """The decoder's conditions; drawn embeddings come from seeds that the first item of the batch names."""
        told = self.prior.fill(batch, seed=int(batch["index"][0]) * len(batch["x"])) if self.drawn else dict(batch)
        hidden = [None] * len(batch["x"])
        if not self.caption:
            told["text"] = hidden
        cond = self.decoder.condition(told)
        return cond.hidden("image", "image_pooled") if self.drawn is None else cond

    def sample(self, *args: Any, **options: Any) -> Any:
        """The decoder's."""
        return self.decoder.sample(*args, **options)


def cosines(prior: Any, data: Shapes, guidance: float) -> dict[str, float]:
    """Mean cosines of drawn embeddings to the true ones, and to those of the next caption."""
    _, held = real_items(data)
    assert held is not None
    true = F.normalize(held["attributes"], dim=1)
    drawn = prior.fill(held, guidance=guidance, seed=0)["attributes"]
    return {"own": float((drawn * true).sum(1).mean()), "other": float((drawn * true.roll(1, 0)).sum(1).mean())}


def sheet(prior: Any, decoder: Any, data: Shapes) -> torch.Tensor:
    """Held-out scenes, and below them what the decoder makes of each way of `TOLD` with guidance, from the same noise."""
    _, held = real_items(data)
    assert held is not None
    some = take(held, torch.arange(SHOWN))
    rows = [some["x"]]
    for how in TOLD.values():
        pair = Pair(prior, decoder, *how)
        rows.append(pair.sample(SHOWN, pair.condition(some), guidance=3.0, seed=0).cpu())
    return torch.cat(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the page."""
    runs: Path = parser("python -m benchmarks.unclip", __doc__).parse_args(argv).runs
    train(runs, [PRIOR, DECODER])
    prior, decoder = (diffx.load(str(run.folder(runs))) for run in (PRIOR, DECODER))
    data = Shapes(size=16, spans=False)
    near = {guidance: cosines(prior, data, guidance) for guidance in (1.0, 2.0)}
    found = {
        (told, guidance): evaluate(Pair(prior, decoder, *how), data, n=300, guidance=guidance, folder=runs / "unclip",
                                   name=f"{told.replace(' ', '-')}-{guidance:g}")["figures"]
        for told, how in TOLD.items() for guidance in (1.0, 3.0)
    }  # fmt: skip
    lines = [[told, f"{guidance:g}", *(f"{figures[name]['value']:.3f}" for name in SCENES)] for (told, guidance), figures in found.items()]
    (runs / "unclip.json").write_text(json.dumps([near, lines], indent=1), encoding="utf-8")
    rows = [[f"{guidance:g}", f"{cosine['own']:.4f}", f"{cosine['other']:.4f}"] for guidance, cosine in near.items()]
    fill("techniques/prior.md", "cosines", table(["Guidance", "cosine to its own", "to another's"], rows))
    fill("techniques/prior.md", "decoder", table(["Told", "Guidance", *SCENES], lines))
    media.save(media.grid(sheet(prior, decoder, data), columns=SHOWN), DOCS / "images" / "shapes-prior.png")
    print(near, *lines, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
