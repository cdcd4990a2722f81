"""Tokenizers: codecs whose latents are integers, one code of a finite codebook per place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn

from .codebook import Codebook
from .recipes import recorded

__all__ = ["VQ", "DiffusersVQ", "KMeansPatches", "PixelLevels", "Tokenizer", "check_ids"]


@runtime_checkable
class Tokenizer(Protocol):
    """A codec between data ``(B, C, H, W)`` in [-1, 1] and ids ``(B, h, w)``, int64 in [0, codebook_size)."""

    codebook_size: int

    def encode(self, x: Tensor) -> Tensor:
        """Data to ids."""

    def decode(self, z: Tensor) -> Tensor:
        """Ids to data."""

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """Grid ``(h, w)`` of the ids of one sample of ``data_shape``."""


def check_ids(ids: Tensor, size: int) -> None:
    """Look whether ids are integers in [0, size). Values are looked at on the CPU only: a GPU would have to be waited for.

    Raises:
        ValueError: they are not, with what was found.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers, got {ids.dtype}; encode data with a tokenizer first")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"ids must lie in [0, {size}), got {low if low < 0 else high}; the tokenizer's codebook and the network's differ")


@recorded
@dataclass(frozen=True)
class PixelLevels:
    """Every pixel is a token: its grey level on an even scale from -1 to 1. Nothing is lost for data of that many levels.

    Args:
        levels: codebook size, at least 2; 17 for `diffx.data.Digits`.

    Raises:
        ValueError: fewer than two levels.
    """

    levels: int = 17

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")

    @property
    def codebook_size(self) -> int:
        """Number of levels."""
        return self.levels

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, 1, H, W)`` to the nearest levels ``(B, H, W)``.

        Raises:
            ValueError: pictures with more than one channel.
        """
        self.shape(x.shape[1:])
        return ((x[:, 0] + 1) * ((self.levels - 1) / 2)).round().long().clamp(0, self.levels - 1)

    def decode(self, z: Tensor) -> Tensor:
        """Levels ``(B, H, W)`` to pictures ``(B, 1, H, W)``.

        Raises:
            ValueError: ids outside the codebook.
        """
        check_ids(z, self.levels)
        return (z.float() * (2 / (self.levels - 1)) - 1)[:, None]

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(1, H, W)`` to ``(H, W)``."""
        if len(data_shape) != 3 or data_shape[0] != 1:
            raise ValueError(f"levels of pixels are tokens of pictures with one channel, (1, H, W); got {tuple(data_shape)}")
        return tuple(data_shape[1:])


