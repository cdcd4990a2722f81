"""A training step of our DiT-S/2 against a minimal one from timm's layers and diffusers' DiTTransformer2DModel.

Batch 4 of latents 4 x 32 x 32 (256 tokens), eight output channels, 1,000 classes, fused AdamW, float32. The minimal one is what a page of
code over timm's patch embedding, attention and perceptron comes to: the same network without checks, conditions and names. diffusers
repeats the embedders in every block, hence its 7 million more parameters.
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import DiTTransformer2DModel
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

from benchmarks.harness import arguments, compare, report, training_step
from diffx.conditions import Cond
from diffx.networks import DiT
from diffx.networks.embedders import sinusoid

BATCH, SIZE, PATCH, CHANNELS, OUT, CLASSES = 4, 32, 2, 4, 8, 1000
WIDTH, DEPTH, HEADS = 384, 12, 6


class TimmBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(WIDTH, HEADS, qkv_bias=True)
        self.mlp = Mlp(WIDTH, 4 * WIDTH, act_layer=partial(nn.GELU, approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, 2)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class TimmDiT(nn.Module):
    """The shortest DiT that timm's layers allow."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = PatchEmbed(SIZE, PATCH, CHANNELS, WIDTH)
        self.positions = nn.Parameter(torch.randn(1, self.patches.num_patches, WIDTH), requires_grad=False)
        self.noise = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.blocks = nn.ModuleList(TimmBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.head = nn.Linear(WIDTH, PATCH * PATCH * OUT)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        c = self.noise(sinusoid(noise, 256)) + self.label(label)
        h = self.patches(x) + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, 2)
        h = self.head(self.norm(h) * (1 + scale) + shift)
        side = SIZE // PATCH
        return torch.einsum("bhwpqc->bchpwq", h.view(-1, side, side, PATCH, PATCH, OUT)).reshape(-1, OUT, SIZE, SIZE)


def theirs() -> DiTTransformer2DModel:
    """The peer of diffusers."""
    return DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS, out_channels=OUT, num_layers=DEPTH,
        sample_size=SIZE, patch_size=PATCH, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip


def main() -> None:
    """Run the comparison."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    x, target = torch.randn(BATCH, CHANNELS, SIZE, SIZE), torch.randn(BATCH, OUT, SIZE, SIZE)
    time, label = torch.randint(0, 1000, (BATCH,)), torch.randint(0, CLASSES, (BATCH,))
    cond, noise = Cond(label=label), time.float()
    subjects = [
        training_step("timm layers, minimal", TimmDiT(), lambda net: (net(x, noise, label) - target).square().mean()),
        training_step("diffx DiT", DiT.published("S/2"), lambda net: (net(x, noise, cond) - target).square().mean()),
        training_step("diffusers DiTTransformer2DModel", theirs(), lambda net: (net(x, time, label).sample - target).square().mean()),
    ]
    report("DiT-S/2 training step", compare(subjects, args.rounds), args.json)


if __name__ == "__main__":
    main()
