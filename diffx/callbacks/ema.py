"""Moving averages of the weights during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from torch import Tensor

from ..averages import HalfLife, Profile
from ..module import DiffusionModule
from ..recipes import recorded
from .averaging import Averaging

__all__ = ["EMA", "find_ema"]


@recorded
class EMA(Averaging):
    """Moving averages of the weights, counted in images; validation, test, prediction and sample grids run under them.

    Averaged are the parameters of `DiffusionModule.averaged_parameters` and nothing else, in float32, once per optimizer step. The module
    itself always trains, and is always saved, with its raw weights; the averages lie in the checkpoint under ``callbacks/diffx.EMA`` and
    ``diffx.load(path, weights="ema")`` reads them. (``trainer.save_checkpoint(..., weights_only=True)`` skips callbacks and writes the
    weights as they stand.)

    Args:
        halflife: half-life of the profile ``"ema"`` in images; see `diffx.averages.HalfLife`.
        rampup: the half-life never exceeds this share of the images seen; None switches that off.
        profiles: name -> profile (`diffx.averages`), instead of the one above; the first is used for validation and sampling.
        update_every: optimizer steps per update of the averages; their length does not change with it.
        device: where the averages live; None is next to the weights, ``"cpu"`` saves accelerator memory and costs a transfer per update.

    Raises:
        ValueError: no profile, a profile named ``"raw"`` or with a colon in its name, ``update_every`` below 1.
    """

    def __init__(self, halflife: float = 20_000, *, rampup: float | None = 0.05, profiles: Mapping[str, Profile] | None = None,
                 update_every: int = 1, device: str | None = None) -> None:  # fmt: skip
        chosen = {"ema": HalfLife(halflife, rampup)} if profiles is None else profiles
        if wrong := [name for name in chosen if name == "raw" or ":" in name]:
            raise ValueError(f"a profile cannot be called {wrong[0]!r}: 'raw' and ':' mean something else in weights='ema:NAME'")
        super().__init__(chosen, update_every, device)
        self._raw: dict[str, Tensor] | None = None

    @property
    def first(self) -> str:
        """Name of the profile that validation and sampling use."""
        return next(iter(self.profiles))

    @contextmanager
    def applied(self, module: DiffusionModule, name: str | None = None) -> Iterator[None]:
        """Let ``module`` hold the averages inside the block; before the first training step they are its own weights.

        A checkpoint saved inside the block is the one that would be saved outside.

        Args:
            module: the module that is or was trained with this callback.
            name: profile; the first by default.

        Raises:
            RuntimeError: the averages are applied already.
            ValueError: no such profile, or the averages belong to another module.
        """
        self._swap_in(module, name, explicit=True)
        try:
            yield
        finally:
            self._swap_out()

    def _swap_in(self, module: DiffusionModule, name: str | None = None, explicit: bool = False) -> None:
        if self._raw is not None:
            raise RuntimeError("the averages are applied already; leave the first block before entering another")
        if (name := self.first if name is None else name) not in self.profiles:
            raise ValueError(f"no averaging profile {name!r}; there are {list(self.profiles)}")
        if self._ready(module):
            self._catch_up()
            assert self.shadows is not None
            self._raw = self.shadows.swap_in(name)
        elif explicit and self.shadows is not None:
            raise ValueError("these are averages of another module; applied() takes the one that was trained with this callback")

    def _swap_out(self) -> None:
        if self._raw is not None:
            assert self.shadows is not None
            self.shadows.swap_out(self._raw)
            self._raw = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: DiffusionModule, checkpoint: dict[str, Any]) -> None:
        """While the averages are applied, put the raw weights into the checkpoint, under all names of shared parameters."""
        if self._raw is None:
            return
        assert self.shadows is not None
        raw = {id(p): self.shadows.as_parameter(key, self._raw[key]) for key, p in self.shadows.parameters.items()}
        saved = checkpoint["state_dict"]
        for name, p in pl_module.named_parameters(remove_duplicate=False):
            if id(p) in raw and name in saved:
                saved[name] = raw[id(p)]

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        """Give the module its raw weights back, whatever happened in validation."""
        self._swap_out()

    def on_validation_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Validate under the averages."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Back to the raw weights."""
        self._swap_out()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end


def find_ema(trainer: Trainer) -> EMA | None:
    """The trainer's EMA callback, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
