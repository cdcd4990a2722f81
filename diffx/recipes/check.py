"""Every argument of an experiment against the signature that takes it, before anything is built, all mistakes at once.

Two stages: `check` reads signatures from source and imports nothing; ``check(config, imported=True)`` looks at what only an import can tell
and runs just before building. Annotations are compared where they are plain: bool, int, float, str, None, paths, sequences, mappings,
literals and unions of them. A value for anything else, e.g. a class, is left to the constructor.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from .build import resolve
from .compose import Config, Keys, dotted
from .errors import RecipeError, hint
from .sections import BUILT, CALLBACKS, LOGGERS, RESERVED, SECTIONS, TRAINER
from .source import Signature, find, inspected

__all__ = ["check", "fits", "takes"]

MARKS = {"_target_", "_partial_", "_args_"}
SEQUENCES = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection", "set", "Set"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
PLAIN = {"bool", "int", "float", "str", "None", "Path", "PathLike", "_PATH"}
TYPES = {
    "seed": "int",
    "compile": "bool | dict",
    "activation_checkpointing": "bool",
    "resume": "str",
    "run": "str | int | None",
    "runs": "str",
}


def check(config: Config, *, imported: bool = False) -> None:
    """Compare a composed experiment with the signatures of everything it builds.

    Args:
        config: the experiment.
        imported: import the targets whose source could not tell, and check those.

    Raises:
        RecipeError: one line per mistake with key path, target, file and nearest name.
    """
    problems = [] if imported else [*config.problems, *_sections(config)]
    for section in BUILT:
        node = config.tree.get(section)
        if section == "trainer" and isinstance(node, Mapping):
            problems += _arguments(config, (section,), TRAINER, node, imported)
        elif section in {"callbacks", "logger"} and isinstance(node, Mapping):
            for name, part in node.items():
                problems += _named_part(config, section, name, part, imported)
        elif isinstance(node, Mapping) and ("_target_" in node or imported):
            problems += _walk(config, (section,), node, imported)
        elif not imported and node is not None:
            problems.append(f"{section}: must be a mapping{' with _target_' if section in {'module', 'data'} else ''} "
                            f"{config.where((section,))}, got {node!r}")  # fmt: skip
    if problems:
        raise RecipeError(*dict.fromkeys(problems))


def takes(target: str, name: str) -> bool:
    """Whether a target takes an argument of this name; imports it if its source cannot tell."""
    signature = find(target) or inspected(resolve(target))
    return signature is not None and name in signature.arguments


def _sections(config: Config) -> Iterator[str]:
    for key in config.tree:
        if key not in SECTIONS:
            yield f"unknown section {key!r} {config.where((key,))}{hint(str(key), SECTIONS)}"
    for key in ("module", "data"):
        if not config.tree.get(key):
            yield f"there is no section {key!r} in {config.name} ({config.file})"
    trainer = config.tree.get("trainer")
    for key in sorted({*RESERVED} & {*(trainer if isinstance(trainer, Mapping) else ())}):
        yield f"trainer.{key} cannot be set {config.where(('trainer', key))}: {RESERVED[key]}"
    for key, text in TYPES.items():
        if key in config.tree and fits(config.tree[key], text) is False:
            yield f"{key} must be {text}, got {config.tree[key]!r} {config.where((key,))}"


def _named_part(config: Config, section: str, name: str, part: Any, imported: bool) -> Iterator[str]:
    """A callback or logger: by ``_target_`` or by its short name; null removes one."""
    known: dict[str, str] = CALLBACKS if section == "callbacks" else LOGGERS
    path = (section, name)
    if part is None:
        return
    if not isinstance(part, Mapping):
        yield f"{dotted(path)} must be a mapping of arguments, or null to remove it; got {part!r} {config.where(path)}"
    elif "_target_" in part:
        yield from _walk(config, path, part, imported)
    elif name in known:
        given = part if section == "callbacks" else {"save_dir": ".", **part}  # the run folder
        yield from _arguments(config, path, known[name], given, imported)
    elif not imported:
        yield f"{dotted(path)}: needs a _target_, {name!r} is none of {', '.join(known)} {config.where(path)}{hint(name, known)}"


def _walk(config: Config, path: Keys, node: Any, imported: bool) -> Iterator[str]:
    """Check every ``_target_`` at and below a node."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _walk(config, (*path, index), item, imported)
    elif isinstance(node, Mapping) and "_target_" in node:
        if not isinstance(node["_target_"], str):
            yield f"{dotted(path)}: _target_ must be a dotted name, got {node['_target_']!r} {config.where((*path, '_target_'))}"
            return
        yield from _arguments(config, path, node["_target_"], node, imported)
    elif isinstance(node, Mapping):
        for key, item in node.items():
            yield from _walk(config, (*path, key), item, imported)


