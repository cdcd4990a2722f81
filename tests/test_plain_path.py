"""What is done for speed changes no result: each road beside the plain one."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, ToTensor

from diffx import EDM, Cond, Denoiser, UNet
from diffx.callbacks import EMA, Checkpoints, Guard, Preemption, ProgressLine, Throughput
from diffx.data import Arrays, DataModule, Digits
from diffx.networks.layers import Pointwise

STEPS, BATCH = 6, 16


def trained(folder, callbacks, adamw, **options):
    """Weights of an EDM after a few steps on the digits."""
    torch.manual_seed(0)
    net = UNet(1, width=16, mults=(1, 2), blocks=1, attention_levels=(1,), classes=10, dropout=0.1)
    module = EDM(Denoiser(net), shape=(1, 8, 8), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, **adamw), drop=0.1)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=STEPS, max_epochs=-1, callbacks=callbacks, default_root_dir=folder,
                        enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=None,
                        val_check_interval=1000, **options)  # fmt: skip
    trainer.fit(module, Digits(BATCH))
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class PlainAverages(L.Callback):
    """Averages one weight after the other, as the formula of `HalfLife` reads."""

    def __init__(self, halflife):
        self.decay, self.weights = 0.5 ** (BATCH / halflife), {}

    def on_train_start(self, trainer, module):
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_train_batch_end(self, trainer, module, *args):
        for name, p in module.named_parameters():
            self.weights[name] = self.decay * self.weights[name] + (1 - self.decay) * p.detach()


def test_the_default_run_trains_what_a_bare_one_with_plain_loops_trains(tmp_path):
    """Fused AdamW, averages in one kernel, logging on kept steps, the callbacks that are there by default."""
    ema, plain = EMA(halflife=40.0, rampup=None), PlainAverages(40.0)
    callbacks = [ema, Guard(), Throughput(), Preemption(), ProgressLine(every_n_steps=2), Checkpoints(every_n_steps=3)]
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    fast = trained(tmp_path / "fast", callbacks, {"fused": True}, logger=logger, log_every_n_steps=2)
    bare = trained(tmp_path / "bare", [plain], {"fused": False, "foreach": False}, logger=False, enable_checkpointing=False,
                   enable_progress_bar=False)  # fmt: skip
    assert fast.keys() == bare.keys()
    for name, weight in bare.items():
        torch.testing.assert_close(fast[name], weight, rtol=1e-4, atol=5e-6)  # weights move by up to 6e-3
    averaged = ema.shadows.weights["ema"]
    assert averaged.keys() == plain.weights.keys()
    for name, weight in plain.weights.items():
        torch.testing.assert_close(averaged[name], weight, rtol=1e-4, atol=5e-6)  # weights move by up to 6e-3


def test_a_linear_map_over_channels_is_a_1x1_convolution():
    layer, x = Pointwise(6, 4), torch.randn(2, 6, 5, 3)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[:, :, None, None], layer.bias))


def test_maps_laid_out_by_channels_give_the_same_answer_and_gradients(monkeypatch):
    net, x = UNet(3, width=16, mults=(1, 2), blocks=1, attention_levels=(1,), classes=4, resample="conv"), torch.randn(2, 3, 8, 8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)

    def answer():
        net.zero_grad()
        out = net(x, torch.rand(2, generator=torch.Generator().manual_seed(0)), Cond(label=torch.tensor([1, 2])))
        out.square().mean().backward()
        return [out.detach(), *(p.grad.clone() for p in net.parameters())]

    fast = answer()
    monkeypatch.setattr(torch, "channels_last", torch.contiguous_format)
    for a, b in zip(fast, answer(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_pictures_in_memory_are_those_that_transforms_make_one_by_one(flip):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    data = Arrays({"images": pixels}, 4, flip=flip)
    source, rows = data.train, np.array([3, 0, 11, 7, 3])
    batch = data.on_after_batch_transfer(source.fetch(rows, 2), 0)
    transform = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    for x, row in zip(batch["x"], rows, strict=True):
        plain = transform(pixels[row])
        mirrored = source.flip and source._mirrored(2)[row]
        torch.testing.assert_close(x, plain.flip(-1) if mirrored else plain)
    assert isinstance(data, DataModule)