@recorded
class VQ(nn.Module):
    """The codes of a vector-quantised autoencoder: each vector of the encoder's map is replaced by the nearest one of a codebook.

    `diffx.techniques.VQAutoencoder` trains it; from there, ``diffx.load(path, part="codec")`` gives it to any other technique. Weights and
    codebook travel in checkpoints.

    Args:
        vae: module with ``encode(x) -> (B, dim, h, w)``, ``decode((B, dim, h, w)) -> x`` and the attributes ``channels``,
            ``latent_channels`` (dim) and ``factor``, e.g. ``ConvAutoencoder(..., moments=False)``.
        codebook: of vectors of length dim.

    Raises:
        ValueError: vectors of different length, an encoder of moments.
    """

    def __init__(self, vae: nn.Module, codebook: Codebook) -> None:
        super().__init__()
        made: Any = vae
        if getattr(made, "moments", False):
            raise ValueError("the encoder gives moments of a normal law, a codebook needs vectors; build it with moments=False")
        if made.latent_channels != codebook.dim:
            raise ValueError(f"vectors of the autoencoder have length {made.latent_channels}, those of the codebook {codebook.dim}")
        self.vae, self.codebook = made, codebook

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What of it is entered by a call, as far as the autoencoder says."""
        return getattr(self.vae, "networks", (self.vae,))

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.codebook.size

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` to ids ``(B, h, w)``.

        Raises:
            ValueError: channels or size do not fit, with the nearest size that does.
        """
        self.shape(x.shape[1:])
        return self.codebook.nearest(self.vae.encode(x))

    def decode(self, z: Tensor) -> Tensor:
        """Ids ``(B, h, w)`` to pictures; not clamped.

        Raises:
            ValueError: ids outside the codebook.
        """
        check_ids(z, self.codebook_size)
        return self.vae.decode(self.codebook.vectors(z))

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(C, H, W)`` to ``(h, w)``."""
        return _grid(data_shape, self.vae.channels, self.vae.factor)


@recorded
class DiffusersVQ(nn.Module):
    """The codes of a ``VQModel`` of diffusers, frozen, in float32.

    Args:
        folder: with its config.json and weights, as ``save_pretrained`` writes them; nothing is downloaded.
        config: arguments of ``VQModel`` instead, for random weights or for those of a checkpoint.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: both or neither of ``folder`` and ``config``.
    """

    def __init__(self, folder: str | Path | None = None, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if (folder is None) == (config is None):
            raise ValueError(f"DiffusersVQ takes a folder or a config, got folder = {folder!r} and config = {config!r}")
        from diffusers import VQModel

        if folder is not None and not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(f"no VQModel in {folder}: expected config.json and weights as save_pretrained writes them")
        made: Any = VQModel(**config) if config is not None else VQModel.from_pretrained(str(folder), local_files_only=True)
        self.model = made.float().requires_grad_(False).eval()
        if "_recipe" in self.__dict__ and folder is not None:  # not the folder: the weights come from the checkpoint
            plain = {name: value for name, value in made.config.items() if not name.startswith("_")}
            self.__dict__["_recipe"].update(folder=None, config=plain)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.model.config.num_vq_embeddings

    @property
    def factor(self) -> int:
        """Pixels per token, along one side."""
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` to ids ``(B, h, w)``."""
        size = self.shape(x.shape[1:])
        flat = self.model.quantize(self.model.encode(x.float()).latents)[2][2]
        return flat.view(len(x), *size)

    def decode(self, z: Tensor) -> Tensor:
        """Ids to pictures; not clamped.

        Raises:
            ValueError: ids outside the codebook.
        """
        check_ids(z, self.codebook_size)
        width = self.model.config.vq_embed_dim or self.model.config.latent_channels
        codes = self.model.quantize.get_codebook_entry(z, (*z.shape, width))
        return self.model.decode(codes, force_not_quantize=True).sample

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(C, H, W)`` to ``(h, w)``."""
        return _grid(data_shape, self.model.config.in_channels, self.factor)


@recorded
class KMeansPatches(nn.Module):
    """Every square of pixels is a token: the nearest of ``codes`` squares that k-means finds in data. No network, no gradient.

    Args:
        codes: codebook size.
        patch: side of a square.
        channels: of the pictures.

    Raises:
        ValueError: a number below 1.
    """

    centres: Tensor

    def __init__(self, codes: int, patch: int = 2, channels: int = 1) -> None:
        super().__init__()
        if min(codes, patch, channels) < 1:
            raise ValueError(f"codes, patch and channels must be at least 1, got {codes}, {patch} and {channels}")
        self.patch, self.channels = patch, channels
        self.register_buffer("centres", torch.zeros(codes, channels * patch * patch))

    @property
    def codebook_size(self) -> int:
        """Number of squares in the codebook."""
        return len(self.centres)

    def fit(self, x: Tensor, seed: int = 0) -> KMeansPatches:
        """Find the squares in pictures ``(N, C, H, W)`` by scikit-learn's k-means; returns itself.

        Raises:
            ValueError: see `shape`; fewer squares than codes, or values that are not finite.
        """
        from sklearn.cluster import KMeans

        self.shape(x.shape[1:])
        squares = self._squares(x).flatten(0, -2).cpu()
        if len(squares) < self.codebook_size or not squares.isfinite().all():
            raise ValueError(f"{self.codebook_size} codes need as many squares of finite values, got {len(squares)} squares, of which "
                             f"{int(squares.isfinite().all(1).sum())} are finite")  # fmt: skip
        found = KMeans(self.codebook_size, n_init=1, random_state=seed).fit(squares.numpy())
        self.centres.copy_(torch.from_numpy(found.cluster_centers_))
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` to ids ``(B, H / patch, W / patch)``.

        Raises:
            ValueError: channels or sides do not fit.
            RuntimeError: no squares were found yet.
        """
        self.shape(x.shape[1:])
        if self.codebook_size > 1 and not self.centres.any():
            raise RuntimeError("this tokenizer knows no squares yet; call fit(x) with real pictures first")
        squares = self._squares(x)
        return torch.cdist(squares.flatten(0, -2), self.centres).argmin(1).view(squares.shape[:-1])

    def decode(self, z: Tensor) -> Tensor:
        """Ids to pictures.

        Raises:
            ValueError: ids outside the codebook.
        """
        check_ids(z, self.codebook_size)
        return rearrange(self.centres[z], "b h w (c p q) -> b c (h p) (w q)", p=self.patch, q=self.patch)

    def shape(self, data_shape: Sequence[int]) -> tuple[int, ...]:
        """``(C, H, W)`` to ``(H / patch, W / patch)``."""
        return _grid(data_shape, self.channels, self.patch)

    def _squares(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=self.patch, q=self.patch)


def _grid(data_shape: Sequence[int], channels: int, factor: int) -> tuple[int, ...]:
    """Sides over ``factor``; refuses other channels and sides that it does not divide."""
    if len(data_shape) != 3 or data_shape[0] != channels:
        raise ValueError(f"the tokenizer takes pictures ({channels}, H, W), got {tuple(data_shape)}")
    size = tuple(data_shape[1:])
    if any(side % factor for side in size):
        nearest = tuple(max(1, int(side / factor + 0.5)) * factor for side in size)
        raise ValueError(f"the tokenizer needs height and width divisible by {factor}, got {size}; the nearest valid size is {nearest}")
    return tuple(side // factor for side in size)