def _arguments(config: Config, path: Keys, target: str, node: Mapping[str, Any], imported: bool) -> Iterator[str]:
    """One part against its signature, then the parts among its arguments."""
    label = f"{dotted(path)} ({target})"
    for key in sorted(key for key in map(str, node) if _is_mark(key) and key not in MARKS):
        yield f"{label}: unknown mark {key!r} {config.where((*path, key))}{hint(key, MARKS)}"
    if not isinstance(node.get("_partial_", False), bool):
        yield f"{label}: _partial_ must be true or false, got {node['_partial_']!r} {config.where((*path, '_partial_'))}"
    if not isinstance(node.get("_args_", []), list):
        yield f"{label}: _args_ must be a list, got {node['_args_']!r} {config.where((*path, '_args_'))}"
    try:
        signature = _signature(target, imported)
    except LookupError as error:
        near = hint(target.rpartition(".")[2], error.args[1]) if len(error.args) > 1 else ""
        yield f"{label}: {error.args[0]}, asked for {config.where((*path, '_target_'))}{near}"
        signature = None
    if signature is not None:
        yield from _compare(config, path, label, node, signature)
    for key, value in node.items():
        if key not in MARKS - {"_args_"}:
            yield from _walk(config, (*path, key), value, imported)


@functools.cache
def _signature(target: str, imported: bool) -> Signature | None:
    """From source, or, in the second stage, by import for those whose source could not tell."""
    signature = find(target)
    if not imported:
        return signature
    return None if signature is not None else inspected(resolve(target))


def _compare(config: Config, path: Keys, label: str, node: Mapping[str, Any], signature: Signature) -> Iterator[str]:
    given = {str(key): value for key, value in node.items() if not _is_mark(str(key))}
    for name, value in given.items():
        where = config.where((*path, name))
        if name not in signature.arguments:
            if not signature.open:
                near = hint(name, signature.arguments) or f"; it takes {', '.join(signature.arguments) or 'no arguments'}"
                yield f"{label}: unknown argument {name!r} {where}{near}"
        elif (text := signature.arguments[name].annotation) is not None and fits(value, text) is False:
            yield f"{label}: {name} must be {_plainly(text)}, got {value!r} {where}{_advice(value, text)}"
    if not node.get("_partial_") and "_args_" not in node:
        for name, argument in signature.arguments.items():
            if argument.required and name not in given:
                yield f"{label}: argument {name!r} is missing {config.where(path)}"


def _is_mark(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


# Types ------------------------------------------------------------------------------------------------------------------------------------


def fits(value: Any, annotation: str) -> bool | None:
    """Whether a plain value agrees with an annotation written as text; None when that cannot be told.

    A boolean is no number, a whole number is a float, a list serves as any sequence, a mapping with ``_target_`` may become anything.
    """
    try:
        return _fits(value, ast.parse(annotation.strip(), mode="eval").body)
    except SyntaxError:
        return None


def _fits(value: Any, node: ast.expr) -> bool | None:
    if isinstance(value, Mapping) and "_target_" in value:
        return None
    if isinstance(node, ast.Constant):
        return value is None if node.value is None else fits(value, node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp):
        return _any(_fits(value, node.left), _fits(value, node.right))
    name = node.value if isinstance(node, ast.Subscript) else node
    word = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
    inner = [] if not isinstance(node, ast.Subscript) else node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if word in {"Union", "Optional"} and inner:
        return _any(*(_fits(value, item) for item in inner), value is None if word == "Optional" else False)
    if word in {"Annotated", "Final"} and inner:
        return _fits(value, inner[0])
    if word == "Literal":
        return any(isinstance(item, ast.Constant) and item.value == value and type(item.value) is type(value) for item in inner)
    if word in SEQUENCES:
        return _sequence(value, word, inner)
    if word in MAPPINGS:
        return isinstance(value, Mapping)
    return _scalar(value, word)


def _scalar(value: Any, word: str) -> bool | None:
    if word not in PLAIN:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "bool": isinstance(value, bool),
        "int": number and isinstance(value, int),
        "float": number,
        "None": value is None,
    }.get(word, isinstance(value, str))


def _sequence(value: Any, word: str, inner: list[ast.expr]) -> bool | None:
    if not isinstance(value, list):
        return None if isinstance(value, str) and word in {"Sequence", "Iterable", "Collection"} and not inner else False
    items = [item for item in inner if not (isinstance(item, ast.Constant) and item.value is Ellipsis)]
    if word in {"tuple", "Tuple"} and inner and len(items) == len(inner):
        if len(items) != len(value):
            return False
        judged = [_fits(v, item) for v, item in zip(value, items, strict=True)]
    else:
        judged = [_fits(v, items[0]) for v in value] if items else []
    return False if False in judged else None if None in judged else True


def _any(*judged: bool | None) -> bool | None:
    return True if True in judged else None if None in judged else False


def _plainly(text: str) -> str:
    return text.removesuffix(" | None") if text.startswith("Optional[") or text.endswith("None | None") else text


def _advice(value: Any, text: str) -> str:
    if isinstance(value, float) and value.is_integer() and "int" in text:
        return f"; write {int(value)}"
    if isinstance(value, bool):
        return "; YAML reads yes, no, on, off as booleans: quote the word if it is text" if "str" in text else ""
    return ""
