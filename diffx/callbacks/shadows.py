"""Float32 copies of parameters under several averaging profiles: what `EMA` and `PowerSnapshots` keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..averages import Profile
from ..dtensors import is_sharded, local, placed

__all__ = ["Shadows"]

State = dict[str, Any]


@dataclass
class Clock:
    """Steps that a set of parameters has seen, and the decays that wait to be applied to its averages, by profile.

    Args:
        pending: profile -> product of the decays since the last update of the averages.
        seen: images.
        updates: optimizer steps.
    """

    pending: dict[str, float]
    seen: int = 0
    updates: int = 0

    def tick(self, profiles: Mapping[str, Profile], batch: int) -> None:
        """One optimizer step of ``batch`` images."""
        for name, profile in profiles.items():
            self.pending[name] *= profile.beta(self.seen, batch, self.updates)
        self.seen += batch
        self.updates += 1


class Shadows:
    """Averages of one set of parameters. Parameters that are trained in turns have clocks of their own, which rest while they do.

    Sharded parameters (DTensor) are averaged shard by shard, which needs no communication because the update is elementwise.

    Args:
        parameters: name -> parameter; the averages start as copies of them.
        profiles: name -> profile.
        every: apply the decays of this many optimizer steps at once; the decays multiply, so the averaging length stays what it is.
        device: where the averages live; None is next to the parameters.
        turns: disjoint sets of names; a step trains one of them and all parameters that are in none.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], profiles: Mapping[str, Profile], *, every: int = 1,
                 device: str | torch.device | None = None, turns: Sequence[Collection[str]] = ()) -> None:  # fmt: skip
        self.parameters = dict(parameters)
        self.profiles = dict(profiles)
        self.every = every
        self.device = device
        if not self.parameters:
            raise ValueError("there is nothing to average: the module's averaged parts have no parameter with requires_grad")
        self.clock, *self.turns = (Clock(dict.fromkeys(self.profiles, 1.0)) for _ in range(1 + len(turns)))
        self._turn_of = {key: k for k, keys in enumerate(turns) for key in keys}
        with torch.inference_mode(False), torch.no_grad():
            self.weights = {name: {key: self._copy(p) for key, p in self.parameters.items()} for name in self.profiles}
        self._localise()

    @torch.no_grad()
    def update(self, batch: int, turn: int = 0) -> None:
        """Take one optimizer step of ``batch`` images into the averages.

        Args:
            batch: images of all ranks.
            turn: which of the sets that take turns was trained.
        """
        clocks = {None: self.clock, turn: self.turns[turn]} if self.turns else {None: self.clock}
        for group, clock in clocks.items():
            clock.tick(self.profiles, batch)
            if clock.updates % self.every == 0 and group in self._groups:
                self._apply(clock, group)

    def _apply(self, clock: Clock, group: int | None) -> None:
        shadows, parameters = self._groups[group]
        first, sources = next(iter(shadows.values())), parameters
        if not self._plain:
            sources = [_like(local(p), shadow) for p, shadow in zip(parameters, first, strict=True)]
        for name, averages in shadows.items():
            torch._foreach_lerp_(averages, sources, 1 - clock.pending[name])
            clock.pending[name] = 1.0

    def swap_in(self, name: str) -> dict[str, Tensor]:
        """Put the averages into the parameters and return what was there, for `swap_out`."""
        with torch.inference_mode(False), torch.no_grad():
            # Made complete before the first parameter changes: when memory runs out here, the weights are still whole.
            averages = {key: _like(w, self.parameters[key]) for key, w in self.weights[name].items()}
            raw = {key: local(p).clone() if is_sharded(p) else p.data for key, p in self.parameters.items()}
            for key, p in self.parameters.items():
                _put(p, local(averages[key]))
        return raw

    def swap_out(self, raw: Mapping[str, Tensor]) -> None:
        """Undo `swap_in`."""
        with torch.inference_mode(False), torch.no_grad():
            for key, p in self.parameters.items():
                _put(p, raw[key])

    def state(self) -> State:
        """Averages, sharded where the parameters are, and counters."""
        profiles = {name: {"weights": dict(weights), "pending": self.clock.pending[name]}
                    for name, weights in self.weights.items()}  # fmt: skip
        turns = [asdict(clock) for clock in self.turns]
        return {"profiles": profiles, "seen": self.clock.seen, "updates": self.clock.updates, "turns": turns}

    def load(self, state: State) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: profiles, names, shapes or the number of turns differ from this object's.
        """
        _same("averaging profiles", state["profiles"], self.profiles)
        turns = state.get("turns", [])
        if len(turns) != len(self.turns):
            raise ValueError(f"the checkpoint has averages of {len(turns)} parts that take turns, but there are {len(self.turns)}; "
                             "resume with the configuration it was written with")  # fmt: skip
        for name, saved in state["profiles"].items():
            _same("averaged parameters", saved["weights"], self.parameters)
            for key, w in saved["weights"].items():
                shadow = self.weights[name][key]
                if w.shape != shadow.shape:
                    raise ValueError(f"the average of {key} has shape {tuple(w.shape)} in the checkpoint, but {tuple(shadow.shape)} here")
                local(shadow).copy_(local(placed(w, shadow)))
        self.clock = Clock({name: saved["pending"] for name, saved in state["profiles"].items()}, state["seen"], state["updates"])
        self.turns = [Clock(**clock) for clock in turns]

    def to_parameters(self) -> None:
        """Follow the parameters to their device."""
        for weights in self.weights.values():
            for key, w in weights.items():
                weights[key] = w.to(self.device or self.parameters[key].device)
        self._localise()

    def belong_to(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether these very parameters are the ones averaged here."""
        return self.parameters.keys() == parameters.keys() and all(p is parameters[name] for name, p in self.parameters.items())

    def as_parameter(self, key: str, value: Tensor) -> Tensor:
        """What `swap_in` returned for a parameter, in the form of the parameter itself."""
        p = self.parameters[key]
        if not is_sharded(p):
            return value
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())

    def _localise(self) -> None:
        """For each clock the tensors that its updates work on, and whether the parameters can be read as they are."""
        keys: dict[int | None, list[str]] = {}
        for key in self.parameters:
            keys.setdefault(self._turn_of.get(key), []).append(key)
        self._groups: dict[int | None, tuple[dict[str, list[Tensor]], list[Tensor]]]
        self._groups = {turn: ({name: [local(weights[key]) for key in group] for name, weights in self.weights.items()},
                               [self.parameters[key] for key in group]) for turn, group in keys.items()}  # fmt: skip
        device = None if self.device is None else torch.device(self.device)
        self._plain = all(p.dtype == torch.float32 and not is_sharded(p) and device in (None, p.device) for p in self.parameters.values())

    def _copy(self, p: nn.Parameter) -> Tensor:
        return p.detach().to(self.device or p.device, torch.float32, copy=True)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.to(other.device, other.dtype)


def _put(p: nn.Parameter, value: Tensor) -> None:
    if is_sharded(p):
        local(p).copy_(value)
    else:
        p.data = value


def _same(what: str, saved: Iterable[str], wanted: Iterable[str]) -> None:
    missing, unknown = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
    if missing or unknown:
        raise ValueError(f"the checkpoint has other {what}: missing {missing[:5]}, not known here {unknown[:5]}; "
                         "resume with the configuration it was written with")  # fmt: skip
