"""Trained modules out: one ``.safetensors`` file with the recipe in its header, or a folder that diffusers loads as a pipeline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..recipes.load import EXPORT, load

__all__ = ["FORMS", "WEIGHTS", "check_form", "sha256", "write_pipeline", "write_safetensors"]

WEIGHTS = EXPORT
FORMS = {
    "safetensors": "weights and recipe of any module in one file, which diffx.load reads",
    "diffusers": "a pipeline folder of a technique whose samples are pictures, clips or sounds",
    "stock": "a folder of diffusers' own classes, where one is the same function",
}
PIPELINE = '''"""The pipeline of a model trained with diffx, which must be installed: pip install diffx."""

from diffx.interop.pipeline import DiffxPipeline

__all__ = ["DiffxPipeline"]
'''
TECHNIQUE = '''"""The technique of this pipeline; its recipe stands in the header of model.safetensors."""

from diffx.interop.pipeline import Technique

__all__ = ["Technique"]
'''


def check_form(module: Any, form: str) -> None:
    """Look whether a module can be exported in a form of `FORMS`.

    Raises:
        ValueError: it cannot; says which forms there are.
    """
    from .. import media

    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}; there are {', '.join(FORMS)}")
    if form == "diffusers" and (hasattr(module, "reconstruct") or not media.showable(module.shape)):
        made = "trains a codec" if hasattr(module, "reconstruct") else f"makes samples of shape {module.shape}"
        raise ValueError(
            f"{type(module).__name__} has no form as a diffusers pipeline: that is {FORMS['diffusers']}, and this one {made}. "
            f"There is to=safetensors, {FORMS['safetensors']}"
        )


def write_safetensors(module: Any, path: str | os.PathLike[str], weights: str = "ema", config: Mapping[str, Any] | None = None) -> Path:
    """Write a module's weights with its recipe in the header, and read them back: `diffx.load` of the file gives the module.

    Args:
        module: a `DiffusionModule` with the weights to be written, see `diffx.load`.
        path: a new file.
        weights: which weights of its checkpoint these are, to be said in the header.
        config: the resolved configuration of its run, for the reader of the header.

    Returns:
        ``path``.

    Raises:
        FileExistsError: there is something already.
        OSError: it cannot be written.
        ValueError: what was written cannot be loaded, because the recipe names classes that are neither diffx's nor known.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already; name a new file")
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    about = {**checkpoint["diffx"], "weights": weights}
    header = {"format": "pt", "diffx": json.dumps(about), **({} if config is None else {"config": json.dumps(config)})}
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    files.write(path, lambda handle: handle.write(save(state, header)))
    try:
        _compare(load(path), state)
    except ValueError as error:
        path.unlink()
        raise ValueError(f"what was written cannot be loaded again, so it was removed: {error}") from error
    return path


def write_pipeline(
    module: Any,
    folder: str | os.PathLike[str],
    *,
    weights: str = "ema",
    config: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write a folder that ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads where diffx is installed.

    Args:
        module: a `DiffusionModule` whose samples are pictures, clips or sounds.
        folder: a new folder; it appears whole or not at all.
        weights: which weights of its checkpoint these are, see `write_safetensors`.
        config: the resolved configuration of its run, likewise.
        card: text of ``README.md``, in which ``{sha256}`` stands for the checksum of the weights.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: there is something already.
        OSError: it cannot be written.
        ValueError: see `check_form` and `write_safetensors`.
    """
    import diffusers

    check_form(module, "diffusers")
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; name a new folder")
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    index = {
        "_class_name": ["pipeline", "DiffxPipeline"],
        "_diffusers_version": diffusers.__version__,
        "technique": ["technique", "Technique"],
    }
    texts = {"model_index.json": json.dumps(index, indent=2) + "\n", "pipeline.py": PIPELINE, "technique/technique.py": TECHNIQUE}
    try:
        file = write_safetensors(module, building / WEIGHTS, weights, config)
        if card is not None:
            texts["README.md"] = card.replace("{sha256}", sha256(file))
        for name, text in texts.items():
            (building / name).write_text(text, encoding="utf-8")
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def sha256(path: str | os.PathLike[str]) -> str:
    """Checksum of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(module: Any, state: Mapping[str, torch.Tensor]) -> None:
    """The second reading must give what was written, NaN for NaN."""
    read = module.state_dict()
    if differ := [name for name, value in state.items() if not torch.equal(read[name].nan_to_num(), value.nan_to_num())]:
        raise ValueError(f"{differ[0]} reads back differently")
