"""Trained modules as diffusers' own classes, which need no diffx: where there is a class that is the same function.

| module | folder |
|---|---|
| `UNet` without conditions on a discrete table, `Euler` on it | ``DDIMPipeline`` of ``UNet2DModel`` and ``DDIMScheduler`` |
| a trained codec that is an ``AutoencoderKL`` of diffusers | that model, its shift and scale in the configuration |

diffusers' DDIM begins with noise of variance one where the process itself has a^2 / (1 + a^2), a the highest level: with the linear
table of DDPM the deviation is 2e-5 less. The pictures differ by about as much. A DiT has no form here, because diffusers' class is not the
published network (see `diffx.interop.dit`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs import KL, Identity
from ..denoiser import EpsPrecond, Timesteps, VPrecond, X0Precond
from ..networks.layers import Norm
from ..networks.unet import UNet
from ..recipes import recipe_of
from ..samplers import Euler
from ..schedules import Table
from .unets import entries_of_unet2d

__all__ = ["stock_of", "write_stock"]

PREDICTS = {EpsPrecond: "epsilon", VPrecond: "v_prediction", X0Precond: "sample"}


def write_stock(module: Any, folder: str | os.PathLike[str], card: str | None = None) -> Path:
    """Write a folder that diffusers loads with its own classes.

    Args:
        module: a `DiffusionModule` with the weights to be written.
        folder: a new folder.
        card: text of ``README.md``.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: there is something already.
        ValueError: see `stock_of`.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; name a new folder")
    stock_of(module).save_pretrained(str(folder))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def stock_of(module: Any) -> Any:
    """The pipeline or model of diffusers that is the same function as a module, with weights of its own.

    Raises:
        ValueError: there is none; says all that stands against it.
    """
    codec = getattr(module, "codec", None)
    if hasattr(module, "reconstruct"):
        if isinstance(codec, KL) and type(codec.vae).__name__ == "AutoencoderKL":
            return _autoencoder(codec)
        raise ValueError(f"the codec of {type(module).__name__} is no AutoencoderKL of diffusers; there is to=safetensors")
    denoiser, sampler = getattr(module, "denoiser", None), getattr(module, "sampler", None)
    net, precond = getattr(denoiser, "net", None), getattr(denoiser, "precond", None)
    coordinate = getattr(precond, "noise", None)
    table = coordinate.table if isinstance(coordinate, Timesteps) else None
    steps = getattr(sampler, "steps", 0)
    checks = {
        "a UNet": isinstance(net, UNet),
        "a network without conditions": not getattr(getattr(net, "conditions", None), "names", ()),
        "EpsPrecond, VPrecond or X0Precond with Timesteps": type(precond) in PREDICTS and table is not None,
        "Euler on the table of those timesteps": type(sampler) is Euler and sampler.schedule == table,
        "steps that divide the table": table is not None and steps > 0 and len(table.table) % steps == 0,
        "no codec": isinstance(codec, Identity),
    }
    if against := [what for what, holds in checks.items() if not holds]:
        raise ValueError(
            f"{type(module).__name__} has no form of diffusers' own classes, which needs {'; '.join(against)}. There are to=diffusers, a "
            "pipeline where diffx is installed, and to=safetensors"
        )
    assert isinstance(net, UNet) and table is not None
    return _ddim(net, table, PREDICTS[type(precond)], tuple(module.shape[-2:]))


def _ddim(net: UNet, table: Table, predicts: str, size: tuple[int, ...]) -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    share = 1 / (1 + table.table.square())  # of the signal in the variance, A in the papers
    betas = 1 - share / torch.cat([share.new_ones(1), share[:-1]])
    scheduler = DDIMScheduler(
        len(betas), trained_betas=betas.tolist(), clip_sample=False, prediction_type=predicts, timestep_spacing="trailing"
    )
    return DDIMPipeline(_unet2d(net, size), scheduler)


def _unet2d(net: UNet, size: tuple[int, ...]) -> nn.Module:
    """``UNet2DModel`` with the weights of a `UNet`, for pictures of one size.

    Raises:
        ValueError: the network has what the class has not.
    """
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        model: Any = UNet2DModel(sample_size=size, **_config(net))
    theirs, own = model.state_dict(), net.state_dict()
    state: dict[str, Tensor] = {}
    for entry in entries_of_unet2d(net):
        for name, part in zip(entry.theirs, own[entry.ours].chunk(len(entry.theirs)), strict=True):
            state[name] = part.reshape(theirs[name].shape).clone()
    model.load_state_dict(state)
    return model.eval()


def _config(net: UNet) -> dict[str, Any]:
    """The configuration of the same network."""
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(UNet).parameters.items()}
    asked: Mapping[str, Any] = {**defaults, **recipe_of(net)}
    levels = len(asked["mults"])
    attends = [any(level % levels == i for level in asked["attention_levels"]) for i in range(levels)]
    widths = [int(mult * asked["width"]) for mult in asked["mults"]]
    heads, groups = asked["heads"], {m.num_groups for m in net.modules() if isinstance(m, Norm)}
    problems = [f"normalisation in {sorted(groups)} groups"] * (len(groups) > 1)
    problems += [f"skip_scale = {asked['skip_scale']}"] * (asked["skip_scale"] != 1)
    problems += [f"heads = {heads}"] * (heads not in (None, 1)) + ["blocks per level"] * (not isinstance(asked["blocks"], int))
    problems += ["heads wider than some maps"] * (heads is None and min(widths) < asked["head_dim"])
    if problems:
        raise ValueError(f"no UNet2DModel of diffusers computes this UNet: {'; '.join(problems)}; there is to=diffusers")
    kind = "resnet" if asked["resample"] == "block" else "conv"
    down = "ResnetDownsampleBlock2D" if kind == "resnet" else "DownBlock2D"
    up = "ResnetUpsampleBlock2D" if kind == "resnet" else "UpBlock2D"
    return {
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownBlock2D" if here else down for here in attends),
        "up_block_types": tuple("AttnUpBlock2D" if here else up for here in attends[::-1]),
        "layers_per_block": asked["blocks"],
        "attention_head_dim": None if heads == 1 else asked["head_dim"],
        "norm_num_groups": next(iter(groups)),
        "attn_norm_num_groups": next(iter(groups)),
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if asked["scale_shift"] else "default",
        "downsample_type": kind,
        "upsample_type": kind,
        "time_embedding_dim": asked["emb_mult"] * asked["width"],
        "dropout": asked["dropout"],
    }


def _autoencoder(codec: KL) -> Any:
    """A copy of the autoencoder whose configuration says how its latents are normalised."""
    import copy

    made = copy.deepcopy(codec.vae).float()
    shift, scale = codec.shift.flatten().tolist(), codec.scale.flatten()
    made.register_to_config(scaling_factor=1.0, shift_factor=None, latents_mean=shift, latents_std=(1 / scale).tolist())
    return made
