"""Power-function averages stored during training, from which `diffx.averages.reconstruct` makes an average of any length afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from ..averages import Power, save_snapshot
from ..dtensors import whole
from ..module import DiffusionModule
from ..recipes import recorded
from .averaging import Averaging

__all__ = ["PowerSnapshots"]


@recorded
class PowerSnapshots(Averaging):
    """Keep power-function averages of a few widths and store them regularly (Karras et al. 2024, arXiv:2312.02696).

    The files are float16 safetensors in ``<run folder>/snapshots/`` (``snapshots/phase1/`` and so on in later stages of a technique), one
    per width and time; ``reconstruct(folder, sigma_rel=...)`` turns them into weights.

    Args:
        every_images: images between snapshots; one more is written when training ends.
        sigma_rels: widths to track, see `diffx.averages.Power`; no width below the smallest can be reconstructed well.
        device: where the averages live; None is next to the weights.

    Raises:
        ValueError: a width outside (0, 0.2886751), or ``every_images`` below 1.
    """

    def __init__(self, every_images: int = 1_000_000, sigma_rels: Sequence[float] = (0.05, 0.10), device: str | None = None) -> None:
        if every_images < 1:
            raise ValueError(f"every_images must be at least 1, got {every_images}")
        super().__init__({f"{width:g}": Power(width) for width in sigma_rels}, device=device)
        self.every_images = every_images
        self._written = 0

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """As `Averaging.on_train_start`."""
        super().on_train_start(trainer, pl_module)
        assert self.shadows is not None
        self._written = self.shadows.clock.seen

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """Update; store whenever the images seen pass a multiple of ``every_images``."""
        super().on_train_batch_end(trainer, pl_module)
        assert self.shadows is not None
        if self.shadows.clock.seen // self.every_images > self._written // self.every_images:
            self._store(trainer, pl_module)

    def on_phase(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """As `Averaging.on_phase`; the new stage has a folder of its own."""
        super().on_phase(trainer, pl_module)
        self._written = 0

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Store the averages at the end."""
        super().on_train_end(trainer, pl_module)
        assert self.shadows is not None
        if self.shadows.clock.seen > self._written:
            self._store(trainer, pl_module)

    def _store(self, trainer: Trainer, module: DiffusionModule) -> None:
        assert self.shadows is not None
        seen = self._written = self.shadows.clock.seen
        folder = Path(trainer.default_root_dir, "snapshots", f"phase{module.phase}" if module.phase else "")
        for name, profile in self.shadows.profiles.items():
            assert isinstance(profile, Power)
            weights = {key: whole(w) for key, w in self.shadows.weights[name].items()}
            if trainer.is_global_zero:
                save_snapshot(folder / f"images_{seen:012d}_sigma_{name}.safetensors", weights, seen, profile.sigma_rel)
