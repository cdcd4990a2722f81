"""What the size and crop condition is for: a network trained on crops that can be asked for whole things."""

from __future__ import annotations

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from diffx import EDM, Cond, Denoiser, EDMPrecond
from diffx.data import Buckets, Mapped, normalise, size_crop
from diffx.data.shapes import Rules, render, scene
from diffx.data.shapes.render import to_uint8
from diffx.lr_schedules import Cosine
from diffx.metrics.shapes_judge import ShapesJudge
from diffx.networks import UNet
from diffx.schedules import LogNormal

SIDE, MARGIN = 16, 2
WHOLE, CUT = (SIDE, SIDE, 0, 0, SIDE, SIDE), (2 * SIDE, SIDE, SIDE // 2, 0, SIDE, SIDE)  # frames: a square; a tall picture's middle


class Canvases:
    """Scenes with an empty margin, a third of them square, tall and wide each: the square ones are shown whole, the others are cut."""

    def __init__(self, n: int = 6000) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        sides = ((SIDE, SIDE), (2 * SIDE, SIDE), (SIDE, 2 * SIDE))[i % 3]
        inner = (sides[0] - 2 * MARGIN, sides[1] - 2 * MARGIN)
        content = scene(0, i, Rules((inner[0] / min(inner), inner[1] / min(inner)), (3, 3), (0.3, 0.45)))
        sheet = np.full((*sides, 3), to_uint8(content.background), dtype=np.uint8)
        sheet[MARGIN:-MARGIN, MARGIN:-MARGIN] = render([content], inner, 3)[0][0].transpose(1, 2, 0)
        return {"image": sheet}


def cut(x: torch.Tensor) -> float:
    """Share of pictures in which an object meets the border."""
    found = ShapesJudge()(x)
    masks = found.masks & found.present[..., None, None]
    inner = masks.clone()
    inner[..., 1:-1, 1:-1] = False
    return inner.flatten(1).any(1).float().mean().item()


def data(batch_size: int = 32) -> Mapped:
    return Mapped(Canvases(), batch_size, label=None, val=0.05, buckets=Buckets([(SIDE, SIDE)], beyond="nearest"))


def test_what_the_data_shows():
    """The squares touch no border; of the cut ones, half and more do."""
    batch = data().train.fetch(np.arange(600), 0)
    x, square = normalise(batch["x"]), (batch["frame"][:, :2] == SIDE).all(1)
    assert cut(x[square]) == 0 and cut(x[~square]) > 0.5


@pytest.mark.slow
def test_whole_things_are_drawn_when_asked_for():
    """2,000 steps."""
    torch.manual_seed(0)
    net = UNet(
        channels=3, width=16, mults=(1, 2, 2), blocks=1, attention_levels=(2,), heads=2, resample="conv", vectors={"size_crop": 1536}
    )
    module = EDM(
        Denoiser(net, EDMPrecond(sigma_data=0.28)), shape=(3, SIDE, SIDE), schedule=LogNormal(-0.4, 1.3),
        optimizer=partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), fused=True), lr_schedule=Cosine(ramp=3200, floor=0.02),
    )  # fmt: skip
    L.Trainer(max_steps=2000, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
              enable_model_summary=False, limit_val_batches=0, gradient_clip_val=1.0).fit(module, data())  # fmt: skip
    shares = []
    for frame in (WHOLE, CUT):
        cond = Cond(vectors={"size_crop": size_crop(torch.tensor([frame] * 200))})
        shares.append(cut(module.sample(200, cond, seed=0)))
    print(f"objects at the border: {shares[0]:.3f} when asked for a whole picture, {shares[1]:.3f} for the middle of a tall one")
    assert shares[0] < 0.15 and shares[1] > 0.45
