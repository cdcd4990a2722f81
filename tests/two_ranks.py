"""Two ranks on this machine, over gloo: forked from the test, so that they import nothing again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORLD = 2


def on_ranks(work: Callable[..., Any], folder: Path, *given: Any, world: int = WORLD, timeout: float = 800) -> list[Any]:
    """What ``work(*given)`` gives on each rank; Lightning finds its ranks there. An error on one rank is raised here.

    Results travel through files in ``folder``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, world, port, folder, work, given)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
    made = []
    for rank in range(world):
        error, result = folder / f"error{rank}.txt", folder / f"result{rank}.pt"
        assert not error.exists(), error.read_text()
        assert result.exists(), f"rank {rank} ended without a word, exit code {ranks[rank].exitcode}"
        made.append(torch.load(result, weights_only=False))
        result.unlink()
    return made


def _rank(rank: int, world: int, port: int, folder: Path, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world),
                      RANK=str(rank))  # fmt: skip
    code = 0
    try:
        torch.save(work(*given), folder / f"result{rank}.pt")
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        code = 1
    os._exit(code)  # without the exit hooks of the test process
