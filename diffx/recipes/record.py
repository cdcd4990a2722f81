"""Objects remember how they were made: `recorded` classes carry a recipe, so modules built in Python save like modules built from YAML."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, TypeVar

__all__ = ["OPAQUE", "is_recorded", "public_name", "recipe_of", "recorded"]

OPAQUE = "_opaque_"
T = TypeVar("T", bound=Any)


def recorded(thing: T) -> T:
    """Make instances of a class remember their bound constructor arguments as a recipe (see `recipe_of`).

    The outermost recorded constructor counts: a subclass without an own ``__init__`` is recorded under its own name; one with an own
    ``__init__`` must be decorated too, otherwise its instances have no recipe. On a function it is a mark only: recipes of unknown origin
    may name recorded classes and functions of diffx, and no others.
    """
    if not isinstance(thing, type):
        thing._recorded_ = True
        return thing
    init = thing.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is __init__:
            arguments = _arguments(signature.bind(self, *args, **kwargs))
            recipe = {"_target_": public_name(type(self)), **{name: recipe_of(value) for name, value in arguments.items()}}
            object.__setattr__(self, "_recipe", recipe)
        init(self, *args, **kwargs)

    __init__._recorded_ = True  # type: ignore[attr-defined]
    thing.__init__ = __init__  # type: ignore[misc]
    return thing


def is_recorded(thing: Any) -> bool:
    """Whether a class or function carries the mark of `recorded`."""
    maker = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]
    return getattr(maker, "_recorded_", False) is True


def _arguments(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name; all positional ones under ``_args_`` where the constructor takes any number of them."""
    parameters = bound.signature.parameters
    if any(parameters[name].kind is inspect.Parameter.VAR_POSITIONAL for name in bound.arguments):
        return {"_args_": list(bound.args[1:]), **bound.kwargs}
    _, *names = bound.arguments
    arguments: dict[str, Any] = {}
    for name in names:
        variadic = parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        arguments.update(bound.arguments[name] if variadic else {name: bound.arguments[name]})
    return arguments


def recipe_of(value: Any) -> Any:
    """The recipe of an object as plain dictionaries, lists, strings and numbers.

    A partial or a class becomes ``{"_target_": ..., "_partial_": True, ...}``; what cannot be written down becomes ``{"_opaque_": type}``,
    which `diffx.load` answers with a request for the user's own class.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [recipe_of(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): recipe_of(item) for name, item in value.items()}
    if isinstance(value, functools.partial):
        args = {"_args_": recipe_of(value.args)} if value.args else {}
        return {"_target_": public_name(value.func), "_partial_": True, **args, **{k: recipe_of(v) for k, v in value.keywords.items()}}
    if (isinstance(value, type) or inspect.isfunction(value)) and "<" not in value.__qualname__:
        return {"_target_": public_name(value), "_partial_": True}
    return getattr(value, "_recipe", None) or {OPAQUE: public_name(type(value))}


def public_name(thing: Any) -> str:
    """The shortest dotted name under which ``thing``'s own project exports it, so that files may move without breaking recipes."""
    module, name = thing.__module__, thing.__qualname__
    parts = module.split(".")
    for depth in range(1, len(parts)):
        package = sys.modules.get(".".join(parts[:depth]))
        if package is not None and package.__dict__.get(name) is thing:
            return f"{package.__name__}.{name}"
    return f"{module}.{name}"
