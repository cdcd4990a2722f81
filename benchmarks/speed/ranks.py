"""Processes of this machine that train one network together, a step whenever they are asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import training_step

__all__ = ["Ranks"]


class Ranks:
    """Ranks of a gloo group, each with the same network and as much data as one alone would have; they leave when this object goes.

    Args:
        world: how many.
        make: makes the network and the shape of a rank's batch; a function of a module, since other processes import it.
    """

    def __init__(self, world: int, make: Callable[[], tuple[nn.Module, tuple[int, ...]]]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        start, self.ends = mp.get_context("spawn"), []
        for rank in range(world):
            here, there = start.Pipe()
            start.Process(target=_work, args=(rank, world, Path(self.folder.name, "meeting"), make, there), daemon=True).start()
            there.close()
            self.ends.append(here)
        self.step()  # they are there and have exchanged gradients once

    def step(self) -> None:
        """One step of all; returns when the last one has taken it."""
        for end in self.ends:
            end.send(True)
        for end in self.ends:
            end.recv()


def _work(rank: int, world: int, meeting: Path, make: Callable[[], tuple[nn.Module, tuple[int, ...]]], end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    net, shape = make()
    x, noise = torch.randn(shape), torch.rand(shape[0])
    step = training_step(str(rank), DistributedDataParallel(net), lambda net: net(x, noise).square().mean())
    with suppress(EOFError):  # the other end is closed
        while end.recv():
            step.call()
            end.send(True)
    dist.destroy_process_group()
