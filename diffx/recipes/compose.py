"""Experiments and command lines to one plain tree that remembers where each of its keys was written.

Rules, all of them: ``defaults`` are merged left to right and the file itself comes last; mappings are merged key by key, everything else is
replaced; then ``small=true`` applies the mapping ``small``; then the command line, left to right:

* ``a.b=c`` changes a key (or gives an argument that the part at ``a`` takes), ``+a.b=c`` adds one, ``~a.b`` deletes one. In a file the key
  ``~b`` deletes what was inherited. An item of a list is addressed by its number: ``mults.0=2``.
* Values are YAML 1.1: ``1e3`` and ``1e-3`` are floats, ``20_000`` is an integer, ``on``, ``yes``, ``off`` and ``no`` are booleans, ``1:30``
  is 90; quote what shall stay text (``name='"no"'`` in a shell). A mapping given as a value replaces the whole key.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from . import text as yaml
from .errors import RecipeError, hint
from .lookup import locate, search_path
from .sections import CALLBACKS, LOGGERS, SECTIONS

__all__ = ["COMMAND_LINE", "Config", "Keys", "compose", "dotted", "parse_value"]

Keys: TypeAlias = tuple[str | int, ...]
COMMAND_LINE = "on the command line"
DELETE = "~"
MISSING = "???"


@dataclass(frozen=True)
class Config:
    """A composed experiment.

    Args:
        name: of the experiment, e.g. ``digits/edm``.
        file: where it was found.
        tree: everything resolved, as plain dictionaries and lists.
        raw: the same before interpolations such as ``${oc.env:DATA}`` were resolved.
        origin: key path -> "in FILE" or "on the command line".
        overrides: the command line as it was given.
        problems: what is wrong with the overrides; `check.check` raises them together with what it finds itself.
    """

    name: str
    file: Path
    tree: dict[str, Any]
    raw: dict[str, Any]
    origin: Mapping[Keys, str]
    overrides: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def where(self, path: Keys) -> str:
        """Who wrote a key, or the nearest key above it."""
        return next((self.origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origin), f"in {short(self.file)}")


@dataclass
class _Tree:
    """The tree while it grows."""

    folders: Sequence[Path]
    tree: dict[str, Any] = field(default_factory=dict)
    origin: dict[Keys, str] = field(default_factory=dict)
    small: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)  # with who wrote it


def compose(experiment: str, overrides: Sequence[str] = (), *, folders: Sequence[str | Path] = ()) -> Config:
    """Find an experiment, merge its defaults, apply the command line.

    Args:
        experiment: a name such as ``digits/edm`` or the path of a YAML file.
        overrides: ``a.b=c``, ``+a.b=c``, ``~a.b`` and ``small=true``.
        folders: searched before all others.

    Raises:
        RecipeError: the files cannot be read or merged, an interpolation leads nowhere, or a mandatory value is missing.
    """
    path = search_path(folders)
    name, file = locate(experiment, path)
    grown = _Tree([*path, file.parent])
    _inherit(grown, file, ())
    grown.tree.pop("defaults", None)
    name = grown.tree.setdefault("experiment", name)
    _shrink(grown, [text for text in overrides if text.startswith("small=")])
    problems = [problem for text in overrides if not text.startswith("small=") for problem in _override(grown, text)]
    grown.tree = {key: grown.tree[key] for key in (*SECTIONS, *grown.tree) if key in grown.tree}  # in the order of `sections`
    return Config(name, file, _resolved(grown, problems), grown.tree, grown.origin, tuple(overrides), tuple(problems))


def parse_value(text: str) -> Any:
    """A value on a command line, read as YAML.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not YAML: {error}") from error


