"""Validation loss by noise level."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer

from .. import rng
from ..module import DiffusionModule
from ..recipes import recorded

__all__ = ["NoiseBands"]


@recorded
class NoiseBands(Callback):
    """Log the validation loss in bands of the schedule position u, as ``bands/0.000-0.125`` ... and their mean ``bands/mean``.

    In every band the positions are spread evenly over the batch and the noise is the same for all bands and all validations, so the
    curves show learning and not luck. An `EMA` callback's averages are in place when it stands in the trainer.

    Args:
        bands: number of equal bands of u in [0, 1].
        batches: validation batches to use, each costs one forward pass per band; None uses all.
        seed: key of the noise.

    Raises:
        ValueError: ``bands`` or ``batches`` below 1.
    """

    def __init__(self, bands: int = 8, batches: int | None = 4, seed: int = 0) -> None:
        if bands < 1 or (batches is not None and batches < 1):
            raise ValueError(f"bands and batches must be at least 1, got {bands} and {batches}")
        self.bands = bands
        self.batches = batches
        self.seed = seed
        self._sums: torch.Tensor | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Start from zero: per-band sums, and the number of samples behind them."""
        self._sums = torch.zeros(self.bands + 1, device=pl_module.device, dtype=torch.float32)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int,
                                dataloader_idx: int = 0) -> None:  # fmt: skip
        """Measure every band on this batch."""
        if trainer.sanity_checking or dataloader_idx or (self.batches is not None and batch_idx >= self.batches):
            return
        assert self._sums is not None
        n = len(batch["latent"] if "latent" in batch else batch["x"])
        inside = (torch.arange(n, device=pl_module.device) + 0.5) / n
        for band in range(self.bands):
            with rng.forked(self.seed, "bands", batch_idx, trainer.global_rank), trainer.precision_plugin.val_step_context():
                loss = pl_module.loss(batch, u=(band + inside) / self.bands)["loss"]
            self._sums[band] += n * loss.detach().float().mean()
        self._sums[-1] += n

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Log the means over all ranks."""
        if trainer.sanity_checking or self._sums is None:
            return
        *sums, count = trainer.strategy.reduce(self._sums, reduce_op="sum")
        means = {f"bands/{i / self.bands:.3f}-{(i + 1) / self.bands:.3f}": total / count for i, total in enumerate(sums)}
        pl_module.log_dict({**means, "bands/mean": sum(means.values()) / self.bands}, on_step=False, on_epoch=True, sync_dist=True)
        self._sums = None
