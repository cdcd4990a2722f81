"""Inheritance, overrides and lookup of experiments."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from diffx.recipes.compose import compose, parse_value
from diffx.recipes.errors import RecipeError
from diffx.recipes.lookup import descriptions, packaged, search_path


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A working directory; the function writes ``experiments/NAME.yaml`` there."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str, folder: str = "experiments") -> Path:
        path = tmp_path / folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_defaults_merge_left_to_right_and_the_file_comes_last(write):
    write("one", "seed: 1\ntrainer: {max_steps: 1, precision: one, devices: 1}")
    write("two", "trainer: {max_steps: 2, precision: two}\ndata: {sizes: [1, 2, 3]}")
    write("mine", "defaults: [one, /two]\ntrainer: {max_steps: 3}\ndata: {sizes: [9]}")
    tree = compose("mine").tree
    assert tree["seed"] == 1
    assert tree["trainer"] == {"max_steps": 3, "precision": "two", "devices": 1}
    assert tree["data"] == {"sizes": [9]}, "lists are replaced, not merged"
    assert "defaults" not in tree


def test_the_file_wins_wherever_defaults_stands(write):
    write("base", "seed: 1")
    write("first", "defaults: [base]\nseed: 2")
    write("last", "seed: 2\ndefaults: [base]")
    assert compose("first").tree["seed"] == compose("last").tree["seed"] == 2


def test_defaults_are_inherited_deeply_and_null_and_tilde_remove(write):
    write("deep/base", "callbacks: {a: {x: 1}, b: {y: 2}}\nmodule: {sampler: {churn: 1, steps: 2}}")
    write("deep/middle", "defaults: [deep/base]\ncallbacks: {c: {}}")
    write("mine", "defaults: [deep/middle]\ncallbacks: {a: null}\nmodule: {sampler: {~churn: null, steps: 3}}")
    tree = compose("mine").tree
    assert tree["callbacks"] == {"a": None, "b": {"y": 2}, "c": {}}
    assert tree["module"] == {"sampler": {"steps": 3}}


def test_a_circle_is_named(write):
    write("a", "defaults: [b]")
    write("b", "defaults: [c]")
    write("c", "defaults: [a]")
    with pytest.raises(RecipeError, match=r"circle: experiments/a.yaml -> experiments/b.yaml -> experiments/c.yaml -> experiments/a.yaml"):
        compose("a")


def test_every_key_knows_its_file(write):
    write("base", "trainer: {max_steps: 1, devices: 1}")
    write("mine", "defaults: [base]\ntrainer: {max_steps: 2}")
    config = compose("mine", ["+trainer.precision=x", "trainer.devices=2"])
    assert config.where(("trainer", "max_steps")) == "in experiments/mine.yaml"
    assert config.where(("trainer", "devices")) == "on the command line"
    assert compose("mine").where(("trainer", "devices")) == "in experiments/base.yaml"
    assert config.where(("trainer", "precision")) == "on the command line"


PLAIN = """
trainer: {max_steps: 1}
module: {_target_: x.Y, net: {_target_: x.Net, mults: [1, 2, 4], widths: {a: 1}}}
callbacks: {}
"""


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("trainer.max_steps=7", "trainer.max_steps", 7),
        ("module.net.mults.1=9", "module.net.mults", [1, 9, 4]),
        ("module.net.mults=[3]", "module.net.mults", [3]),
        ("module.net.fresh=1e-3", "module.net.fresh", 1e-3),  # an argument, judged by the signature later
        ("module.net.widths={b: 2}", "module.net.widths", {"b": 2}),
        ("+module.net.widths.b=2", "module.net.widths", {"a": 1, "b": 2}),
        ("+claim.deep.er=x=y", "claim", {"deep": {"er": "x=y"}}),
        ("~module.net.mults", "module.net", {"_target_": "x.Net", "widths": {"a": 1}}),
        ("~module.net.mults.0", "module.net.mults", [2, 4]),
        ("callbacks.ema={}", "callbacks", {"ema": {}}),
        ("seed=3", "seed", 3),
        ("trainer=null", "trainer", None),
    ],
)
def test_overrides(write, override, path, value):
    write("e", PLAIN)
    config = compose("e", [override])
    assert not config.problems
    node = config.tree
    for key in path.split("."):
        node = node[key]
    assert node == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainr.max_steps=1", "did you mean 'trainer.max_steps'"),
        ("max_steps=1", "did you mean 'trainer.max_steps'"),
        ("module.nett.mults=1", "did you mean 'module.net.mults'"),
        ("module.net.widths.b=1", r"\+module.net.widths.b=... adds it"),
        ("module.net.mults.3=1", "unknown key"),
        ("~module.net.mult", "did you mean 'module.net.mults'"),
        ("callbacks.emma={}", "unknown key 'callbacks.emma'"),
        ("callbacks.ema.halflife=3", "unknown key"),
        ("trainer.max_steps.x=1", "unknown key|not a mapping"),
        ("trainer.max_steps=[1", "is not YAML"),
        ("~seed=3", "cannot read"),
        ("=3", "cannot read"),
        ("small.trainer=3", "unknown key"),
    ],
)
def test_wrong_overrides_are_answered(write, override, message):
    write("e", PLAIN)
    (problem,) = compose("e", [override]).problems
    assert "on the command line" in problem
    assert re.search(message, problem), problem


def test_all_wrong_overrides_at_once(write):
    write("e", PLAIN)
    assert len(compose("e", ["trainr=1", "trainer.max_steps=2", "nodule.x=3"]).problems) == 2


def test_small_applies_before_the_command_line_and_along_the_inheritance(write):
    write("base", "trainer: {max_steps: 100, devices: 1}\nsmall: {trainer: {max_steps: 3, devices: 2}}")
    write("mine", "defaults: [base]\ntrainer: {max_steps: 200}\nsmall: {trainer: {max_steps: 4, ~devices: null}}")
    assert compose("mine").tree["trainer"] == {"max_steps": 200, "devices": 1}
    small = compose("mine", ["small=true"])
    assert small.tree["trainer"] == {"max_steps": 4}
    assert "small" not in small.tree
    assert compose("mine", ["trainer.max_steps=5", "small=true"]).tree["trainer"]["max_steps"] == 5
    write("none", "trainer: {}")
    with pytest.raises(RecipeError, match="no section 'small'"):
        compose("none", ["small=true"])


def test_interpolations_and_mandatory_values(write, monkeypatch):
    write("e", "module: {root: '${oc.env:PLACE,here}/x', n: '${data.n}', m: '???'}\ndata: {n: 3}")
    with pytest.raises(RecipeError, match=r"module\.m must be given"):
        compose("e")
    config = compose("e", ["module.m=1", "+data.k=???", "data.k=2"])
    assert config.tree["module"] == {"root": "here/x", "n": 3, "m": 1}
    assert config.raw["module"]["n"] == "${data.n}"
    monkeypatch.setenv("PLACE", "there")
    assert compose("e", ["module.m=1"]).tree["module"]["root"] == "there/x"
    write("bad", "module: {n: '${dta.n}'}")
    with pytest.raises(RecipeError, match=r"module.n: .*dta.n.* in experiments/bad.yaml"):
        compose("bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "cannot read"), ("- 1", "must hold a mapping"), ("defaults: x", "must be a list"), ("defaults: [nix]", "nix")],
)
def test_unreadable_files_are_named(write, text, message):
    write("bad", text)
    with pytest.raises(RecipeError, match=message) as caught:
        compose("bad")
    assert "bad.yaml" in str(caught.value)


def test_lookup_order(write, tmp_path, monkeypatch):
    """A path, the flag, DIFFX_EXPERIMENTS in order, the working directory and its parents, the package."""
    for n, folder in enumerate(["flag", "env1", "env2", "a/b/experiments", "experiments"]):
        write("digits/edm", f"seed: {n}", folder)
    direct = write("elsewhere", "seed: 99", "other")
    (tmp_path / "a/b").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "a/b")
    monkeypatch.setenv("DIFFX_EXPERIMENTS", os.pathsep.join([str(tmp_path / "env1"), str(tmp_path / "env2")]))

    def seed(**options):
        return compose("digits/edm", **options).tree["seed"]

    assert compose(str(direct)).tree["seed"] == 99
    assert seed(folders=[tmp_path / "flag"]) == 0
    assert seed() == 1
    (tmp_path / "env1/digits/edm.yaml").unlink()
    assert seed() == 2
    monkeypatch.delenv("DIFFX_EXPERIMENTS")
    assert seed() == 3
    (tmp_path / "a/b/experiments/digits/edm.yaml").unlink()
    assert seed() == 4
    (tmp_path / "experiments/digits/edm.yaml").unlink()
    assert compose("digits/edm").file == packaged() / "digits/edm.yaml"


def test_an_unknown_experiment_says_where_it_looked_and_what_is_near(write, tmp_path):
    write("video/tiny", "seed: 0")
    with pytest.raises(RecipeError) as caught:
        compose("tiny")
    assert "did you mean 'video/tiny'?" in str(caught.value)
    assert str(tmp_path / "experiments") in str(caught.value)
    with pytest.raises(RecipeError, match="there is no folder nowhere"):
        search_path(["nowhere"])


def test_a_file_of_ones_own_inherits_from_beside_it_and_from_the_package(write, tmp_path):
    write("part", "seed: 5", "other")
    file = write("mine", "defaults: [/_default, part]", "other")
    config = compose(str(file))
    assert config.tree["seed"] == 5
    assert config.name == "mine"
    assert "trainer" in config.tree


def test_parts_are_not_listed(write, tmp_path):
    write("a", "description: >\n  folded\n")
    write("b", "description: 'quoted'")
    write("_c", "description: part")
    write("_d/e", "description: part")
    found = descriptions([tmp_path / "experiments"])
    assert found == {"a": "folded", "b": "quoted"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        ("20_000", 20000),
        ("on", True),
        ("no", False),
        ("null", None),
        ("", None),
        ("a=b", "a=b"),
        ("'no'", "no"),
        ("[1, x]", [1, "x"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_are_yaml(text, value):
    got = parse_value(text)
    assert got == value and type(got) is type(value)
