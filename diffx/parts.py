"""Which parts of a module are trained and averaged, and which are only read."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Self

import lightning as L
from torch import Tensor, nn

from .networks.units import Constrained, checkpoint_activations

__all__ = ["Parts", "freeze"]


def freeze(module: nn.Module) -> nn.Module:
    """Switch gradients off and evaluation mode on: for codecs, teachers and everything else a technique reads but does not train."""
    return module.requires_grad_(False).eval()


class Parts(L.LightningModule):
    """A module that names what of it is trained; optimizer, averages, freezing and sharding read only these names.

    Class attributes:
        trained: names of the sub-modules or parameters that the optimizer descends; a name that is None on the instance is skipped. Every
            other sub-module is kept in evaluation mode.
        averaged: names of those whose moving averages are kept (a subset of ``trained``).
        takes_turns: whether some trained parts have no gradient at all in some steps, for which plain DDP would wait.
        large: names of frozen sub-modules as large as the trained ones, e.g. a teacher, that are sharded with them.
    """

    trained: tuple[str, ...] = ("denoiser",)
    averaged: tuple[str, ...] = ("denoiser",)
    takes_turns = False
    large: tuple[str, ...] = ()
    _constrained: tuple[Constrained, ...] = ()

    def networks(self, *names: str) -> list[nn.Module]:
        """The networks in the named parts, those trained by default: each is entered by a call and sharded or compiled as a whole.

        A part that is not entered by a call itself says in its attribute ``networks`` which of its modules are.
        """
        found: dict[int, nn.Module] = {}
        for name in names or self.trained:
            part = operator.attrgetter(name)(self)
            if isinstance(part, nn.Module):
                found.update((id(net), net) for net in getattr(part, "networks", (part,)))
        return list(found.values())

    def checkpoint_activations(self) -> None:
        """Let the trained networks compute their blocks again in the backward pass; see `diffx.networks.checkpoint_activations`.

        Raises:
            ValueError: they have no blocks.
        """
        nets = self.networks()
        if not sum(checkpoint_activations(net) for net in nets):
            raise ValueError(f"{' and '.join(type(net).__name__ for net in nets)} is no stack of blocks (diffx.networks.Unit); train "
                             "it without")  # fmt: skip

    def on_train_start(self) -> None:
        """Find what is bound to a constraint once, for a walk through all modules would cost every step."""
        self._constrained = tuple(layer for layer in self.modules() if isinstance(layer, Constrained))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Bring trained weights that are bound to a constraint back to it."""
        for layer in self._constrained:
            if layer.training:
                layer.constrain()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters to descend by their names in ``state_dict``."""
        return {name: p for name, p in self._named(self.trained, self.named_parameters()) if p.requires_grad}

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters whose averages are kept, by their names in ``state_dict``."""
        return {name: p for name, p in self._named(self.averaged, self.named_parameters()) if p.requires_grad}

    def turns(self) -> list[set[str]]:
        """Sets of averaged parameters, by their names in ``state_dict``, of which a step trains one; averages rest with them."""
        return []

    def turn(self, step: int) -> int:
        """Which of `turns` is trained in optimizer step ``step``."""
        return 0

    def averaged_buffers(self) -> dict[str, Tensor]:
        """The persistent buffers of the averaged parts, by their names in ``state_dict``."""
        saved = self.state_dict(keep_vars=True)
        return {name: b for name, b in self._named(self.averaged, self.named_buffers()) if name in saved}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups, so that biases, gains and embedding tables are never decayed."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        trained = self.trained_parameters().values()
        decayed = [p for p in trained if p.ndim > 1 and id(p) not in tables]
        kept = [p for p in trained if p.ndim <= 1 or id(p) in tables]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what is not trained stays in evaluation mode."""
        super().train(mode)
        for name, child in self.named_children():
            if not any(part == name or part.startswith(f"{name}.") for part in self.trained):
                child.eval()
        return self

    def _named(self, parts: tuple[str, ...], named: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
        return ((name, value) for name, value in named if any(name == part or name.startswith(f"{part}.") for part in parts))
