"""Samples for an evaluation: drawn part by part, each kept on disk until all are there, by one process or by many."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import files
from ..recipes import recipe_of
from .real import asked_rows, take

if TYPE_CHECKING:
    from ..conditions import Cond
    from ..module import DiffusionModule
    from ..samplers import Sampler

__all__ = ["SampleParts", "Unfinished", "requests"]


class Unfinished(RuntimeError):
    """This process has drawn its share of the samples, and others have not drawn theirs yet."""


class SampleParts:
    """The samples of one evaluation, ``chunk`` to a part. Sample ``i`` is a function of ``seed + i``, whoever draws it.

    Args:
        module: what is asked.
        real: items whose conditions are asked for, see `asked_rows`.
        n: number of samples.
        guidance: as in ``module.sample``.
        sampler: as in ``module.sample``.
        seed: of sample 0.
        chunk: samples drawn at once.
        folder: where a part lies until `remove`, in a folder named after everything the samples depend on, weights included; None keeps
            them in memory.
    """

    def __init__(self, module: DiffusionModule, real: Mapping[str, Any], n: int, *, guidance: Any, sampler: Sampler | None, seed: int,
                 chunk: int, folder: Path | None) -> None:  # fmt: skip
        self.module, self.real, self.guidance, self.sampler, self.seed = module, real, guidance, sampler, seed
        self.rows = asked_rows(real, n).split(chunk)
        self.starts = range(0, n, chunk)
        self.folder: Path | None = None
        if folder is not None and len(self.rows) > 1:
            weights: Mapping[str, Any] = getattr(module, "state_dict", dict)()
            walk = recipe_of(sampler or getattr(module, "sampler", None))
            self.folder = folder / f"parts-{fingerprint([weights, real, n, chunk, seed, recipe_of(guidance), walk])[:16]}"
        self._held: dict[int, Tensor] = {}

    @property
    def labels(self) -> Tensor | None:
        """The classes (n,) asked for; None where the items have none or the module is given no condition."""
        label = self.real.get("label")
        return label[torch.cat(self.rows)] if label is not None and len(told(self.module, self.real, self.rows[0][:1])) else None

    def draw(self, rank: int = 0, size: int = 1) -> Tensor:
        """Draw every ``size``-th part from ``rank`` on, unless it is there already.

        Returns:
            All samples, float32 on the CPU.

        Raises:
            Unfinished: parts of other ranks are missing.
            OSError: the folder cannot be written.
        """
        for k in range(rank, len(self.rows), size):
            if not self._there(k):
                self._keep(k, self._drawn(k))
        missing = [k for k in range(len(self.rows)) if not self._there(k)]
        if missing:
            raise Unfinished(
                f"{len(missing)} of {len(self.rows)} parts are still to be drawn, by ranks {sorted({k % size for k in missing})}"
            )
        try:
            return torch.cat([self._held[k] if self.folder is None else torch.load(self._path(k)) for k in range(len(self.rows))])
        except FileNotFoundError as gone:
            raise Unfinished("another process has all samples, and measures them") from gone

    def remove(self) -> None:
        """Throw the parts away; what another process removes at the same time is gone, too."""
        if self.folder is not None and self.folder.is_dir():
            for k in range(len(self.rows)):
                self._path(k).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _drawn(self, k: int) -> Tensor:
        cond = told(self.module, self.real, self.rows[k])
        options = {"guidance": self.guidance, "sampler": self.sampler, "seed": self.seed + self.starts[k]}
        return self.module.sample(len(self.rows[k]), cond, **options).float().cpu()

    def _there(self, k: int) -> bool:
        return k in self._held if self.folder is None else self._path(k).is_file()

    def _keep(self, k: int, samples: Tensor) -> None:
        if self.folder is None:
            self._held[k] = samples
        else:
            files.write(self._path(k), lambda file: torch.save(samples, file))

    def _path(self, k: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.starts[k]:08d}.pt"


def told(module: DiffusionModule, real: Mapping[str, Any], rows: Tensor) -> Cond:
    """What the module is asked for beside some items, on the CPU."""
    device = getattr(module, "device", "cpu")
    batch = {key: column.to(device) if isinstance(column, Tensor) else column for key, column in take(real, rows).items()}
    request = getattr(module, "request", module.condition)  # a foreign module is asked for what it is told
    return request(batch).to("cpu")


def requests(module: DiffusionModule, real: Mapping[str, Any], n: int, chunk: int = 250) -> tuple[Cond, Tensor | None]:
    """Conditions for ``n`` samples, taken from real items in turn, with the classes balanced where the items are labelled.

    Every kind of condition is asked for as in training: ``module.request`` sees batches of real items, ``chunk`` at once.

    Returns:
        (conditions, labels (n,)); the labels are None when the items have none or the module is given no condition.
    """
    rows, label = asked_rows(real, n), real.get("label")
    cond = reduce(lambda left, right: left.cat(right), [told(module, real, some) for some in rows.split(chunk)])
    return cond, label[rows] if label is not None and len(cond) else None


def fingerprint(value: Any) -> str:
    """A hash of tensors by their content, inside any mappings and sequences; of all else by ``repr``."""
    digest = hashlib.sha256()

    def read(some: Any) -> None:
        if isinstance(some, Tensor):
            digest.update(f"{some.dtype} {tuple(some.shape)}".encode())
            digest.update(some.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(some, Mapping):
            for key in sorted(some, key=str):
                digest.update(f"{key}:".encode())
                read(some[key])
        elif isinstance(some, Sequence) and not isinstance(some, str):
            for entry in some:
                read(entry)
        else:
            digest.update(f"{some!r},".encode())

    read(value)
    return digest.hexdigest()
