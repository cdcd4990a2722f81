"""Checkpoints to objects: `load` needs no configuration file, because the recipe travels in the checkpoint.

A checkpoint is a file from somebody. Reading it runs no code (``weights_only``), and its recipe may build only diffx's own recorded parts
and modules, optimizers and learning-rate schedulers of `FOREIGN` packages, unless the caller vouches for it with ``trust=True``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .build import Allow, build, resolve
from .errors import RecipeError, hint
from .record import OPAQUE, is_recorded, public_name

__all__ = ["EXPORT", "FOREIGN", "SCHEMA", "UPGRADES", "allowed", "fill", "load", "locate", "read"]

FOREIGN = ("torch", "timm", "diffusers", "transformers")
SCHEMA = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # schema n -> function that makes a checkpoint of schema n + 1
EMA = "diffx.EMA"
EXPORT = "technique/model.safetensors"  # where a pipeline folder of `diffx.export` keeps weights and recipe


def load(path: str | os.PathLike[str], weights: str = "ema", *, part: str | None = None, device: Any = "cpu", trust: bool = False,
         cls: type | None = None, **arguments: Any) -> Any:  # fmt: skip
    """Build the module that a checkpoint describes and fill in its weights; it comes back in evaluation mode.

    Args:
        path: a checkpoint, or a run folder (its newest good checkpoint then), or what `diffx.export` wrote.
        weights: ``"ema"`` for the first average, ``"ema:NAME"`` for a named one, ``"raw"`` for the weights that were trained. A checkpoint
            without averages gives its raw weights to ``"ema"`` and says so.
        part: give back this sub-module only, e.g. ``"denoiser"`` for a teacher.
        device: where the weights go.
        trust: let the recipe build any importable class; only for files whose origin you know.
        cls: build this class instead of the one that the recipe names (what ``YourClass.load(path)`` does).
        arguments: constructor arguments that replace those of the recipe.

    Raises:
        FileNotFoundError: there is no such file, or no good checkpoint in the folder.
        ValueError: the file is damaged or no diffx checkpoint, the recipe asks for what it may not build, or there are no such weights.
    """
    file, checkpoint = read(path)
    recipe = checkpoint["diffx"]["recipe"]
    module = _module(file, recipe, resolve if trust else allowed, cls, arguments)
    if hasattr(module, "on_load_checkpoint"):
        module.on_load_checkpoint(checkpoint)
    fill(module, checkpoint, weights, file)
    made = module.eval() if part is None else _part(module, part)
    return made.to(device)


def read(path: str | os.PathLike[str], tensors: bool = True) -> tuple[Path, dict[str, Any]]:
    """Read a checkpoint, or the newest good one of a run folder, on the CPU, brought up to the present schema.

    Without ``tensors`` the sharded ones of a checkpoint that is a folder are left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, no checkpoint of diffx, or of a newer diffx.
    """
    file = locate(path)
    checkpoint = _content(file, tensors)
    about = checkpoint.get("diffx") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "recipe" not in about or "state_dict" not in checkpoint:
        raise ValueError(f"{file} is no diffx checkpoint: it holds no recipe; build the module yourself and use load_state_dict")
    while (schema := checkpoint["diffx"].get("schema")) != SCHEMA:
        if schema not in UPGRADES:
            made = checkpoint["diffx"].get("version", "an unknown version")
            raise ValueError(f"{file} has schema {schema!r} (diffx {made}), this diffx reads up to {SCHEMA}; install a newer diffx")
        checkpoint = UPGRADES[schema](checkpoint)
    return file, checkpoint


def _content(file: Path, tensors: bool) -> Any:
    import torch

    if _is_export(file):
        return _exported(file)
    if file.is_dir():
        from .. import folders

        return folders.read(file) if tensors else folders.rest(file)
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


def locate(path: str | os.PathLike[str]) -> Path:
    """A checkpoint that can be read: the path itself, or the newest good one of a run folder or a folder of checkpoints.

    What `diffx.export` writes, a ``.safetensors`` file or a pipeline folder, counts as a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    from .. import files

    file = Path(path)
    if (file / EXPORT).is_file():
        return file / EXPORT
    if _is_export(file) and file.is_file():
        return file
    if not file.is_dir() or file.suffix == ".ckpt" or files.is_folder(file):
        files.verify(file)
        return file
    inside = file / "checkpoints" if (file / "checkpoints").is_dir() else file
    found = files.latest(inside)
    if found is None:
        raise FileNotFoundError(f"there is no good checkpoint in {inside}")
    return found


