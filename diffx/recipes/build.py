"""Recipes to objects: ``{_target_: dotted.name, argument: value, ...}``, nested at will.

``_partial_: true`` leaves the rest of the arguments to the caller, ``_args_`` holds positional arguments. Objects that do not record their
own constructor arguments keep the recipe they were built from, so that a foreign part of an experiment travels in checkpoints too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .errors import RecipeError, hint
from .record import OPAQUE

__all__ = ["Allow", "build", "resolve"]

Allow: TypeAlias = Callable[[str], Any]  # dotted name -> the object, or a RecipeError


def resolve(target: str) -> Any:
    """Import what a dotted name stands for.

    Raises:
        LookupError: there is no such package or name; the second argument lists names that are there.
        ImportError: an existing module cannot be imported, for its own reasons.
    """
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise LookupError(f"{target!r} is not a dotted name", [])
    thing = _import(parts[0], [])
    for depth, part in enumerate(parts[1:], start=2):
        if not hasattr(thing, part):
            thing = _import(".".join(parts[:depth]), dir(thing))
        else:
            thing = getattr(thing, part)
    return thing


def _import(name: str, known: list[str]) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but needs a package that is not
        above, _, last = name.rpartition(".")
        raise LookupError(f"there is no {last!r} in {above}" if above else f"there is no package {name!r}", known) from None


def build(recipe: Any, *, at: str = "recipe", allow: Allow = resolve) -> Any:
    """Build what a recipe describes, innermost parts first.

    Args:
        recipe: mappings, lists, strings and numbers; what has no ``_target_`` is returned as it is, its parts built.
        at: key path of the recipe, for messages.
        allow: turns a dotted name into the object, and may refuse (see `diffx.load`).

    Raises:
        RecipeError: a name that is not there, or a constructor that refuses its arguments; begins with the key path and the target.
    """
    if isinstance(recipe, (list, tuple)):
        return [build(item, at=f"{at}.{index}", allow=allow) for index, item in enumerate(recipe)]
    if not isinstance(recipe, Mapping):
        return recipe
    if OPAQUE in recipe:
        raise RecipeError(f"{at}: a {recipe[OPAQUE]} that keeps no recipe of itself (decorate its class with diffx.recipes.recorded)")
    if "_target_" not in recipe:
        return {key: build(value, at=f"{at}.{key}", allow=allow) for key, value in recipe.items()}
    target = recipe["_target_"]
    try:
        thing = allow(target)
    except RecipeError as error:
        raise RecipeError(f"{at} ({target}): {error}") from error
    except (LookupError, ImportError) as error:
        known = error.args[1] if isinstance(error, LookupError) and len(error.args) > 1 else []
        raise RecipeError(f"{at} ({target}): {error.args[0]}{hint(target.rpartition('.')[2], known)}") from error
    args = [build(item, at=f"{at}._args_.{index}", allow=allow) for index, item in enumerate(recipe.get("_args_", []))]
    named = {
        key: build(value, at=f"{at}.{key}", allow=allow) for key, value in recipe.items() if key not in {"_target_", "_partial_", "_args_"}
    }
    if recipe.get("_partial_"):
        return functools.partial(thing, *args, **named) if args or named else thing
    return _call(thing, args, named, f"{at} ({target})", recipe)


def _call(thing: Any, args: list[Any], named: dict[str, Any], label: str, recipe: Mapping[str, Any]) -> Any:
    try:
        made = thing(*args, **named)
    except RecipeError as error:  # e.g. diffx.load inside an experiment
        raise RecipeError(*(f"{label}: {problem}" for problem in error.problems)) from error
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise RecipeError(f"{label}: {error}") from error
    if isinstance(thing, type) and not hasattr(made, "_recipe"):
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(made, "_recipe", dict(recipe))
    return made