def short(file: Path) -> str:
    """A path relative to the working directory where that is possible."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


# Files ------------------------------------------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.parse(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(f"cannot read {short(file)}: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{short(file)} must hold a mapping of {', '.join(SECTIONS)}; got {tree!r:.60}")
    return tree


def _inherit(grown: _Tree, file: Path, above: tuple[Path, ...]) -> None:
    """Merge the defaults of a file, then the file."""
    if file in above:
        circle = " -> ".join(short(f) for f in [*above[above.index(file) :], file])
        raise RecipeError(f"experiments inherit from each other in a circle: {circle}")
    tree = _read(file)
    defaults = tree.get("defaults") or []
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise RecipeError(f"defaults must be a list of names in {short(file)}, got {defaults!r}")
    for name in defaults:
        try:
            base = locate(name, grown.folders)[1]
        except RecipeError as error:
            raise RecipeError(f"defaults in {short(file)}: {error}") from error
        _inherit(grown, base, (*above, file))
    origin = f"in {short(file)}"
    small = tree.pop("small", {})
    if not isinstance(small, Mapping):
        raise RecipeError(f"small must be a mapping of what small=true changes {origin}, got {small!r}")
    grown.small.append((small, origin))
    _merge(grown, tree, (), origin)


def _merge(grown: _Tree, news: Mapping[Any, Any], path: Keys, origin: str) -> None:
    here = _at(grown.tree, path)
    for key, value in news.items():
        if isinstance(key, str) and key.startswith(DELETE):
            if key[1:] not in here:
                raise RecipeError(f"{dotted((*path, key[1:]))}: nothing to delete {origin}{hint(key[1:], here)}")
            _drop(grown, (*path, key[1:]))
        elif isinstance(value, Mapping):
            if not isinstance(here.get(key), dict):
                _put(grown, (*path, key), {}, origin)
            _merge(grown, value, (*path, key), origin)
        else:
            _put(grown, (*path, key), copy.deepcopy(value), origin)


def _shrink(grown: _Tree, given: Sequence[str]) -> None:
    """Apply the mappings ``small`` of all files if ``small=true`` was given."""
    wanted = parse_value(given[-1].partition("=")[2]) if given else False
    if not isinstance(wanted, bool):
        raise RecipeError(f"small must be true or false, got {wanted!r} {COMMAND_LINE}")
    if wanted and not any(small for small, _ in grown.small):
        raise RecipeError("small=true: the experiment has no section 'small' that says how to shrink it")
    for small, origin in grown.small if wanted else ():
        _merge(grown, small, (), origin)


# Command line -----------------------------------------------------------------------------------------------------------------------------


def _override(grown: _Tree, text: str) -> Iterator[str]:
    """Apply one override; yield what is wrong with it."""
    adds, deletes = text.startswith("+"), text.startswith(DELETE)
    key, equals, value = text.lstrip("+" if adds else DELETE if deletes else "").partition("=")
    if not key or bool(equals) == deletes:
        yield f"cannot read {text!r} {COMMAND_LINE}: write key=value, +key=value or ~key"
        return
    path: Keys = ()
    words = key.split(".")
    for word in words:
        node = _at(grown.tree, path)
        step = int(word) if isinstance(node, list) and word.lstrip("-").isdigit() else word
        last = len(path) + 1 == len(words)
        if not _has(node, step) and (deletes or not (adds or _may_add(path, node, word, last))):
            yield _unknown(grown.tree, path, node, key)
            return
        if not isinstance(node, dict) and not _has(node, step):
            yield f"{dotted(path) or 'the experiment'} is {node!r}, not a mapping: {key!r} {COMMAND_LINE} cannot be set"
            return
        path = (*path, step)
        if not last and not _has(node, step):
            _put(grown, path, {}, COMMAND_LINE)
    if deletes:
        _drop(grown, path)
        return
    try:
        _put(grown, path, parse_value(value), COMMAND_LINE)
    except ValueError as error:
        yield f"{key} {COMMAND_LINE}: {error}"


def _may_add(path: Keys, node: Any, word: str, last: bool) -> bool:
    """Whether a key may be new without ``+``: a section, an argument of a part (checked later), a callback or logger by its short name."""
    if not isinstance(node, dict):
        return False
    if not path:
        return word in SECTIONS and word not in {"defaults", "small"}
    if not last:
        return False
    names = {"callbacks": CALLBACKS, "logger": LOGGERS}
    if len(path) == 1 and path[0] in names:
        return word in names[str(path[0])]
    short_name = len(path) == 2 and path[1] in names.get(str(path[0]), ())
    return path == ("trainer",) or "_target_" in node or short_name


def _unknown(tree: Any, path: Keys, node: Any, key: str) -> str:
    rest = key.split(".")[len(path) :]
    here = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    names = {name for name in map(str, [*here, *(SECTIONS if not path else ())]) if hint(rest[0], [name])}
    near = hint(key, [dotted((*path, name, *rest[1:])) for name in names])
    if not near or (len(rest) == 1 and not path):  # the right word in the wrong place: `width=8`
        ends = [p for p in map(dotted, _paths(tree)) if p.endswith(f".{key}")]
        near = f"; did you mean {ends[0]!r}?" if ends else near or f"; +{key}=... adds it"
    return f"unknown key {key!r} {COMMAND_LINE}{near}"


# The tree ---------------------------------------------------------------------------------------------------------------------------------


def dotted(path: Keys) -> str:
    """``("module", "net", 0)`` -> ``module.net.0``."""
    return ".".join(map(str, path))


def _paths(tree: Any, path: Keys = ()) -> Iterator[Keys]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _at(tree: Any, path: Keys) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _has(node: Any, key: str | int) -> bool:
    return key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int) and -len(node) <= key < len(node)


def _put(grown: _Tree, path: Keys, value: Any, origin: str) -> None:
    for old in [p for p in grown.origin if p[: len(path)] == path]:
        del grown.origin[old]
    _at(grown.tree, path[:-1])[path[-1]] = value
    grown.origin[path] = origin


def _drop(grown: _Tree, path: Keys) -> None:
    _put(grown, path, None, "")
    del grown.origin[path]
    del _at(grown.tree, path[:-1])[path[-1]]


def _resolved(grown: _Tree, problems: Sequence[str]) -> dict[str, Any]:
    """Resolve interpolations; name every mandatory value (``???``) that is still missing."""
    leaves = {path: _at(grown.tree, path) for path in _paths(grown.tree)}
    if missing := sorted(dotted(path) for path, value in leaves.items() if value == MISSING):
        raise RecipeError(*problems, *(f"{key} must be given: {key}=..." for key in missing))
    if not any(isinstance(value, str) and "${" in value for value in leaves.values()):
        return copy.deepcopy(grown.tree)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(grown.tree), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "an interpolation"
        where = grown.origin.get(tuple(key.split(".")), "")
        raise RecipeError(*problems, f"{key}: {str(error).splitlines()[0]} {where}".rstrip()) from error
