"""Training steps of networks over pictures: U-Nets beside diffusers', diffusion transformers beside plain timm blocks and diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Setting, Subject, training_step
from benchmarks.speed.rows import Goal, Makers, Row
from diffx.averages import HalfLife
from diffx.callbacks.shadows import Shadows
from diffx.conditions import Cond
from diffx.networks import DiT, UNet
from diffx.networks.dit import DIT_SIZES
from diffx.networks.embedders import sinusoid

__all__ = ["IMAGES", "dit_makers", "steps", "unet_makers"]

PICTURES, SIDE, DROPOUT = 8, 32, 0.1
LATENT, LATENTS, OUT, CLASSES, PATCH = 32, 4, 8, 1000, 2

Net = Callable[[], nn.Module]


def steps(setting: Setting, loss: Callable[[nn.Module], Tensor], nets: dict[str, Net], images: int) -> Makers:
    """One training step of each network, made when it is asked for."""

    def made(name: str, net: Net) -> Subject:
        return training_step(name, net(), loss, setting=setting, images=images)

    return {name: partial(made, name, net) for name, net in nets.items()}


# U-Nets: the same network, parameter for parameter and operation for operation ----------------------------------------------------------


def unet(dropout: float = 0.0) -> UNet:
    """Ours in the layout of diffusers'; it drops channels, not single values."""
    return UNet(width=64, mults=(1, 2, 2), attention_levels=(1,), scale_shift=False, resample="conv", dropout=dropout)


def diffusers_unet(dropout: float = 0.0) -> nn.Module:
    """The peer; it drops single values."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        block_out_channels=(64, 128, 128), down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=64, dropout=dropout,
    )  # fmt: skip


def lucidrains_unet() -> nn.Module:
    """A network of about the same size, not the same one."""
    from denoising_diffusion_pytorch import Unet

    return Unet(64, dim_mults=(1, 2, 2))


def squared(setting: Setting, pictures: int = PICTURES) -> Callable[[nn.Module], Tensor]:
    """The squared error of a network's answer to random pictures."""
    x, target = setting.randn(2, pictures, 3, SIDE, SIDE)
    noise = setting.randn(pictures)

    def loss(net: nn.Module) -> Tensor:
        out = net(x, noise)
        return ((out if isinstance(out, Tensor) else out.sample) - target).square().mean()

    return loss


def unet_makers(setting: Setting, pictures: int = PICTURES) -> Makers:
    """One training step, the fused AdamW for all."""
    nets: dict[str, Net] = {
        "diffusers UNet2DModel, dropout .1": partial(diffusers_unet, DROPOUT),
        "diffx UNet, channel dropout .1": partial(unet, DROPOUT),
        "diffx UNet": unet,
        "diffusers UNet2DModel": diffusers_unet,
        "denoising-diffusion-pytorch Unet": lucidrains_unet,
    }
    return steps(setting, squared(setting, pictures), nets, pictures)


def default_steps(setting: Setting) -> Makers:
    """The step that each side trains with by default, averages of the weights included."""
    loss = squared(setting)

    def theirs(name: str, dropout: float) -> Subject:
        from diffusers.training_utils import EMAModel

        def averages(net: nn.Module) -> Callable[[], object]:
            ema = EMAModel(net.parameters())
            return lambda: ema.step(net.parameters())

        plain = Setting(setting.device, setting.precision, setting.compile, fused=False)
        return training_step(name, diffusers_unet(dropout), loss, setting=plain, images=PICTURES, after=averages)

    def ours(name: str, dropout: float) -> Subject:
        def averages(net: nn.Module) -> Callable[[], object]:
            shadows = Shadows(dict(net.named_parameters()), {"ema": HalfLife(20_000)})
            return lambda: shadows.update(PICTURES)

        return training_step(name, unet(dropout), loss, setting=setting, images=PICTURES, after=averages)

    return {
        name: partial(side, name, dropout)
        for name, side, dropout in (
            ("diffusers, AdamW, EMAModel, dropout .1", theirs, DROPOUT),
            ("diffx, channel dropout .1", ours, DROPOUT),
            ("diffx", ours, 0.0),
            ("diffusers, AdamW, EMAModel", theirs, 0.0),
        )
    }


