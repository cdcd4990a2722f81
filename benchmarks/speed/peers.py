"""Peers that need a hand to be imported, or to be built without a network connection."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

__all__ = ["k_diffusion_sampling", "muse_transformer"]


def k_diffusion_sampling() -> Any:
    """The module ``k_diffusion.sampling`` alone: the package's front file imports a dozen libraries that sampling does not use.

    Raises:
        ModuleNotFoundError: k-diffusion, or one of the two solvers that its sampling imports, is not installed.
    """
    if "k_diffusion" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        if found is None:
            raise ModuleNotFoundError("k-diffusion", name="k-diffusion")
        package = ModuleType("k_diffusion")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["k_diffusion"] = package
    from k_diffusion import sampling

    return sampling


def muse_transformer(width: int, text_width: int, **options: Any) -> Any:
    """muse-maskgit-pytorch's transformer. Its constructor asks a hub for the width of a T5; here the answer is put where it looks first."""
    from muse_maskgit_pytorch import MaskGitTransformer, t5

    t5.T5_CONFIGS["none"] = {"config": SimpleNamespace(d_model=text_width)}
    return MaskGitTransformer(dim=width, t5_name="none", **options)
