"""The one list of networks that the tests of all rooms run over: a name, a small network, the shape of its data, conditions for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffx.conditions import Cond
from diffx.networks import (
    MLP,
    RIN,
    DanceUNet,
    DiffWave,
    DiT,
    EfficientUNet,
    MousaiUNet,
    MPUNet,
    Placed,
    PriorTransformer,
    SongUNet,
    SpaceToDepth,
    UNet,
    UViT,
    VideoUNet,
    WaveUNet,
)


def everything(net: nn.Module, n: int, size: tuple[int, ...]) -> Cond:
    """A random bundle of all conditions that ``net`` takes, for ``n`` samples; sources have 5 tokens, the last two masked for row 0."""
    takes = net.conditions
    tokens = {name: torch.randn(n, 5, width) for name, width in takes.tokens.items()}
    mask = torch.ones(n, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Cond(
        label=torch.arange(n) % takes.classes if takes.classes else None,
        vectors={name: torch.randn(n, width) for name, width in takes.vectors.items()},
        tokens=tokens,
        masks=dict.fromkeys(tokens, mask),
        maps={name: torch.rand(n, channels, *size) * 2 - 1 for name, channels in takes.maps.items()},
    )


@dataclass(frozen=True)
class Case:
    """``make()`` builds a small network for data of ``shape``.

    ``fresh_zero``: it returns exactly zero before training; False: hardly anything; None: neither is promised. ``carry``: shape of what it
    hands from call to call, per sample, beside its output; () for networks that hand nothing on. ``rounding``: hidden and absent conditions
    may differ by it, where conditions are part of the sequence that is computed.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 8, 8)
    fresh_zero: bool | None = True
    carry: tuple[int, ...] = ()
    rounding: float = 0.0

    def data(self, n: int = 3) -> tuple[Tensor, Tensor]:
        """Random data and noise coordinates."""
        return torch.randn(n, *self.shape), torch.linspace(-1, 1, n)

    def cond(self, net: nn.Module, n: int = 3) -> Cond:
        """All conditions of the network."""
        return everything(net, n, self.shape[1:])

    def handed(self, n: int = 3) -> dict[str, Tensor]:
        """What an earlier call handed on, as keywords."""
        return {"carry": torch.randn(n, *self.carry)} if self.carry else {}

    def awake(self) -> nn.Module:
        """A network in eval mode whose zero weights are drawn instead, so that every part of it shows in the output."""
        net = self.make().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.abs().max() < 1e-3:
                    parameter.normal_(std=0.1)
        return net


def output(net: nn.Module, *inputs: object, **handed: Tensor) -> Tensor:
    """What the network says of the data, without what it hands on."""
    out = net(*inputs, **handed)
    return out[0] if isinstance(out, tuple) else out


