"""Where experiments are found: by path, in the user's folders, in the working directory and above it, in the package."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import RecipeError, hint

__all__ = ["descriptions", "locate", "search_path"]


def search_path(folders: Sequence[str | Path] = ()) -> list[Path]:
    """Folders that are searched for experiments, first hit wins.

    ``folders`` (``--experiments-dir``), those in ``DIFFX_EXPERIMENTS``, ``experiments/`` of the working directory and of its parents, and
    the copy that comes with the package. Folders that do not exist are left out.

    Raises:
        RecipeError: a folder was named explicitly and is not there.
    """
    if missing := [str(f) for f in folders if not Path(f).is_dir()]:
        raise RecipeError(*(f"--experiments-dir: there is no folder {name}" for name in missing))
    named = [*folders, *filter(None, os.environ.get("DIFFX_EXPERIMENTS", "").split(os.pathsep))]
    here = Path.cwd()
    found = [Path(f).resolve() for f in [*named, *(parent / "experiments" for parent in (here, *here.parents)), packaged()]]
    return list(dict.fromkeys(folder for folder in found if folder.is_dir()))


def packaged() -> Path:
    """The copy inside the installed package, or beside the package's folder in an editable install and a clone."""
    spec = importlib.util.find_spec("diffx")
    assert spec is not None and spec.origin is not None
    inside = Path(spec.origin).parent / "experiments"
    return inside if inside.is_dir() else inside.parent.parent / "experiments"


def locate(name: str, folders: Sequence[Path]) -> tuple[str, Path]:
    """The experiment's name and file. ``name`` is an existing file, or a name such as ``digits/edm`` in one of ``folders``.

    Raises:
        RecipeError: nothing is found; says where it looked and which names are near.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        path = path.resolve()
        inside = [folder for folder in folders if path.is_relative_to(folder)]
        return (path.relative_to(inside[0]) if inside else Path(path.name)).with_suffix("").as_posix(), path
    stem = name.strip("/").removesuffix(".yaml")
    for folder in folders:
        if (path := folder / f"{stem}.yaml").is_file():
            return stem, path
    known = [*names(folders)]
    last = [n for n in known if n.rpartition("/")[2] == stem.rpartition("/")[2]]  # the right file in the wrong folder
    near = f"; did you mean {last[0]!r}?" if last else hint(stem, known, count=3)
    raise RecipeError(f"there is no experiment {name!r}{near or ';'} searched {', '.join(map(str, folders)) or 'no folder'}")


def names(folders: Sequence[Path]) -> dict[str, Path]:
    """Every experiment by name; files and folders whose names begin with an underscore are parts to inherit from."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not any(part.startswith("_") for part in name.split("/")):
                found.setdefault(name, path)
    return dict(sorted(found.items()))


def descriptions(folders: Sequence[Path]) -> dict[str, str]:
    """Every experiment with the first line of its description."""
    pattern = re.compile(r"^description:[ \t]*([|>]-?\s+)?(.*)$", re.MULTILINE)
    lines = {name: pattern.search(path.read_text(encoding="utf-8")) for name, path in names(folders).items()}
    return {name: line[2].strip().strip("\"'") if line else "" for name, line in lines.items()}
