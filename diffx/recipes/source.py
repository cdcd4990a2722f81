"""Signatures read from source files, so that a typo is answered before torch or lightning is imported.

`find` follows a dotted name through packages the way an import would (definitions, ``from .x import y``, ``import a as b``, sub-modules),
but only parses files. What cannot be known that way (C extensions, names made at run time, class methods) gives None; ask `inspected` after
the import.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Argument", "Signature", "find", "inspected"]

Definition: TypeAlias = ast.ClassDef | ast.FunctionDef
BARE = {"object", "ABC", "Generic", "Protocol", "Module", "NamedTuple"}  # bases whose constructor takes nothing of its own


@dataclass(frozen=True)
class Argument:
    """One keyword argument: its annotation as source text (None = none), and whether it must be given."""

    annotation: str | None = None
    required: bool = False


@dataclass(frozen=True)
class Signature:
    """What a target takes by keyword; ``open`` if it takes any other keyword, too."""

    arguments: dict[str, Argument]
    open: bool = False


@dataclass(frozen=True)
class File:
    """A parsed module: its top-level names, its star imports, and whether names may also be made at run time."""

    path: Path
    name: str
    names: dict[str, Any]
    stars: tuple[ast.ImportFrom, ...]
    dynamic: bool

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def find(target: str) -> Signature | None:
    """The signature of a dotted name, from source; None when only an import can tell.

    Raises:
        LookupError: there is no such package or name; the second argument lists the names that are there.
    """
    try:
        found = _walk(*_top(target.split(".")), depth=0)
        return None if found is None else _signature(*found, depth=0)
    except _Unknown:
        return None


def inspected(thing: Any) -> Signature | None:
    """The signature of an imported class or function; None when it has none that Python knows."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (ValueError, TypeError):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    arguments = {p.name: Argument(_text(p), p.default is p.empty) for p in named}
    return Signature(arguments, any(p.kind == p.VAR_KEYWORD for p in parameters))


class _Unknown(Exception):
    """Only an import can tell."""


def _text(parameter: inspect.Parameter) -> str | None:
    if parameter.annotation is parameter.empty:
        return None
    text = parameter.annotation if isinstance(parameter.annotation, str) else inspect.formatannotation(parameter.annotation)
    return f"{text} | None" if parameter.default is None else text


# Names ------------------------------------------------------------------------------------------------------------------------------------


def _top(parts: list[str]) -> tuple[File, list[str]]:
    spec = importlib.util.find_spec(parts[0]) if parts[0].isidentifier() else None  # a top-level name: nothing is executed
    if spec is None:
        raise LookupError(f"there is no package {parts[0]!r}", [])
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise _Unknown
    return _parse(Path(spec.origin), parts[0]), parts[1:]


