"""Reading foreign weights, without running anything that a file brings along, and filling them in with a clear report."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Entry", "Source", "config_of", "fill", "matched", "named", "read_weights", "recognised", "refuse"]

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, object] | nn.Module
WRAPPED = {"ema": "ema", "raw": "model"}  # keys under which DiT's trainer saves its averages and its weights
# Names that only one architecture has; the first that all are found decides, so the special ones come first.
SIGNS: dict[str, tuple[str, ...]] = {
    "EDM2 U-Net": (r"emb_fourier\.freqs", r"enc\.\d+x\d+_conv\.weight"),
    "EDM SongUNet": (r"enc\.\d+x\d+_conv\.weight", r"dec\.\d+x\d+_aux_norm\.weight"),
    "EDM DhariwalUNet": (r"enc\.\d+x\d+_conv\.weight", r"out_norm\.weight"),
    "latent diffusion U-Net with text": (r"input_blocks\.\d+\.1\.transformer_blocks\..*",),
    "guided-diffusion U-Net": (r"input_blocks\.0\.0\.weight", r"time_embed\.0\.weight"),
    "diffusers UNet2DConditionModel": (r"down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\..*", r"conv_in\.weight"),
    "diffusers VQModel": (r"quantize\.embedding\.weight", r"encoder\.conv_in\.weight"),
    "diffusers AutoencoderKL": (r"encoder\.down_blocks\..*", r"decoder\.conv_in\.weight"),
    "diffusers UNet2DModel": (r"conv_in\.weight", r"down_blocks\.\d+\.resnets\..*"),
    "DiT": (r"x_embedder\.proj\.weight", r"final_layer\.linear\.weight"),
    "diffusers DiTTransformer2DModel": (r"transformer_blocks\.\d+\.norm1\.emb\..*", r"proj_out_1\.weight"),
    "BERT": (r".*embeddings\.word_embeddings\.weight", r".*encoder\.layer\.0\..*"),
}
READERS = {
    "EDM2 U-Net": "load_unet",
    "EDM SongUNet": "load_unet",
    "EDM DhariwalUNet": "load_unet",
    "guided-diffusion U-Net": "load_unet",
    "diffusers UNet2DModel": "load_unet",
    "diffusers VQModel": "diffx.tokenizers.DiffusersVQ(folder)",
    "diffusers AutoencoderKL": "diffx.codecs.KL(folder)",
    "DiT": "load_dit",
    "diffusers DiTTransformer2DModel": "load_dit",
    "BERT": "load_tokens",
}
PICKLES = {".pkl", ".pickle"}
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


class Entry(NamedTuple):
    """What one tensor of a network is made of: its name, the names of the source's tensors, and how they make it."""

    ours: str
    theirs: tuple[str, ...]
    make: Callable[..., Tensor]


def matched(net: nn.Module, state: Mapping[str, Tensor], entries: Iterable[Entry], source: str = "the given weights",
            ignored: tuple[str, ...] = ()) -> None:  # fmt: skip
    """Fill a network from weights with other names, all or none.

    Args:
        net: the network.
        state: weights in the source's names.
        entries: one for each tensor of the network.
        source: where they come from, for the message.
        ignored: last words of names that are no weights.

    Raises:
        ValueError: names are missing or left over, in the source's words; or shapes differ.
    """
    made: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for ours, theirs, make in entries:
        if lacking := [name for name in theirs if name not in state]:
            missing += lacking
        else:
            made[ours] = make(*(state[name] for name in theirs))
            used.update(theirs)
    extra = [name for name in state if name not in used and name.rpartition(".")[2] not in ignored]
    if missing or extra:
        problems = [f"missing: {_some(missing)}"] * bool(missing) + [f"not known to the network: {_some(extra)}"] * bool(extra)
        raise ValueError(f"{source} do not fit {type(net).__name__} of this size; " + "; ".join(problems))
    fill(net, made, source)


def recognised(state: Mapping[str, Tensor]) -> str:
    """The architecture whose names these are, ``""`` where no known one has them."""
    for kind, signs in SIGNS.items():
        if all(any(re.fullmatch(sign, name) for name in state) for sign in signs):
            return kind
    return ""


def refuse(wanted: str, kind: str, source: str) -> ValueError:
    """The error for weights of another architecture."""
    if not kind:
        return ValueError(f"{source} are of no architecture that diffx knows, and of no {wanted}")
    how = f"read them with {READERS[kind]}" if kind in READERS else "diffx has no such network"
    return ValueError(f"{source} are no {wanted} that can be read here but a {kind}; {how}")


def config_of(source: Source) -> Mapping[str, Any]:
    """The configuration of a model of diffusers: of the module itself, or the ``config.json`` of its folder (or of ``unet/`` in it).

    Raises:
        ValueError: there is none, as with a bare file of weights.
    """
    if isinstance(source, nn.Module) and isinstance(getattr(source, "config", None), Mapping):
        return source.config  # type: ignore[return-value]
    if isinstance(source, (str, os.PathLike)):
        for folder in (Path(source), Path(source) / "unet"):
            if (folder / "config.json").is_file():
                return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raise ValueError("the sizes of a model of diffusers stand in its config.json: give the folder that holds both, or the model")


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
    places = [folder / name for folder in (path, path / "transformer", path / "unet") for name in IN_FOLDER]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no file {path}, nor a folder of that name with {' or '.join(IN_FOLDER)} in it")
    return found


def _read(file: Path) -> Mapping[str, object]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    if file.suffix in PICKLES:
        raise ValueError(f"{file} is a pickle, which runs code when it is read; it is never unpickled. Save its state_dict as .safetensors")
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


def named(source: Source) -> str:
    """The weights of a source, as the subject of a sentence."""
    return "these weights" if isinstance(source, (Mapping, nn.Module)) else f"the weights of {source}"


def _named(source: Source) -> str:
    return "the given mapping" if isinstance(source, Mapping) else str(source)


def _some(names: Iterable[str], shown: int = 4) -> str:
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest} more" if rest > 0 else "")
