"""What every test starts from: one thread, a fixed seed, and none of the caller's own settings."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers share two cores

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seed torch, and hide the variables that change where experiments are found and how Lightning starts."""
    for name in list(os.environ):
        if name == "DIFFX_EXPERIMENTS" or name.startswith(("SLURM_", "PL_")):
            monkeypatch.delenv(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
