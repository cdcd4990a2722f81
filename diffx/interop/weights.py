"""Reading foreign weights, without running anything that a file brings along, and filling them in with a clear report."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Source", "fill", "read_weights"]

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, object] | nn.Module
WRAPPED = {"ema": "ema", "raw": "model"}  # keys under which DiT's trainer saves its averages and its weights
IN_FOLDER = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def read_weights(source: Source, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Tensors by name from a file, a folder, a mapping or a module.

    Args:
        source: a ``.safetensors`` file; a file of ``torch.save``, read as tensors and plain values only; the folder of a diffusers
            model or pipeline; a mapping; a module.
        weights: ``"ema"`` or ``"raw"``, where a trainer has wrapped both into one file; plain weights are taken as they are.

    Raises:
        FileNotFoundError: there is no such file, or no weights in the folder.
        ValueError: ``weights`` is neither, or the file holds more than tensors and plain values, or lacks the weights asked for.
    """
    if weights not in WRAPPED:
        raise ValueError(f'weights must be "ema" or "raw", got {weights!r}')
    if isinstance(source, nn.Module):
        return source.state_dict()
    held = source if isinstance(source, Mapping) else _read(_file(Path(source)))
    if any(isinstance(held.get(key), Mapping) for key in WRAPPED.values()):
        inner = held.get(WRAPPED[weights])
        if not isinstance(inner, Mapping):
            raise ValueError(f"there are no {weights!r} weights (key {WRAPPED[weights]!r}) in {_named(source)}; it holds {sorted(held)}")
        held = inner
    if other := [name for name, value in held.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{_named(source)} is no mapping from names to tensors: {_some(other)} is something else")
    return dict(held)  # type: ignore[arg-type]


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str = "the given weights") -> None:
    """Copy weights into a network, all or none.

    Args:
        net: takes exactly the names and shapes of its own ``state_dict``.
        state: the weights.
        source: where they come from, for the message.

    Raises:
        ValueError: names are missing or left over, or shapes differ; says which.
    """
    own = net.state_dict()
    problems = []
    if missing := [name for name in own if name not in state]:
        problems.append(f"missing: {_some(missing)}")
    if extra := [name for name in state if name not in own]:
        problems.append(f"not known to the network: {_some(extra)}")
    if differ := [name for name in own if name in state and own[name].shape != state[name].shape]:
        shapes = [f"{name} {tuple(state[name].shape)}, here {tuple(own[name].shape)}" for name in differ]
        problems.append(f"of another shape: {_some(shapes)}")
    if problems:
        raise ValueError(f"{source} do not fit {type(net).__name__}; " + "; ".join(problems))
    net.load_state_dict(dict(state))


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    places = [folder / name for folder in (path, path / "transformer") for name in IN_FOLDER]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no file {path}, nor a folder of that name with {' or '.join(IN_FOLDER)} in it")
    return found


def _read(file: Path) -> Mapping[str, object]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DiT's trainer saves its command line: a bag of plain values
            held = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{file} cannot be read as tensors and plain values ({str(error).splitlines()[0]}); it is never unpickled"
        ) from error
    if not isinstance(held, Mapping):
        raise ValueError(f"{file} is no mapping from names to tensors but a {type(held).__name__}")
    return held


def _named(source: Source) -> str:
    return "the given mapping" if isinstance(source, Mapping) else str(source)


def _some(names: Iterable[str], shown: int = 4) -> str:
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest} more" if rest > 0 else "")
