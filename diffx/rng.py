"""Keyed randomness: every draw is a pure function of what it is for, never of what was drawn before it.

A key is ``(seed, purpose, step, slice)``. A *slice* is the part of the global batch that one rank sees in one micro-batch: slice ``s`` of
``S`` holds the positions ``[sB, (s + 1)B)``. Hence two ranks draw different noise, two ranks with one micro-batch equal one rank with two,
and a resumed run draws what the uninterrupted run would have drawn.

Sampling uses one generator per sample instead (`sample_generators`), so that the noise of a picture does not depend on its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from .tensors import expand, handed

__all__ = [
    "STRIDE", "Generators", "forked", "generator", "key", "noised", "permutation", "rand", "randn", "sample_generators", "seed_default",
    "stratified",
]  # fmt: skip

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


STRIDE = 2_654_435_769
"""Added to a seed where one sample needs further, independent noise. A CPU generator of torch looks at the last 32 bits of its seed alone;
multiples of this number (2^32 over the golden ratio) lie far apart in them."""


def key(*parts: int | str) -> int:
    """Hash integers and words to 63 bits, the same on every machine and in every process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a fresh generator seeded with ``key(*parts)``."""
    return torch.Generator(device).manual_seed(key(*parts))


def seed_default(*parts: int | str) -> None:
    """Seed torch's default generators (CPU and every initialised GPU) with ``key(*parts)``.

    A hundred times cheaper than ``torch.manual_seed``, which matters because it happens before every micro-batch.
    """
    value = key(*parts)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for gpu in torch.cuda.default_generators:
            gpu.manual_seed(value)


@contextmanager
def forked(*parts: int | str) -> Iterator[None]:
    """Seed the default generators inside the block and give the caller's state back afterwards."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        if parts:
            seed_default(*parts)
        yield


def sample_generators(seed: int, n: int, start: int = 0) -> list[torch.Generator]:
    """One CPU generator per sample: sample ``i`` of seed ``s`` is seeded with ``s + i``, whatever batch it lands in."""
    return [torch.Generator("cpu").manual_seed(seed + i) for i in range(start, start + n)]


def randn(shape: Sequence[int], generator: Generators = None, *, device: torch.device | str | None = None,
          dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
    """Draw standard normal noise of ``shape`` ``(B, *)``.

    ``generator`` is one generator for the whole batch, one per sample (then row ``i`` depends on generator ``i`` alone), or None for the
    default generator of ``device``. Noise from a generator on another device is drawn there and moved.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(shape: Sequence[int], generator: Generators = None, *, device: torch.device | str | None = None,
         dtype: torch.dtype | None = None) -> Tensor:  # fmt: skip
    """Draw uniform numbers in [0, 1) of ``shape`` ``(B, *)``; ``generator`` as in `randn`."""
    return _draw(torch.rand, shape, generator, device, dtype)


def noised(x: Tensor, sigma: Tensor) -> Tensor:
    """The state ``x + sigma n`` (B, *) at levels ``sigma`` (B,), with n from the default generators, as in a training step."""
    return x + expand(sigma, x) * torch.randn_like(x)


def _draw(fn, shape, generator, device, dtype) -> Tensor:
    if generator is None:
        return fn(*shape, device=device, dtype=dtype)
    if isinstance(generator, torch.Generator):
        return handed(fn(*shape, generator=generator, device=generator.device, dtype=dtype), device)
    if len(generator) != shape[0]:
        raise ValueError(f"one generator per sample: got {len(generator)} generators for a batch of {shape[0]}")
    return handed(torch.stack([fn(*shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator]), device)


def stratified(n: int, *, slice: tuple[int, int] = (0, 1), device: torch.device | str | None = None,
               generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """Draw ``n`` positions in (0, 1), one in each of the strata that belong to this slice of the global batch.

    The global batch of ``N = n * count`` positions has one draw in each interval ``[j/N, (j+1)/N)``; a permutation deals the intervals
    out, so that no row is tied to a level. Every slice must be given a generator in the same state (keyed by the step, not by the slice):
    together they then cover each stratum exactly once. Computed in float64 on the CPU, returned as float32 ``(n,)`` inside (0, 1).
    """
    index, count = slice
    if not 0 <= index < count:
        raise ValueError(f"slice must be (index, count) with 0 <= index < count, got {slice}")
    if count > 1 and generator is None:
        raise ValueError("the slices of one global batch need a generator that is seeded alike for all of them; got None")
    total = n * count
    order = torch.randperm(total, generator=generator)
    jitter = torch.rand(total, generator=generator, dtype=torch.float64)
    u = ((order + jitter) / total)[index * n : (index + 1) * n]
    return handed(u.float().clamp(1e-7, 1 - 1e-7), device)


def permutation(n: int, *parts: int | str) -> Tensor:
    """Permute ``range(n)`` as a pure function of the key."""
    return torch.randperm(n, generator=generator(*parts))
