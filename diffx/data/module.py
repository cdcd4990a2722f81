"""`DataModule`: what all of diffx's data modules are. Any other LightningDataModule that yields the same batches serves as well."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakSet

import lightning as L
import numpy as np
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor

from .checks import align_accumulation, check_range, check_stream
from .loader import Loader, SizedLoader
from .order import Order, Request, shard, stream
from .source import Items, Source

__all__ = ["DataModule", "normalise"]


class DataModule(L.LightningDataModule, ABC):
    """Data whose order is a pure function of (seed, samples consumed); see `diffx.data.order`.

    A subclass says in `sources` what to read. Batches are mappings with "x" ``(B, C, *)``, "index" ``(B,)`` int64 (position in the source)
    and, where the data has them, "label" ``(B,)`` int64 and "text" (list of B strings). Pictures travel to the device as uint8 and become
    float32 in [-1, 1] there.

    Training is an endless stream: give the Trainer ``max_steps`` and an integer ``val_check_interval`` (counted in micro-batches).
    Validation is finite: each item once, in a fixed order, on one rank.

    Args:
        batch_size: samples per rank and micro-batch.
        num_workers: worker processes per rank; 0 reads in the main process, the fastest for data in memory. Does not change the batches.
        seed: key of order and augmentation.

    Raises:
        ValueError: batch_size < 1 or num_workers < 0. On `setup`: an empty data set, a global batch larger than the data set, or a Trainer
            that cannot drive an endless stream.
    """

    def __init__(self, batch_size: int, *, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size must be >= 1 and num_workers >= 0, got {batch_size} and {num_workers}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._anchor = (0, 0)  # (consumed, optimizer step) where counting began
        self._loaded: int | None = None  # what a checkpoint had consumed, until the next train_dataloader()
        self._range_checked: set[bool] = set()
        self._loaders: WeakSet[Loader] = WeakSet()  # a loader knows the module; the reverse must not keep its workers alive

    @abstractmethod
    def sources(self) -> tuple[Source, Source | None]:
        """Open the data: the training source and the validation source, or None without one. Called once, when first needed."""

    @cached_property
    def _opened(self) -> tuple[Source, Source | None]:
        return self.sources()

    @property
    def train(self) -> Source:
        """The training source."""
        return self._opened[0]

    @property
    def val(self) -> Source | None:
        """The validation source."""
        return self._opened[1]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one "x", without the batch: ``(C, H, W)`` for pictures."""
        return tuple(self.train.fetch(np.zeros(1, dtype=np.int64), 0)["x"].shape[1:])

    @property
    def classes(self) -> int | None:
        """Number of classes (labels lie in [0, classes)), or None without labels."""
        return getattr(self.train, "classes", None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, or None."""
        names = getattr(self.train, "class_names", None)
        return None if names is None else tuple(names)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step: batch_size x data-parallel ranks x accumulated micro-batches."""
        return self.batch_size * self._rank[1] * (self.trainer.accumulate_grad_batches if self.trainer else 1)

    @property
    def samples(self) -> int:
        """Samples consumed by optimizer steps, over all ranks and resumed runs; never what was only read ahead."""
        return self._consumed

    @property
    def epoch_steps(self) -> float:
        """Optimizer steps that one pass over the training data takes."""
        return len(self.train) / self.global_batch

    @property
    def _consumed(self) -> int:
        """How far optimizer steps have read the stream, in units of which each step takes `_per_step`."""
        if self._loaded is not None:
            return self._loaded
        consumed, step = self._anchor
        return consumed + ((self.trainer.global_step if self.trainer else step) - step) * self._per_step

    @property
    def _per_step(self) -> int:
        return self.global_batch

    @property
    def _rank(self) -> tuple[int, int]:
        """Data-parallel (rank, world); on a mesh it is not the process's."""
        deal = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (deal["rank"], deal["num_replicas"]) if deal else (0, 1)

    def setup(self, stage: str) -> None:
        """Check data and Trainer against each other; see Raises of the class."""
        for role, source in (("training", self.train), ("validation", self.val)):
            if source is not None and len(source) == 0:
                raise ValueError(f"the {role} data set of {type(self).__name__} is empty; check its path and split")
            if isinstance(source, Items) and self.trainer is not None:
                source.bad_list = Path(self.trainer.default_root_dir) / "bad_files.txt"
        if self.val is not None and len(self.val) < self._rank[1]:
            raise ValueError(f"the validation data set has {len(self.val)} items for {self._rank[1]} ranks; give each rank at least one")
        if stage == "fit":
            self._check_fit()

    def _check_fit(self) -> None:
        if self.global_batch > len(self.train):
            raise ValueError(
                f"the global batch of {self.global_batch} (batch_size {self.batch_size} x ranks x accumulated micro-batches) is larger "
                f"than the training set of {len(self.train)} items; lower batch_size"
            )
        self._check_stream()

    def _check_stream(self) -> None:
        if self.trainer is not None:
            check_stream(self.trainer, validates=self.val is not None, epoch=self.epoch_steps)

    def train_dataloader(self) -> Loader:
        """The endless training stream of this rank, starting after the samples already consumed."""
        if self.trainer is not None:
            align_accumulation(self.trainer)
        step = self.trainer.global_step if self.trainer else 0
        fresh = self._loaded is None and step == 0
        self._anchor, self._loaded = (0 if fresh else self._consumed, step), None
        return self._tracked(Loader(self.train, self._requests, self.num_workers, self._pin))

    def val_dataloader(self) -> Loader | list[Loader]:
        """This rank's share of the validation set, unpadded; an empty list without a validation set."""
        if self.val is None:
            return []
        return self._tracked(SizedLoader(self.val, self._held_requests(len(self.val)), self.num_workers, self._pin))

    def _requests(self) -> Iterator[Request]:
        """The stream of this rank from where it has been consumed."""
        return stream(Order(len(self.train), self.seed), self._consumed, self.batch_size, *self._rank)

    def _held_requests(self, items: int) -> list[Request]:
        """This rank's validation batches."""
        return shard(items, self.batch_size, *self._rank)

    def _tracked(self, loader: Loader) -> Loader:
        self._loaders.add(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers when the run is cut short."""
        self.teardown("fit")

    @property
    def _pin(self) -> bool:
        return self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)

    def state_dict(self) -> dict[str, int]:
        """``{"samples": int}``: the samples consumed."""
        return {"samples": self.samples}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after ``state_dict["samples"]`` at the next `train_dataloader`, whatever the global batch is now."""
        self._loaded = int(state_dict["samples"])

    def on_after_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """Normalise uint8 pictures on the device; look once at float data.

        Raises:
            ValueError: float "x" outside [-1, 1] (the first batch of training and of validation is checked).
        """
        training = bool(self.trainer and self.trainer.training)
        if "x" in batch and training not in self._range_checked:
            self._range_checked.add(training)
            check_range(batch["x"])
        return {name: normalise(v) if isinstance(v, Tensor) and v.dtype == torch.uint8 else v for name, v in batch.items()}

    def __str__(self) -> str:
        """Name, sizes and batch."""
        val = "no" if self.val is None else len(self.val)
        return f"{type(self).__name__}({len(self.train)} training items, {val} validation items, batch_size={self.batch_size})"


def normalise(x: Tensor) -> Tensor:
    """Map uint8 in [0, 255] to float32 in [-1, 1]: ``x / 127.5 - 1``."""
    return x.float().div_(127.5).sub_(1)
