"""Counts where the processor would wait for an accelerator: networks run on an accelerator that does not exist, and every call that reads
numbers back from it, or hands some over without saying that it may go on, is written down."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DIFFX = str(Path(__file__).resolve().parents[1] / "diffx")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
READS |= {"_unique2", "unique_dim", "unique_consecutive", "bincount"}


class Waits(TorchDispatchMode):
    """Writes down calls on tensors of an accelerator that need their values, and copies that are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = any(t.device.type == "cuda" for t in tensors)
        if away and (name in READS or (name in {"index", "index_put", "index_put_"} and any(t.dtype == torch.bool for t in tensors[1:]))):
            self._write(name)
        if name in {"_to_copy", "copy_"}:
            target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else tensors[0].device
            source = tensors[-1].device
            if source.type != target.type and (target.type == "cpu" or not (kwargs.get("non_blocking") or args[-1] is True)):
                self._write(f"{name} from {source.type} to {target.type}")
        if not any(isinstance(t, FakeTensor) for t in tensors) and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():  # what the processor does for itself is real, and may be read
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _write(self, what: str) -> None:
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_stack() if f.filename.startswith(DIFFX)]
        self.seen.append(f"{what} at {ours[-1] if ours else '?'}")


@contextmanager
def nowhere() -> Iterator[FakeTensorMode]:
    """Tensors of an accelerator that are made inside have no numbers, and the accelerator need not be there."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def moved(value: Any, mode: FakeTensorMode) -> Any:
    """A tensor, a module (in place) or the entries of a batch on the accelerator, before anything is counted."""
    if isinstance(value, nn.Module):
        for part in value.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = None if p is None else nn.Parameter(moved(p.data, mode), requires_grad=p.requires_grad)
            part._buffers.update({name: moved(b, mode) for name, b in part._buffers.items()})
            if isinstance(part, LightningModule):
                part._device = torch.device("cuda:0")
        return value
    if isinstance(value, Tensor):
        return mode.from_tensor(value).to("cuda")
    if isinstance(value, dict):
        return {name: moved(v, mode) for name, v in value.items()}
    return value