# Diffusion transformers -----------------------------------------------------------------------------------------------------------------


def timm_block(width: int, heads: int) -> nn.Module:
    """A block of a page of code over timm's attention and perceptron: ours without checks, conditions and names."""
    from timm.layers import Attention, Mlp

    class TimmBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
            self.attn = Attention(width, heads, qkv_bias=True)
            self.mlp = Mlp(width, 4 * width, act_layer=partial(nn.GELU, approximate="tanh"))
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, 2)
            x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    return TimmBlock()


class TimmDiT(nn.Module):
    """The shortest DiT that timm's layers allow."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        from timm.layers import PatchEmbed

        super().__init__()
        self.patches = PatchEmbed(LATENT, PATCH, LATENTS, width)
        self.positions = nn.Parameter(torch.randn(1, self.patches.num_patches, width), requires_grad=False)
        self.noise = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(timm_block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, PATCH * PATCH * OUT)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        c = self.noise(sinusoid(noise, 256)) + self.label(label)
        h = self.patches(x) + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, 2)
        h = self.head(self.norm(h) * (1 + scale) + shift)
        side = LATENT // PATCH
        return torch.einsum("bhwpqc->bchpwq", h.view(-1, side, side, PATCH, PATCH, OUT)).reshape(-1, OUT, LATENT, LATENT)


def diffusers_dit(width: int, depth: int, heads: int) -> nn.Module:
    """The peer of diffusers, which repeats the embedders in every block, hence its millions more of parameters."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=LATENTS, out_channels=OUT, num_layers=depth,
        sample_size=LATENT, patch_size=PATCH, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip


def dit_makers(size: str, batch: int, setting: Setting) -> Makers:
    """One training step of the published DiT with patches of 2: 256 tokens, 1,000 classes, mean and variance."""
    shape = DIT_SIZES[size]
    x, target = setting.randn(batch, LATENTS, LATENT, LATENT), setting.randn(batch, OUT, LATENT, LATENT)
    time, label = (torch.randint(0, 1000, (batch,), device=setting.device) for _ in range(2))
    cond, noise = Cond(label=label), time.float()

    def loss(net: nn.Module) -> Tensor:
        if isinstance(net, DiT):
            out = net(x, noise, cond)
        else:
            out = net(x, noise, label) if isinstance(net, TimmDiT) else net(x, time, label).sample
        return (out - target).square().mean()

    nets: dict[str, Net] = {
        "plain timm blocks": lambda: TimmDiT(*shape),
        "diffx DiT": lambda: DiT.published(f"{size}/{PATCH}"),
        "diffusers DiTTransformer2DModel": lambda: diffusers_dit(*shape),
    }
    return steps(setting, loss, nets, batch)


def _dit_goals() -> tuple[Goal, ...]:
    return Goal("diffx DiT", "plain timm blocks", 1.0), Goal("diffx DiT", "diffusers DiTTransformer2DModel", 0.99)


IMAGES: tuple[Row, ...] = (
    Row("unet", "U-Net, 3 x 32 x 32, batch 8: a step with fused AdamW", unet_makers, (
        Goal("diffx UNet, channel dropout .1", "diffusers UNet2DModel, dropout .1", 0.93),
        Goal("diffx UNet", "diffusers UNet2DModel, dropout .1", 0.90),
    ), networks=True, short=True),
    Row("default_step", "the same, everything as it is by default: optimizer, averages", default_steps, (
        Goal("diffx, channel dropout .1", "diffusers, AdamW, EMAModel, dropout .1", 0.80),
        Goal("diffx", "diffusers, AdamW, EMAModel", 0.80),
    ), networks=True),
    Row("dit_s", "DiT-S/2, batch 4: a step with fused AdamW", partial(dit_makers, "S", 4), _dit_goals(), networks=True, short=True),
    Row("dit_b", "DiT-B/2, batch 2: a step with fused AdamW", partial(dit_makers, "B", 2), _dit_goals(), networks=True, rounds=5),
)  # fmt: skip