def _is_export(file: Path) -> bool:
    return file.suffix == ".safetensors"


def _exported(file: Path) -> dict[str, Any]:
    """What `diffx.export` wrote, in the form of a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            about = json.loads((held.metadata() or {}).get("diffx", "null"))
            return {"diffx": about, "state_dict": {name: held.get_tensor(name) for name in held.keys()}}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def fill(module: Any, checkpoint: Mapping[str, Any], weights: str = "ema", file: str | os.PathLike[str] = "the checkpoint") -> None:
    """Copy the weights of a checkpoint into a module; see `load` for ``weights``.

    Raises:
        ValueError: there are no such weights, or they belong to another network.
    """
    kind, _, name = weights.partition(":")
    if kind not in {"ema", "raw"} or (kind == "raw" and name):
        raise ValueError(f'weights must be "ema", "ema:NAME" or "raw", got {weights!r}')
    state = dict(checkpoint["state_dict"])
    if (held := checkpoint.get("diffx", {}).get("weights")) is not None:
        if weights not in {"ema", held}:
            raise ValueError(f"{file} was exported with weights={held} and holds no others, but {weights!r} were asked for")
    elif kind == "ema":
        average = checkpoint.get("callbacks", {}).get(EMA)
        profiles = average["profiles"] if average else {}
        if name and name not in profiles:
            raise ValueError(f"{file} has no average {name!r}, only {sorted(profiles) or 'raw weights'}{hint(name, profiles)}")
        if profiles:
            state.update(profiles[name or next(iter(profiles))]["weights"])
            state.update(average.get("buffers", {}))
        else:
            print(f"{file} holds no averaged weights: its raw weights are used")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights of {file} do not fit the module: {error}") from error


def allowed(target: str) -> Any:
    """Resolve only what a recipe of unknown origin may build. Nothing outside the allowed packages is even imported.

    Raises:
        RecipeError: anything else.
    """
    top = target.partition(".")[0] if isinstance(target, str) else ""
    thing = resolve(target) if top in {"diffx", *FOREIGN} else None
    if thing is None or not (_own(thing) if top == "diffx" else _foreign(thing)):
        raise RecipeError(f"neither a part of diffx nor a module, optimizer or learning-rate scheduler of {', '.join(FOREIGN)}; "
                          "pass trust=True if you know where the file comes from")  # fmt: skip
    return thing


def _own(thing: Any) -> bool:
    return is_recorded(thing) and thing.__module__.partition(".")[0] == "diffx"


def _foreign(thing: Any) -> bool:
    from torch import nn, optim

    kinds = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler)
    return isinstance(thing, type) and issubclass(thing, kinds) and thing.__module__.partition(".")[0] in FOREIGN


def _module(file: Path, recipe: Mapping[str, Any], allow: Allow, cls: type | None, arguments: Mapping[str, Any]) -> Any:
    """Build outside the caller's random numbers: initial weights are drawn and at once replaced."""
    from .. import rng

    target = str(recipe.get("_target_", recipe.get(OPAQUE)))
    advice = f"{(public_name(cls) if cls else target).rpartition('.')[2]}.load(path, ...)"
    if cls is None and OPAQUE in recipe:
        raise ValueError(f"{file} was made by {target}, which keeps no recipe of itself; use {advice} with its arguments")
    known = {key: value for key, value in recipe.items() if key not in {OPAQUE, "_target_", *arguments}}
    at = f"{file}: module"
    with rng.forked():
        try:
            thing = cls or allow(target)
            built = {key: build(value, at=f"{at}.{key}", allow=allow) for key, value in known.items() if key != "_args_"}
            return thing(*build(known.get("_args_", []), at=at, allow=allow), **built, **arguments)
        except RecipeError as error:
            place = "" if str(error).startswith(at) else f"{at} ({target}): "
            raise RecipeError(f"{place}{error}; or use {advice}, whose arguments replace those of the recipe") from error
        except (LookupError, ImportError, ValueError, TypeError) as error:
            raise RecipeError(f"{at} ({target}): {error.args[0] if error.args else error}; see also {advice}") from error


def _part(module: Any, name: str) -> Any:
    from torch import nn

    part: Any = module
    for word in name.split("."):
        parts = dict(part.named_children())
        if word not in parts:
            raise ValueError(f"{type(module).__name__} has no part {name!r}; here it has {sorted(parts)}{hint(word, parts)}")
        part = parts[word]
    assert isinstance(part, nn.Module)
    return part.eval()
