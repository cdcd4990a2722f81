"""When and how averages of the weights are updated, saved and resumed: the base of `EMA` and `PowerSnapshots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Callback, Trainer

from ..averages import Profile
from ..module import DiffusionModule
from .shadows import Shadows

__all__ = ["Averaging", "StepWatch"]


class StepWatch:
    """Tells a callback once per optimizer step that it was taken; not for micro-batches, nor for steps that a gradient scaler skipped."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)  # float16 only
        self._step = trainer.global_step
        self._scale = self._read_scale()

    def taken(self) -> bool:
        """Whether a step was taken since the last call."""
        if self._trainer.global_step == self._step:
            return False
        self._step = self._trainer.global_step
        before, self._scale = self._scale, self._read_scale()
        return self._scale >= before  # a scaler that found infinities leaves the step out and lowers its scale

    def _read_scale(self) -> float:
        return 0.0 if self._scaler is None else self._scaler.get_scale()


class Averaging(Callback):
    """What the averaging callbacks share: shadows that are updated once per optimizer step, saved and resumed exactly."""

    def __init__(self, profiles: Mapping[str, Profile], update_every: int = 1, device: str | None = None) -> None:
        if not profiles or update_every < 1:
            raise ValueError(f"expected at least one profile and update_every >= 1, got {dict(profiles)} and {update_every}")
        self.profiles = dict(profiles)
        self.update_every = update_every
        self.device = device
        self.shadows: Shadows | None = None
        self._module: DiffusionModule | None = None
        self._watch: StepWatch | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Where the averages lie in a checkpoint's ``callbacks``."""
        return f"diffx.{type(self).__name__}"

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Copy the weights, or take over the averages of a checkpoint or of an earlier fit of the same module."""
        if not self._ready(pl_module):
            self._begin(pl_module)
        self._watch = StepWatch(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *_: Any) -> None:
        """Update after the optimizer step."""
        self._catch_up()

    def on_phase(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """A technique's next stage: the averages begin again from the weights as they are."""
        self._begin(pl_module)
        self._watch = StepWatch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Stop watching: steps of a later fit belong to it."""
        self._catch_up()
        self._watch = None

    def state_dict(self) -> dict[str, Any]:
        """Averages under ``profiles``, counters, and the averaged parts' ``buffers``, which are copied and never averaged."""
        if self.shadows is None:
            return self._loaded or {}
        self._catch_up()
        assert self._module is not None
        return {**self.shadows.state(), "buffers": {name: b.detach() for name, b in self._module.averaged_buffers().items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the module is on its device."""
        self._loaded = state_dict
        self.shadows = None

    def _ready(self, module: DiffusionModule) -> bool:
        """Whether there are averages of this module: those of a checkpoint just loaded, or the present ones if they are its own."""
        if self._loaded is not None:
            self._begin(module)
            assert self.shadows is not None
            self.shadows.load(self._loaded)
            self._loaded = None
        if self.shadows is None or not self.shadows.belong_to(module.averaged_parameters()):
            return False
        self.shadows.to_parameters()
        return True

    def _begin(self, module: DiffusionModule) -> None:
        self._module = module
        self.shadows = Shadows(module.averaged_parameters(), self.profiles, every=self.update_every, device=self.device,
                               turns=module.turns())  # fmt: skip

    def _catch_up(self) -> None:
        """Idempotent, so that a checkpoint written by a callback that runs earlier than this one holds the same averages."""
        if self._watch is not None and self.shadows is not None and self._watch.taken():
            assert self._module is not None
            self.shadows.update(self._module.global_batch, self._module.turn(self._module.global_step - 1))