@functools.cache
def _parse(path: Path, name: str) -> File:
    names: dict[str, Any] = {}
    stars: list[ast.ImportFrom] = []
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            stars.append(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update({alias.asname or alias.name.partition(".")[0]: (node, alias) for alias in node.names})
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update({t.id: node for t in targets if isinstance(t, ast.Name)})
    return File(path, name, names, tuple(stars), "__getattr__" in names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under ``if`` (TYPE_CHECKING among them) and ``try`` included."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody") if isinstance(node, (ast.If, ast.Try)) else ():
            yield from _statements(getattr(node, inner, []))


def _walk(file: File, names: list[str], depth: int) -> tuple[File, Definition] | None:
    """From a module down the remaining names to a class or function."""
    if not names or depth > 20:
        raise _Unknown
    first, *rest = names
    entry = file.names.get(first)
    if isinstance(entry, (ast.ClassDef, ast.FunctionDef)):
        if rest:
            raise _Unknown
        return file, entry
    if isinstance(entry, tuple):
        node, alias = entry
        return _follow(file, node, alias, rest, depth + 1)
    if isinstance(entry, (ast.Assign, ast.AnnAssign)):
        if isinstance(entry.value, ast.Name) and entry.value.id != first and not rest:
            return _walk(file, [entry.value.id], depth + 1)
        raise _Unknown
    if inside := _submodule(file, first):
        return _walk(inside, rest, depth + 1)
    for star in file.stars:
        with contextlib.suppress(LookupError):
            return _walk(_module(file, star), names, depth + 1)
    if (
        file.dynamic and "TYPE_CHECKING" not in file.names
    ):  # a lazy front that shows its names to type checkers, as `diffx` does, hides none
        raise _Unknown
    raise LookupError(f"there is no {first!r} in {file.name}", sorted({*file.names, *_modules(file)}))


def _follow(file: File, node: ast.Import | ast.ImportFrom, alias: ast.alias, rest: list[str], depth: int) -> tuple[File, Definition] | None:
    if isinstance(node, ast.Import):
        parts = alias.name.split(".") if alias.asname else [alias.name.partition(".")[0]]
        return _walk(*_top([*parts, *rest]), depth=depth)
    source = _module(file, node)
    if source is file:  # a package that imports its own sub-module by its full name
        inside = _submodule(file, alias.name)
        if inside is None:
            raise _Unknown
        return _walk(inside, rest, depth)
    return _walk(source, [alias.name, *rest], depth)


def _module(file: File, node: ast.ImportFrom) -> File:
    """The file that a ``from ... import`` reads."""
    package = file.package.split(".")
    above = package[: len(package) - node.level + 1] if node.level else []
    source, names = _top([*above, *(node.module or "").split(".")] if node.module else above)
    for name in names:
        inside = _submodule(source, name)
        if inside is None:
            raise _Unknown
        source = inside
    return source


def _submodule(file: File, name: str) -> File | None:
    if file.path.name != "__init__.py" or not name.isidentifier():
        return None
    for path in (file.path.parent / name / "__init__.py", file.path.parent / f"{name}.py"):
        if path.is_file():
            return _parse(path, f"{file.name}.{name}")
    return None


def _modules(file: File) -> set[str]:
    return {path.stem for path in file.path.parent.glob("[a-z]*.py")} if file.path.name == "__init__.py" else set()


# Signatures -------------------------------------------------------------------------------------------------------------------------------


def _signature(file: File, node: Definition, depth: int) -> Signature:
    if depth > 20:
        raise _Unknown
    if isinstance(node, ast.FunctionDef):
        return _function(node)
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    if inits:
        init = inits[-1]  # the ones before it are overloads
        own = _function(init, skip=1)
        passed = _passed_on(init)
        return own if not own.open or passed is None else _joined(own, _bases(file, node, depth), passed)
    if any(_last(item) == "dataclass" for item in node.decorator_list) or "NamedTuple" in map(_last, node.bases):
        return Signature({**_bases(file, node, depth).arguments, **_fields(node)})
    made_otherwise = any(k.arg == "metaclass" and _last(k.value) != "ABCMeta" for k in node.keywords)
    if made_otherwise or any(isinstance(item, ast.FunctionDef) and item.name == "__new__" for item in node.body):
        raise _Unknown  # may take other arguments than __init__
    return _bases(file, node, depth)


def _bases(file: File, node: ast.ClassDef, depth: int) -> Signature:
    """The constructor that a class inherits: that of its first base which has one."""
    for base in node.bases:
        if _last(base) in BARE:
            continue
        if isinstance(base, ast.Subscript):
            base = base.value
        found = _walk(file, ast.unparse(base).split("."), depth)
        if found is not None and (signature := _signature(*found, depth + 1)).arguments:
            return signature
    return Signature({})


def _function(node: ast.FunctionDef, skip: int = 0) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    bare = [None] * (len(positional) - len(node.args.defaults))
    pairs = [*zip(positional, [*bare, *node.args.defaults], strict=True)][skip:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return Signature({arg.arg: _argument(arg.annotation, default) for arg, default in pairs}, node.args.kwarg is not None)


def _argument(annotation: ast.expr | None, default: ast.expr | None) -> Argument:
    text = None if annotation is None else ast.unparse(annotation)
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value
    if text is not None and isinstance(default, ast.Constant) and default.value is None:
        text = f"{text} | None"
    return Argument(text, default is None)


def _passed_on(init: ast.FunctionDef) -> set[str] | None:
    """Arguments that ``super().__init__(a=..., **options)`` fills in itself; None when ``**options`` is not handed on."""
    rest = init.args.kwarg.arg if init.args.kwarg else ""
    for call in ast.walk(init):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            handed = [k for k in call.keywords if k.arg is None and isinstance(k.value, ast.Name) and k.value.id == rest]
            if handed and not call.args:
                return {k.arg for k in call.keywords if k.arg is not None}
    return None


def _joined(own: Signature, base: Signature, passed: set[str]) -> Signature:
    return Signature({**{name: a for name, a in base.arguments.items() if name not in passed}, **own.arguments}, base.open)


def _fields(node: ast.ClassDef) -> dict[str, Argument]:
    """The fields of a dataclass that its constructor takes."""
    fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation):
            made = item.value if isinstance(item.value, ast.Call) and _last(item.value) == "field" else None
            options = {k.arg: k.value for k in made.keywords} if made else {}
            if "init" not in options or ast.unparse(options["init"]) != "False":
                given = item.value if not options else options.get("default", options.get("default_factory"))
                fields[item.target.id] = _argument(item.annotation, given)
    return fields


def _last(node: ast.expr | None) -> str:
    """The last word of a name, a call or a subscript: ``dataclass`` of ``@dataclasses.dataclass(frozen=True)``."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
