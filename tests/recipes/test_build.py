"""Recipes to objects and back."""

from __future__ import annotations

import functools
from fractions import Fraction

import parts_for_recipes as parts
import pytest
import torch

from diffx.recipes import recipe_of
from diffx.recipes.build import build, resolve
from diffx.recipes.errors import RecipeError

HERE = "parts_for_recipes"


def test_plain_values_and_nested_parts():
    made = build({"a": [1, {"_target_": f"{HERE}.Leaf", "size": 2}], "b": {"c": None}})
    assert made["a"][0] == 1 and made["a"][1].size == 2 and made["b"] == {"c": None}


def test_partial_keeps_the_rest_for_the_caller():
    make = build({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.5})
    assert isinstance(make, functools.partial) and make.func is torch.optim.AdamW and make.keywords == {"lr": 0.5}
    assert build({"_target_": f"{HERE}.double", "_partial_": True}) is parts.double


def test_positional_arguments_functions_and_class_methods():
    assert build({"_target_": f"{HERE}.Many", "_args_": [1, 2, 3], "last": 4}).all == (1, 2, 3, 4)
    assert build({"_target_": f"{HERE}.double", "x": 3}) == 6
    assert build({"_target_": "fractions.Fraction.from_float", "_args_": [0.5]}) == Fraction(1, 2)
    layers = build({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}]})
    assert layers(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize(
    "thing",
    [
        parts.Leaf(3, name="x"),
        parts.Leaf(size=3, rate=0.25, kind="b"),
        parts.Heir(2),
        parts.Frozen(2.0, [3, 4], {"a": 1}),
        parts.Many(1, 2, 3, last=9),
        parts.Many(1),
        parts.Tree(parts.Leaf(1), [parts.Frozen(), {"deep": parts.Heir(0)}], extra=parts.Leaf(5)),
        functools.partial(parts.Leaf, size=3),
        functools.partial(parts.Tree, parts.Leaf(1), right=2),
        functools.partial(torch.optim.AdamW, lr=1e-3, betas=[0.9, 0.99]),
        parts.double,
        parts.Leaf,
    ],
    ids=lambda thing: recipe_of(thing)["_target_"],
)
def test_round_trip(thing):
    """A recipe builds an equal object: one with the same recipe, type and plain attributes."""
    recipe = recipe_of(thing)
    again = build(recipe)
    assert type(again) is type(thing)
    assert recipe_of(again) == recipe
    if not isinstance(thing, (functools.partial, type(parts.double), type)):
        assert _plain(again) == _plain(thing)


def _plain(thing):
    if isinstance(thing, (list, tuple)):
        return [_plain(item) for item in thing]
    if isinstance(thing, dict):
        return {key: _plain(value) for key, value in thing.items() if key != "_recipe"}
    return _plain(vars(thing)) if type(thing).__module__ == HERE else thing


def test_foreign_objects_keep_the_recipe_they_were_built_from():
    assert recipe_of(parts.Net()) == {"_opaque_": f"{HERE}.Net"}
    recipe = {"_target_": f"{HERE}.Net", "width": 3}
    assert recipe_of(build(recipe)) == recipe
    assert recipe_of(build({"_target_": f"{HERE}.Tree", "left": recipe}))["left"] == recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"_target_": f"{HERE}.Leef"}, r"top \(parts_for_recipes.Leef\): there is no 'Leef' in parts_for_recipes; did you mean 'Leaf'"),
        (
            {"_target_": f"{HERE}.Tree", "left": [{"_target_": f"{HERE}.Leaf", "size": -1}]},
            r"top.left.0 \(parts_for_recipes.Leaf\): size must",
        ),
        ({"_target_": f"{HERE}.Leaf", "size": 1, "sise": 1}, "sise"),
        ({"_target_": "nopackage.X"}, "there is no package 'nopackage'"),
        ({"_target_": "os; import os"}, "is not a dotted name"),
        ({"a": {"_opaque_": "their.Net"}}, r"top.a: a their.Net that keeps no recipe"),
    ],
)
def test_mistakes_begin_with_the_key_path(recipe, message):
    with pytest.raises(RecipeError, match=message):
        build(recipe, at="top")


def test_a_broken_module_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="package_that_is_not_there"):
        resolve("broken_module.Thing")


def test_other_exceptions_pass_unchanged():
    """A bug is not dressed up as a mistake in the configuration."""
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "operator.truediv", "_args_": [1, 0]})
