"""Codecs: the maps between data space and the space a denoiser works in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .recipes import recipe_of, recorded
from .recipes.record import public_name

__all__ = ["KL", "Codec", "Identity", "Standardised", "draw_latent", "fingerprint", "posterior"]


@runtime_checkable
class Codec(Protocol):
    """Encodes data ``x`` ``(B, *)`` in [-1, 1] to latents ``z`` and back."""

    def encode(self, x: Tensor) -> Tensor:
        """Data to latents."""

    def decode(self, z: Tensor) -> Tensor:
        """Latents to data."""

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the latent of one sample of ``data_shape``."""


@recorded
@dataclass(frozen=True)
class Identity:
    """No codec: the denoiser works on the data itself."""

    def encode(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return ``z``."""
        return z

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Return ``data_shape``."""
        return tuple(data_shape)


@recorded
@dataclass(frozen=True)
class Standardised:
    """Data shifted and scaled to mean 0 and standard deviation 1, without loss.

    Args:
        mean, std: of the data, over all its entries.

    Raises:
        ValueError: a standard deviation that is not positive.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def encode(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``."""
        return (x - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """``z std + mean``."""
        return z * self.std + self.mean

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Return ``data_shape``."""
        return tuple(data_shape)


@recorded
class KL(nn.Module):
    """The latents of a KL autoencoder, shifted and scaled to about unit variance (Rombach et al. 2022, arXiv:2112.10752).

    The encoder gives a normal distribution per picture, its *moments* (mean and log variance). A latent is drawn from it and normalised:
    ``z = (mean + std n - shift) scale``. For an autoencoder of diffusers, shift and scale are what its configuration says
    (``scaling_factor``, ``shift_factor``, ``latents_mean``, ``latents_std``); for another one they are 0 and 1 until `adapt` measures them,
    as `diffx.techniques.Autoencoder` does in training.

    Everything is frozen and stays in ``dtype``, whatever the precision a Trainer gives to the rest: half-precision autoencoders
    overflow. Weights, shift and scale travel in checkpoints, so a model loads although the folder of its autoencoder is gone.

    Args:
        vae: folder of a diffusers autoencoder (or of a pipeline with one in ``vae/``), or the module: diffusers' ``AutoencoderKL``, or any
            with ``encode(x) -> moments (B, 2C, h, w)``, ``decode(latents (B, C, h, w)) -> x`` and the attributes ``channels``,
            ``latent_channels`` and ``factor``.
        latent: ``"sample"`` draws latents, from the default generator; ``"mean"`` takes the means.
        dtype: of the weights and the computation: float32, bfloat16, float16 or float64.

    Raises:
        FileNotFoundError: there is no autoencoder in the folder.
        TypeError: ``vae`` is neither a folder nor a module of this kind.
        ValueError: an unknown ``latent`` or ``dtype``.
    """

    vae: Any
    shift: Tensor
    scale: Tensor

    def __init__(self, vae: str | Path | nn.Module, *, latent: Literal["sample", "mean"] = "sample", dtype: str = "float32") -> None:
        super().__init__()
        if latent not in ("sample", "mean"):
            raise ValueError(f"latent must be 'sample' or 'mean', got {latent!r}")
        if dtype not in ("float32", "bfloat16", "float16", "float64"):
            raise ValueError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}")
        made = _opened(vae) if isinstance(vae, (str, Path)) else vae
        self.channels, self.latent_channels, self.factor = _sizes(made)
        shift, scale = _normalisation(made)
        self.vae = nn.Module.to(made, getattr(torch, dtype)).requires_grad_(False).eval()  # diffusers' own to() warns
        self.latent = latent
        self.register_buffer("shift", _per_channel(shift, self.latent_channels))
        self.register_buffer("scale", _per_channel(scale, self.latent_channels))
        if "_recipe" in self.__dict__ and hasattr(made, "config"):
            self.__dict__["_recipe"]["vae"] = _diffusers_recipe(made)  # not the folder: the weights come from the checkpoint

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What of it is entered by a call, as far as the autoencoder says."""
        return getattr(self.vae, "networks", (self.vae,))

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` in [-1, 1] to normalised latents ``(B, c, H / factor, W / factor)`` in float32.

        Raises:
            ValueError: channels or size do not fit, with the nearest size that does.
        """
        with torch.autocast(x.device.type, enabled=False):
            moments = self.moments(x).float()
        size = (len(x), self.latent_channels, *moments.shape[2:])
        noise = torch.randn(size, device=x.device) if self.latent == "sample" else None  # not randn_like: it would follow the memory layout
        return draw_latent(moments, noise, self.shift, self.scale)

    def decode(self, z: Tensor) -> Tensor:
        """Normalised latents to pictures in float32; not clamped."""
        with torch.autocast(z.device.type, enabled=False):
            return self.picture(z / self.scale + self.shift).float()

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(C, H, W)`` to ``(c, H / factor, W / factor)``.

        Raises:
            ValueError: other channels, or a size that the factor does not divide, with the nearest one that it does.
        """
        if len(data_shape) != 3 or data_shape[0] != self.channels:
            raise ValueError(f"the codec takes pictures ({self.channels}, H, W), got {tuple(data_shape)}")
        size = tuple(data_shape[1:])
        if any(side % self.factor for side in size):
            nearest = tuple(max(1, int(side / self.factor + 0.5)) * self.factor for side in size)
            raise ValueError(
                f"the codec needs height and width divisible by {self.factor}, got {size}; the nearest valid size is {nearest}"
            )
        return (self.latent_channels, *(side // self.factor for side in size))

    def moments(self, x: Tensor) -> Tensor:
        """Means and log variances ``(B, 2c, h, w)`` of the latents before shift and scale: what a cache stores.

        Raises:
            ValueError: channels or size do not fit.
        """
        self.shape(x.shape[1:])
        out = self.vae.encode(x.to(self._dtype))
        return out if isinstance(out, Tensor) else out.latent_dist.parameters

    def picture(self, latent: Tensor) -> Tensor:
        """Decode latents before shift and scale, the inverse of `moments`."""
        out = self.vae.decode(latent.to(self._dtype))
        return out if isinstance(out, Tensor) else out.sample

    @torch.no_grad()
    def adapt(self, moments: Tensor, rate: float) -> None:
        """Move shift and scale towards the mean and 1 / std of the latents of a batch, over all ranks, per channel.

        Args:
            moments: of the batch, ``(B, 2c, h, w)``.
            rate: share of the batch in the new running averages, in (0, 1].
        """
        mean, std = posterior(moments.float())
        axes = (0, *range(2, mean.ndim))
        first = mean.mean(axes).view_as(self.shift)
        second = (mean.square() + std.square()).mean(axes).view_as(self.shift)
        if dist.is_available() and dist.is_initialized():
            for moment in (first, second):
                dist.all_reduce(moment.div_(dist.get_world_size()))
        first = torch.lerp(self.shift, first, rate)
        second = torch.lerp(self.scale**-2 + self.shift**2, second, rate)
        self.scale.copy_((second - first.square()).clamp_min(1e-12).rsqrt())
        self.shift.copy_(first)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KL:
        """Follow moves to another device, but keep every number in its type."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


def posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each ``(B, c, *)``, of moments ``(B, 2c, *)``; log variances are clamped to [-30, 20]."""
    mean, logvar = moments.chunk(2, 1)
    return mean, (0.5 * logvar.clamp(-30, 20)).exp()


def draw_latent(moments: Tensor, noise: Tensor | None, shift: Tensor, scale: Tensor) -> Tensor:
    """``(mean + std noise - shift) scale`` of moments ``(B, 2c, *)``; without noise the mean is taken."""
    mean, std = posterior(moments)
    return ((mean if noise is None else mean + std * noise) - shift) * scale


def fingerprint(codec: Any) -> str:
    """Hash (64 hexadecimal digits) of all that decides what a codec does: its class and the names, shapes and values of its tensors.

    A codec without tensors is known by its class and constructor arguments.
    """
    digest = hashlib.sha256(public_name(type(codec)).encode())
    tensors = codec.state_dict() if isinstance(codec, nn.Module) else {}
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    if not tensors:
        digest.update(json.dumps(recipe_of(codec), sort_keys=True).encode())
    return digest.hexdigest()


def _opened(folder: str | Path) -> nn.Module:
    """Read an autoencoder from disk, in float32; the network is never asked."""
    folder = Path(folder)
    place = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"no autoencoder in {folder}: expected config.json and weights there or in its folder vae/, as save_pretrained of diffusers "
            "writes them; for one trained here use diffx.load(path, part='codec')"
        )
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(str(place), local_files_only=True, torch_dtype=torch.float32)


def _sizes(vae: Any) -> tuple[int, int, int]:
    """Channels of the data, channels of the latents, data pixels per latent pixel."""
    if all(hasattr(vae, name) for name in ("encode", "decode")):
        if all(hasattr(vae, name) for name in ("channels", "latent_channels", "factor")):
            return vae.channels, vae.latent_channels, vae.factor
        if (config := _config(vae)) and "block_out_channels" in config:
            return config["in_channels"], config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    raise TypeError(
        f"vae must be a folder, an AutoencoderKL of diffusers, or a module with encode, decode, channels, latent_channels and factor; "
        f"got {public_name(type(vae))}"
    )


def _normalisation(vae: Any) -> tuple[Any, Any]:
    """Shift and scale, numbers or one number per channel."""
    config = _config(vae)
    scale = config.get("scaling_factor") or 1.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return torch.tensor(mean), scale / torch.tensor(std)
    return config.get("shift_factor") or 0.0, scale


def _config(vae: Any) -> Mapping[str, Any]:
    config = getattr(vae, "config", {})
    return config if isinstance(config, Mapping) else {}


def _diffusers_recipe(vae: Any) -> dict[str, Any]:
    plain = {name: recipe_of(value) for name, value in _config(vae).items() if not name.startswith("_")}
    return {"_target_": public_name(type(vae)), **plain}


def _per_channel(value: Any, channels: int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1).expand(channels, 1, 1).clone()