SMALL = {"width": 16, "mults": (1, 2), "blocks": 1}
SMALL_RIN = {"size": 8, "patch": 2, "width": 16, "latents": 4, "latent_width": 16, "blocks": 1, "depth": 1, "heads": 2, "read_heads": 2}
SMALL_UVIT = {"size": 8, "width": 16, "mults": (1,), "blocks": 1, "middle": 24, "depth": 2, "heads": 2}
NETWORKS = {
    "unet": Case(lambda: UNet(3, **SMALL)),
    "unet_all": Case(
        lambda: UNet(
            3, 6, **SMALL, classes=4, vectors={"size": 2}, tokens={"t5": 12, "clip": 7}, maps={"low_res": 3, "mask": 1}, head_dim=8
        )
    ),
    "unet_ddpm": Case(
        lambda: UNet(
            3, width=16, mults=(1, 1, 2), blocks=(1, 2, 1), attention_levels=(1,), scale_shift=False, resample="conv", skip_scale=0.7
        )
    ),
    "efficient": Case(lambda: EfficientUNet(3, width=16, mults=(1, 2), blocks=(1, 2), head_dim=16)),
    "efficient_all": Case(
        lambda: EfficientUNet(
            3,
            6,
            width=16,
            mults=(1, 2),
            blocks=1,
            attention_levels=(),
            cross_levels=(-1,),
            classes=4,
            vectors={"size": 2},
            tokens={"t5": 12, "clip": 7},
            maps={"low_res": 3, "mask": 1},
            head_dim=8,
        )
    ),
    "ddpmpp": Case(lambda: SongUNet(3, **SMALL, classes=4, vectors={"augment": 9}), fresh_zero=False),
    "ncsnpp": Case(
        lambda: SongUNet(3, **SMALL, maps={"low_res": 3}, embedding="fourier", pyramid=True, taps=(1, 3, 3, 1)), fresh_zero=False
    ),
    "mp_unet": Case(lambda: MPUNet(3, **SMALL, head_dim=16)),
    "mp_unet_all": Case(
        lambda: MPUNet(3, 6, **SMALL, head_dim=8, classes=4, vectors={"size": 2}, maps={"low_res": 3, "mask": 1}, dropout=0.1)
    ),
    "dit": Case(lambda: DiT(3, size=8, width=16, depth=2, heads=2, other_sizes="stretch")),
    "dit_all": Case(
        lambda: DiT(
            3, 6, size=8, width=32, depth=2, heads=4, classes=4, vectors={"size": 2}, maps={"low_res": 3, "mask": 1}, other_sizes="count"
        )
    ),
    "dit_clips": Case(
        lambda: DiT(3, size=(4, 8, 8), patch=(2, 2, 2), width=16, depth=1, heads=2, maps={"known": 1}, other_sizes="stretch"),
        shape=(3, 4, 8, 8),
    ),
    "dit_text": Case(lambda: DiT(3, size=8, width=16, depth=2, heads=2, tokens={"t5": 12, "clip": 7}, other_sizes="stretch")),
    "rin": Case(lambda: RIN(3, **SMALL_RIN, other_sizes="stretch"), carry=(4, 16)),
    "rin_all": Case(
        lambda: RIN(
            3,
            6,
            **SMALL_RIN,
            classes=4,
            vectors={"size": 2},
            tokens={"t5": 12, "clip": 7},
            maps={"low_res": 3, "mask": 1},
            standardise=True,
            other_sizes="stretch",
        ),
        carry=(4, 16),
    ),
    "rin_clips": Case(
        lambda: RIN(3, **{**SMALL_RIN, "size": (4, 8, 8), "patch": (1, 4, 4)}, other_sizes="stretch"), shape=(3, 4, 8, 8), carry=(4, 16)
    ),
    "uvit": Case(lambda: UViT(3, **SMALL_UVIT, other_sizes="stretch")),
    "uvit_all": Case(
        lambda: UViT(
            3,
            6,
            **SMALL_UVIT,
            patch=2,
            classes=4,
            vectors={"size": 2},
            tokens={"t5": 12, "clip": 7},
            maps={"low_res": 3, "mask": 1},
            other_sizes="stretch",
        )
    ),
    "deep_pixels": Case(lambda: SpaceToDepth(UNet(12, 24, **SMALL, classes=4, maps={"low_res": 12}))),
    "placed": Case(lambda: Placed(UNet(3, 6, **SMALL, classes=4, maps={"place": 4, "low_res": 3}))),
    "video_unet": Case(lambda: VideoUNet(UNet(3, **SMALL), heads=2), shape=(3, 4, 8, 8)),
    "video_unet_all": Case(
        lambda: VideoUNet(
            UNet(3, 6, **SMALL, classes=4, vectors={"size": 2}, tokens={"t5": 12, "clip": 7}, maps={"low_res": 3, "mask": 1}),
            attention_levels=(-1,),
            conv_levels=None,
        ),
        shape=(3, 4, 8, 8),
    ),
    "video_ddpmpp": Case(lambda: SpaceToDepth(VideoUNet(SongUNet(12, **SMALL, classes=4), heads=2)), shape=(3, 3, 8, 8), fresh_zero=False),
    "wave_unet": Case(lambda: WaveUNet(2, widths=(8, 12, 16), factors=(2, 3), blocks=(1, 2, 1)), shape=(2, 24)),
    "wave_unet_all": Case(
        lambda: WaveUNet(
            1,
            2,
            widths=(8, 16),
            factors=(4,),
            attention_levels=(0, 1),
            cross_levels=(1,),
            classes=4,
            vectors={"pitch": 3},
            tokens={"t5": 12, "clip": 7},
            maps={"low_rate": 1, "known": 2},
            head_dim=8,
        ),
        shape=(1, 32),
    ),
    "diffwave": Case(lambda: DiffWave(2, width=8, layers=3, cycle=2), shape=(2, 20)),
    "deep_samples": Case(
        lambda: SpaceToDepth(DiffWave(6, width=8, layers=3, tokens={"mel": 5}, maps={"known": 3}, stretch=(2,)), 3, axes=1), shape=(2, 30)
    ),
    "diffwave_all": Case(
        lambda: DiffWave(
            1,
            2,
            width=8,
            layers=3,
            cycle=2,
            classes=4,
            vectors={"pitch": 3},
            tokens={"mel": 6},
            maps={"low_rate": 1, "known": 2},
            stretch=(2, 4),
        ),
        shape=(1, 40),
    ),
    "dance": Case(lambda: DanceUNet(2, widths=(8, 16, 32, 32), attention=1), shape=(2, 32)),
    "mousai": Case(
        lambda: MousaiUNet(
            1,
            2,
            widths=(8, 16),
            factors=(2, 4),
            items=(1, 2),
            attention_levels=1,
            classes=4,
            vectors={"pitch": 3},
            maps={"known": 1},
            emb=16,
        ),
        shape=(1, 32),
        fresh_zero=None,
    ),
    "mlp": Case(lambda: MLP(2, width=16, depth=2, classes=4, vectors={"size": 2}), shape=(2,)),
    "prior": Case(
        lambda: PriorTransformer(6, width=16, depth=2, heads=2, tokens={"t5": 12, "clip": 7}, vectors={"size": 2}),
        shape=(6,),
        rounding=1e-5,
    ),
    "mlp_curve": Case(lambda: MLP(12, width=16), shape=(3, 4)),
}
