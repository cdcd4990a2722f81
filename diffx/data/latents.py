"""`Latents`: pictures that were encoded once by ``python -m diffx.encode``, read as latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..codecs import draw_latent, fingerprint
from ..precomputed import Precomputed
from ..recipes import recorded
from ..recipes.record import public_name
from .module import DataModule
from .source import Batch

__all__ = ["LatentSource", "Latents"]


class LatentSource:
    """A source of latents over one precomputed set; batches have "latent" and whatever else was stored.

    Where moments are stored, ``z = (mean + std n - shift) scale`` with noise keyed by (seed, epoch, index), so that each epoch draws new
    latents of the same pictures, the same ones in every run; other latents (tokens) come as they are.

    Args:
        stored: the set.
        latent: ``"sample"`` draws latents, ``"mean"`` takes the means.
        flip: take the mirrored picture's latents with probability 1/2, keyed likewise; needs a set with both.
        seed: key of noise and flips.

    Raises:
        ValueError: an unknown ``latent``, or flips of a set without mirrored pictures.
    """

    def __init__(self, stored: Precomputed, *, latent: Literal["sample", "mean"] = "sample", flip: bool = False, seed: int = 0) -> None:
        if latent not in ("sample", "mean"):
            raise ValueError(f"latent must be 'sample' or 'mean', got {latent!r}")
        if flip and not stored.about["flip"]:
            raise ValueError(
                f"flip = true, but {stored.folder} holds no mirrored pictures; encode with flip=true or read with flip = false"
            )
        self.stored, self.latent, self.flip, self.seed = stored, latent, flip, seed
        about = stored.about
        self.classes, self.class_names = about["data"]["classes"], about["data"]["class_names"]
        self.shift, self.scale = (torch.tensor(about["codec"].get(name, ())) for name in ("shift", "scale"))

    def __len__(self) -> int:
        """Number of items."""
        return len(self.stored)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Read the items and draw their latents; see `diffx.data.Source`."""
        batch: Batch = {**self.stored.rows(indices), "index": torch.from_numpy(indices)}
        mirrored = batch.pop("mirrored", None)
        code = batch.pop("code")
        keys = [rng.generator(self.seed, "latent", epoch, index) for index in indices.tolist()]
        if self.flip:
            coins = torch.stack([torch.rand((), generator=key) < 0.5 for key in keys])
            code = torch.where(coins.view(-1, *(1,) * (code.ndim - 1)), mirrored, code)
        batch["latent"] = self._drawn(code.float(), keys) if self.stored.about["moments"] else code
        return batch

    def _drawn(self, moments: Tensor, keys: list[torch.Generator]) -> Tensor:
        sampled = self.latent == "sample"
        noise = rng.randn((len(moments), moments.shape[1] // 2, *moments.shape[2:]), keys) if sampled else None
        shift, scale = (value.view(-1, *(1,) * (moments.ndim - 2)) for value in (self.shift, self.scale))
        return draw_latent(moments, noise, shift, scale)


@recorded
class Latents(DataModule):
    """Latents that ``python -m diffx.encode`` wrote into a folder, with their labels and texts.

    A batch has "latent" ``(B, c, *)`` in place of "x". Order, resuming and ranks are those of every `DataModule`; latents are drawn
    anew in each epoch from the stored moments, keyed by (seed, epoch, index).

    Before training the cache is compared with the module's codec: latents of another one would train a model that decodes to nonsense.

    Args:
        root: the folder, with the sets ``train`` and, where there was validation data, ``val``.
        batch_size: samples per rank and micro-batch.
        latent: ``"sample"`` draws latents, ``"mean"`` takes the means.
        flip: mirror training pictures with probability 1/2; the cache must have been written with ``flip=true``.
        verify: compare every file with its checksum at the start, which reads the whole cache once.
        num_workers, seed: as in `DataModule`.

    Attributes:
        shape: shape of what was encoded, such as ``(C, H, W)``: what ``module.shape`` must be.

    Raises:
        FileNotFoundError: there is no cache in ``root``, or a file of it is missing.
        ValueError: the cache is unfinished or damaged, ``flip`` without mirrored pictures; on `setup`: it was made by another codec than
            the module's, with both named.
    """

    def __init__(
        self, root: str | Path, batch_size: int, *, latent: Literal["sample", "mean"] = "sample", flip: bool = False, verify: bool = False,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, num_workers=num_workers, seed=seed)
        self.root, self.latent, self.flip, self.verify = Path(root), latent, flip, verify

    def sources(self) -> tuple[LatentSource, LatentSource | None]:
        """Open the sets."""
        train = LatentSource(Precomputed(self.root / "train", verify=self.verify), latent=self.latent, flip=self.flip, seed=self.seed)
        if not (self.root / "val").is_dir():
            return train, None
        return train, LatentSource(Precomputed(self.root / "val", verify=self.verify), latent=self.latent, seed=self.seed)

    @property
    def about(self) -> Mapping[str, Any]:
        """What the cache says about itself: codec, data, flip, dtype."""
        return self.train.stored.about  # type: ignore[attr-defined]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample in data space, such as ``(C, H, W)``."""
        return tuple(self.about["data"]["shape"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, such as ``(c, h, w)``."""
        return tuple(self.about["codec"]["latent_shape"])

    def setup(self, stage: str) -> None:
        """Check the data, the Trainer, and that cache and module have one codec; see Raises of the class."""
        super().setup(stage)
        codec = getattr(getattr(self.trainer, "lightning_module", None), "codec", None)
        if codec is not None:
            self.check_codec(codec)

    def check_codec(self, codec: Any) -> None:
        """Refuse a codec that did not make this cache.

        Raises:
            ValueError: names both.
        """
        made, mine = self.about["codec"], fingerprint(codec)
        if made["sha256"] != mine:
            raise ValueError(
                f"the latents in {self.root} were made by {made['name']} {made['sha256'][:12]}, but the module's codec is "
                f"{public_name(type(codec))} {mine[:12]}; give the module that codec, or encode the data with the module's"
            )
