"""Training steps of networks over clips, sound, interfaces and tokens, beside those of the packages that people take for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Setting
from benchmarks.speed.images import steps
from benchmarks.speed.peers import muse_transformer
from benchmarks.speed.rows import Goal, Makers, Row
from diffx.conditions import Cond
from diffx.networks import RIN, MousaiUNet, UNet, VideoUNet
from diffx.networks.token_transformer import TokenTransformer

__all__ = ["MEDIA"]


# Video ----------------------------------------------------------------------------------------------------------------------------------

CLIPS, FRAMES, CLIP_SIDE = 2, 8, 32


def video_makers(setting: Setting) -> Makers:
    """Factorised U-Nets of 64, 128 and 256 channels over 8 frames of 32 x 32, attention over time on every level."""
    x, target = setting.randn(2, CLIPS, 3, FRAMES, CLIP_SIDE, CLIP_SIDE)
    noise = torch.rand(CLIPS, device=setting.device)

    def theirs() -> nn.Module:
        from video_diffusion_pytorch import Unet3D

        return Unet3D(64, dim_mults=(1, 2, 4))

    def ours() -> nn.Module:
        return VideoUNet(UNet(width=64, mults=(1, 2, 4), blocks=2, attention_levels=(), resample="conv"), head_dim=32)

    nets = {"video-diffusion-pytorch Unet3D": theirs, "diffx VideoUNet": ours}
    return steps(setting, lambda net: (net(x, noise) - target).square().mean(), nets, CLIPS)


# Sound: the same network --------------------------------------------------------------------------------------------------------------

SOUNDS, LENGTH = 4, 16384
WIDTHS, FACTORS, ITEMS, ATTENDING, EMB = (32, 64, 128, 256), (1, 4, 4, 4), (1, 2, 2, 2), 1, 256


def archinet() -> nn.Module:
    """Moûsai's U-Net put together from a-unet's parts, as audio-diffusion-pytorch does."""
    from a_unet import TimeConditioningPlugin
    from a_unet.apex import AttentionItem, ModulationItem, ResnetItem, SkipModulate, XBlock, XUNet

    def block(level: int) -> Any:
        attends = level >= len(WIDTHS) - ATTENDING
        items = [ResnetItem, ModulationItem, *([AttentionItem] if attends else [])] * ITEMS[level]
        return XBlock(channels=WIDTHS[level], factor=FACTORS[level], items=items, skip_t=SkipModulate)

    return TimeConditioningPlugin(XUNet)(
        dim=1, in_channels=2, out_channels=2, blocks=[block(level) for level in range(len(WIDTHS))],
        modulation_features=EMB, attention_features=64, attention_heads=8, resnet_groups=8,
    )  # fmt: skip


def audio_makers(setting: Setting) -> Makers:
    """The same U-Net over 16,384 stereo samples, weight for weight."""
    x, target = setting.randn(2, SOUNDS, 2, LENGTH)
    noise = torch.rand(SOUNDS, device=setting.device)

    def loss(net: nn.Module) -> Tensor:
        out = net(x, noise) if isinstance(net, MousaiUNet) else net(x, time=noise)
        return (out - target).square().mean()

    def ours() -> nn.Module:
        return MousaiUNet(2, widths=WIDTHS, factors=FACTORS, items=ITEMS, attention_levels=ATTENDING, emb=EMB)

    return steps(setting, loss, {"a-unet": archinet, "diffx MousaiUNet": ours}, SOUNDS)


# Interfaces ---------------------------------------------------------------------------------------------------------------------------

PICTURES, SIDE = 4, 64


def rin_makers(setting: Setting) -> Makers:
    """Interfaces of 256 patches and 128 latents of width 512, six rounds of two layers.

    The package adds to the paper a linear attention among the patches; it can be switched off, and is here, since ours follows the paper.
    """
    x, target = setting.randn(2, PICTURES, 3, SIDE, SIDE)
    noise = torch.rand(PICTURES, device=setting.device)

    def theirs() -> nn.Module:
        from rin_pytorch import RIN as Theirs

        return Theirs(256, SIDE, patch_size=4, depth=6, latent_self_attn_depth=2, dim_latent=512, num_latents=128, heads=8, dim_head=32,
                      patches_self_attn=False)  # fmt: skip

    def ours() -> nn.Module:
        return RIN(3, size=SIDE, patch=4, width=256, latents=128, latent_width=512, blocks=6, depth=2, heads=8, read_heads=8)

    def loss(net: nn.Module) -> Tensor:
        out = net(x, noise)
        return ((out[0] if isinstance(out, tuple) else out) - target).square().mean()

    return steps(setting, loss, {"rin-pytorch": theirs, "diffx RIN": ours}, PICTURES)


# Tokens -------------------------------------------------------------------------------------------------------------------------------

IDS, GRID, CODES, WIDTH, DEPTH, HEADS, WORDS, TEXT = 2, 16, 1024, 512, 8, 8, 16, 512


class TimmTokens(nn.Module):
    """A masked transformer of plain timm blocks, which hear of no text."""

    def __init__(self) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.table, self.positions = nn.Embedding(CODES + 1, WIDTH), nn.Parameter(torch.zeros(1, GRID * GRID, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, qkv_bias=True) for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CODES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.table(ids) + self.positions)))


def token_makers(setting: Setting) -> Makers:
    """Masked transformers of width 512 and depth 8 over 256 ids, half of them hidden, told 16 words of text where they take any."""
    target = torch.randint(0, CODES, (IDS, GRID, GRID), device=setting.device)
    hidden = torch.rand(IDS, GRID, GRID, device=setting.device) < 0.5
    words = setting.randn(IDS, WORDS, TEXT)
    cond = Cond(tokens={"t5": words})
    ids = torch.where(hidden, CODES, target)

    def loss(net: nn.Module) -> Tensor:
        if isinstance(net, TokenTransformer):
            logits = net(ids, cond if net.conditions.tokens else Cond()).flatten(1, 2)
        else:
            logits = net(ids.flatten(1)) if isinstance(net, TimmTokens) else net(ids.flatten(1), text_embeds=words)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def ours(tokens: dict[str, int] | None) -> nn.Module:
        return TokenTransformer(CODES, (GRID, GRID), width=WIDTH, depth=DEPTH, heads=HEADS, dropout=0.0, tokens=tokens)

    def muse() -> nn.Module:
        options = {"num_tokens": CODES, "seq_len": GRID * GRID, "depth": DEPTH, "dim_head": WIDTH // HEADS, "heads": HEADS}
        return muse_transformer(WIDTH, TEXT, **options)

    nets = {
        "muse-maskgit-pytorch": muse,
        "plain timm blocks": TimmTokens,
        "diffx TokenTransformer, text": partial(ours, {"t5": TEXT}),
        "diffx TokenTransformer": partial(ours, None),
    }
    return steps(setting, loss, nets, IDS)


MEDIA: tuple[Row, ...] = (
    Row("video", "video U-Net, 8 x 32 x 32, batch 2, per operation", video_makers, (
        Goal("diffx VideoUNet", "video-diffusion-pytorch Unet3D", 0.75, per_flop=True),
    ), rounds=5, networks=True),
    Row("audio", "U-Net over sound, 2 x 16,384, batch 4", audio_makers, (Goal("diffx MousaiUNet", "a-unet", 0.85),), networks=True),
    Row("rin", "RIN, 64 x 64 in patches of 4, batch 4, per operation", rin_makers, (
        Goal("diffx RIN", "rin-pytorch", 0.95, per_flop=True),
    ), networks=True),
    Row("tokens", "masked transformer, 256 ids, batch 2, per operation", token_makers, (
        Goal("diffx TokenTransformer, text", "muse-maskgit-pytorch", 0.80, per_flop=True),
        Goal("diffx TokenTransformer", "plain timm blocks", 1.03, per_flop=True),
    ), networks=True),
)  # fmt: skip
