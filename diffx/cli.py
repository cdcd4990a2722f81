"""The shared entrance of all verbs: a command line in, a checked configuration out, mistakes on stderr with exit code 2.

A verb on an experiment (``fit``) and a verb with options of its own (``sample``, ``evaluate``) look alike::

    def main(argv: Sequence[str] | None = None) -> int:
        return cli.entrance(_main, argv)  # clean messages, exit codes


    def _main(argv: Sequence[str]) -> None:
        line = cli.parse(argv, USAGE, flags=("list", "print"))  # --help and --list answer here and exit
        config = cli.experiment(line)  # a composed and checked `recipes.compose.Config`; --print answers here and exits
        ...  # from here on torch may be imported

        options = cli.options(line, Options)  # or: key=value into a frozen dataclass, checked against its annotations

Nothing here imports torch or lightning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from .recipes.errors import RecipeError, hint

__all__ = ["Line", "entrance", "experiment", "options", "parse"]

T = TypeVar("T")
TRACEBACK = "DIFFX_TRACEBACK"


@dataclass(frozen=True)
class Line:
    """A command line taken apart.

    Args:
        experiment: what ``experiment=`` names, if anything.
        keys: all other ``key=value``, ``+key=value`` and ``~key``, in order.
        flags: the verb's own ``--flags`` that were given.
        folders: every ``--experiments-dir``.
    """

    experiment: str | None = None
    keys: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    folders: tuple[str, ...] = field(default=())

    def value(self, key: str) -> str | None:
        """The text of the last ``key=text``, None if there is none."""
        return next((text.partition("=")[2] for text in reversed(self.keys) if text.startswith(f"{key}=")), None)


def entrance(verb: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a verb; answer mistakes in configuration with exit code 2 and other expected failures with 1, without a traceback.

    The variable ``DIFFX_TRACEBACK=1`` shows the traceback of any failure.
    """
    try:
        return verb(sys.argv[1:] if argv is None else argv) or 0
    except (RecipeError, ValueError, OSError, FloatingPointError) as error:
        if os.environ.get(TRACEBACK, "0") not in {"", "0"}:
            raise
        print(f"error: {'; '.join(_problems(error)) if not isinstance(error, RecipeError) else _listed(error)}", file=sys.stderr)
        return 2 if isinstance(error, RecipeError) else 1


def _listed(error: RecipeError) -> str:
    return "\n       ".join(line for problem in error.problems for line in problem.splitlines())


def _problems(error: BaseException) -> list[str]:
    return [f"{error}" or type(error).__name__, *getattr(error, "__notes__", ())]


def parse(argv: Sequence[str], usage: str, flags: Sequence[str] = ()) -> Line:
    """Take a command line apart; ``--help`` and ``--list`` are answered here.

    Args:
        argv: the arguments after the verb.
        usage: what ``--help`` prints.
        flags: names of further ``--flags``, which end up in `Line.flags`; ``"list"`` is answered here, ``"print"`` by `experiment`.

    Raises:
        RecipeError: an unknown flag, or a word that is neither.
    """
    names, folders, given, keys, words = ("help", "experiments-dir", *flags), [], set(), [], list(argv)
    problems = []
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if word == "-h":
            name = "help"
        if not word.startswith("-"):
            keys.append(word)
            problems += [] if "=" in word or word.startswith("~") else [f"cannot read {word!r}: write key=value, +key=value or ~key"]
        elif name not in names:
            near = hint(f"--{name}", [f"--{known}" for known in names])
            problems.append(f"unknown flag {word!r}{near or '; --help lists them'}")
        elif name == "experiments-dir":
            if not equals and not words:
                problems.append("--experiments-dir needs a folder")
            folders.append(value if equals else words.pop(0) if words else "")
        else:
            given.add(f"{name}{equals}{value}")
    if "help" in given:
        _answer(usage.strip())
    if problems:
        raise RecipeError(*problems)
    names_given = [key.partition("=")[2] for key in keys if key.startswith("experiment=")]
    rest = tuple(key for key in keys if not key.startswith("experiment="))
    line = Line(names_given[-1] if names_given else None, rest, frozenset(given), tuple(folders))
    if "list" in given:
        _list(line)
    return line


def experiment(line: Line) -> Any:
    """Compose and check the experiment of a command line; ``--print`` and ``--print=resolved`` are answered here.

    Returns:
        A `diffx.recipes.compose.Config`.

    Raises:
        RecipeError: everything that is wrong, at once.
    """
    from .recipes.check import check
    from .recipes.compose import compose
    from .recipes.lookup import names, search_path
    from .recipes.text import show

    if not line.experiment:
        known = ", ".join(names(search_path(line.folders)))
        raise RecipeError(f"name an experiment: experiment=NAME, e.g. one of {known or 'none was found'}")
    config = compose(line.experiment, line.keys, folders=line.folders)
    wanted = [flag for flag in line.flags if flag.startswith("print")]
    if unknown := [flag for flag in wanted if flag not in {"print", "print=resolved"}]:
        raise RecipeError(f"--print or --print=resolved, got --{unknown[0]}")
    if config.problems:
        check(config)
    if wanted:
        _answer(show(config.tree if wanted[0].endswith("resolved") else config.raw).rstrip())
    check(config)
    return config


def options(line: Line, kind: type[T]) -> T:
    """Read ``key=value`` into a dataclass of a verb's options; values are YAML and are checked against the annotations.

    The dataclass may check more in ``__post_init__`` and raise a `RecipeError` of its own, whose problems join the others.

    Raises:
        RecipeError: unknown or missing keys and wrong types, all at once.
    """
    from .recipes.check import fits
    from .recipes.compose import COMMAND_LINE, parse_value

    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {} if line.experiment is None else {"experiment": line.experiment}
    problems = []
    for text in line.keys:
        name, _, value = text.partition("=")
        try:
            given[name] = parse_value(value)
        except ValueError as error:
            problems.append(f"{name} {COMMAND_LINE}: {error}")
    valid = {}
    for name, value in given.items():
        if name not in known:
            problems.append(f"unknown key {name!r} {COMMAND_LINE}{hint(name, known) or '; known are ' + ', '.join(known)}")
            continue
        if known[name].type == "str" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = line.value(name) or ""  # a run id such as 20260101 is a name
        if fits(value, str(known[name].type)) is False:
            problems.append(f"{name} must be {known[name].type}, got {value!r} {COMMAND_LINE}")
        else:
            valid[name] = value
    required = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    problems += [f"{name}=... must be given" for name in required if name not in given]
    if all(name in valid for name in required):
        try:
            made = kind(**valid)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
    return made


def device(asked: str, local: int = 0) -> str:
    """The device that ``device=`` names; ``auto`` is a GPU if there is one, for the processes of a node (rank ``local``) in turn."""
    import torch

    return asked if asked != "auto" else f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def _list(line: Line) -> NoReturn:
    from .recipes.lookup import descriptions, search_path

    found = descriptions(search_path(line.folders))
    width = max(map(len, found), default=0)
    _answer("\n".join(f"{name:{width}}  {text}".rstrip() for name, text in found.items()))


def _answer(text: str) -> NoReturn:
    print(text)
    raise SystemExit(0)
