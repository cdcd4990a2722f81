"""YAML is read as omegaconf reads it."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from diffx.recipes.text import parse, show

VALUES = [
    "20_000",
    "1e3",
    "1e-3",
    "-1.5E+3",
    "1.",
    ".5",
    "on",
    "no",
    "yes",
    "0x10",
    "1:30",
    ".inf",
    "nan",
    "2020-01-02",
    "e3",
    "1e",
    "1.2.3",
    "abc",
    "'3'",
    "~",
    "null",
    "",
    "[1, 2.0]",
    "{a: 1, b: {c: [x]}}",
    "017",
    "${a.b}",
    "'no'",
]


@pytest.mark.parametrize("value", VALUES)
def test_agrees_with_omegaconf(value):
    theirs = OmegaConf.to_container(OmegaConf.create(f"v: {value}"), resolve=False)
    mine = parse(f"v: {value}")
    assert repr(mine) == repr(theirs)


def test_written_text_reads_back():
    tree = {"a": [1, 2.5, "no", None, True], "n": {"text": "1e3", "deep": {"x": [[1], {"y": "é: #"}]}}, "float": 1e-8}
    assert parse(show(tree)) == tree


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: [1", "a: b: c", "\t- x"])
def test_bad_text_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match="line"):
        parse(text)


def test_no_tag_builds_an_object():
    with pytest.raises(ValueError, match="constructor"):
        parse("!!python/object/apply:os.system ['true']")
