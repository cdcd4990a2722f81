"""A training step of our U-Net against diffusers' UNet2DModel: the same network, parameter for parameter and operation for operation.

Batch 8 of 3 x 32 x 32 pictures, widths (64, 128, 128), two blocks a level, attention at 16 x 16 in heads of 64 channels, 6.47 million
parameters, embedding added, resolution changed by convolutions. Both are trained by the fused AdamW in float32. diffusers drops single
values with probability .1 (and is also measured without); ours drops channels with the same probability, or nothing, which is its default.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from benchmarks.harness import arguments, compare, report, training_step
from diffx.networks import UNet

BATCH, SIZE, DROPOUT = 8, 32, 0.1


def ours(dropout: float = 0.0, **options: object) -> UNet:
    """Our network in the layout of diffusers'."""
    return UNet(width=64, mults=(1, 2, 2), attention_levels=(1,), scale_shift=False, resample="conv", dropout=dropout, **options)


def theirs(dropout: float = DROPOUT) -> UNet2DModel:
    """The peer."""
    return UNet2DModel(
        block_out_channels=(64, 128, 128), down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=64, dropout=dropout,
    )  # fmt: skip


def main() -> None:
    """Run the comparison."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    x, target = torch.randn(2, BATCH, 3, SIZE, SIZE)
    noise = torch.rand(BATCH)

    def squared(net: nn.Module) -> Tensor:
        out = net(x, noise)
        return ((out if isinstance(out, Tensor) else out.sample) - target).square().mean()

    subjects = [
        training_step("diffusers UNet2DModel, dropout .1", theirs(), squared),
        training_step("diffx UNet, channel dropout .1", ours(DROPOUT), squared),
        training_step("diffx UNet, no dropout", ours(), squared),
        training_step("diffusers UNet2DModel, no dropout", theirs(0.0), squared),
    ]
    report("U-Net training step", compare(subjects, args.rounds), args.json)


if __name__ == "__main__":
    main()
