"""Signatures from source are the signatures that Python itself reports after the import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from diffx.recipes.source import find, inspected

TECHNIQUES = Path(__file__).parents[2] / "diffx" / "techniques"
AGREE = [
    "lightning.Trainer",
    "lightning.pytorch.loggers.CSVLogger",
    "torch.optim.AdamW",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.nn.Linear",
    "torch.nn.Conv2d",
    "timm.optim.Lamb",
    "diffx.module.DiffusionModule",
    "diffx.EMA",
    "diffx.Digits",
    "diffx.schedules.Karras",
    "diffx.samplers.Heun",
    "parts_for_recipes.Leaf",
    "parts_for_recipes.Heir",
    "parts_for_recipes.Frozen",
    "parts_for_recipes.Many",
    "parts_for_recipes.Tree",
    "parts_for_recipes.double",
]


@pytest.fixture(autouse=True)
def _parts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])


@pytest.mark.parametrize("target", AGREE)
def test_agrees_with_inspect(target):
    module, _, name = target.rpartition(".")
    read, true = find(target), inspected(getattr(importlib.import_module(module), name))
    assert read is not None and true is not None
    assert {name: argument.required for name, argument in read.arguments.items()} == {n: a.required for n, a in true.arguments.items()}
    assert read.open == true.open


def test_options_handed_on_are_known_by_name():
    """``**options`` that go to the base open no back door for typos; what the class fills in itself cannot be given."""
    signature = find("parts_for_recipes.Passing")
    assert signature is not None and not signature.open
    assert set(signature.arguments) == {"extra", "rate", "name", "kind"}


def test_a_technique_is_known_by_all_its_arguments():
    """Its own, those of its bases down to `DiffusionModule`, and none that it fills in itself."""
    signature = find("diffx.techniques.ProgressiveDistillation")
    assert signature is not None and not signature.open
    assert {"teacher_steps", "scales", "schedule", "codec", "drop", "shape"} <= set(signature.arguments)
    assert not {"sampler", "denoiser", "uncertainty"} & set(signature.arguments)
    assert {name for name, argument in signature.arguments.items() if argument.required} == {"teacher", "shape"}


@pytest.mark.parametrize("name", ast.literal_eval((TECHNIQUES / "__init__.py").read_text().partition("__all__ = ")[2]))
def test_no_technique_leaves_a_back_door(name):
    """A constructor that handed its options on by position would take any misspelt key."""
    signature = find(f"diffx.techniques.{name}")
    assert signature is not None and not signature.open
    assert {"shape", "model"} & set(signature.arguments)  # a technique that goes on from a whole model takes the shape from there


@pytest.mark.parametrize(
    ("target", "near"),
    [("lightning.Trainerr", "Trainer"), ("diffx.samplers.Hein", "Heun"), ("torch.optim.Adamw", "AdamW"), ("diffx.Denoisr", "Denoiser")],
)
def test_a_missing_name_lists_what_is_there(target, near):
    with pytest.raises(LookupError, match="there is no") as caught:
        find(target)
    assert near in caught.value.args[1]


@pytest.mark.parametrize("target", ["math.sin", "builtins.eval", "torch.tensor", "collections.abc.Mapping"])
def test_what_source_cannot_tell_is_left_open(target):
    assert find(target) is None


def test_nothing_is_imported():
    script = (
        "import sys; from diffx.recipes.source import find\n"
        f"[find(t) for t in {[t for t in AGREE if 'parts_for' not in t]}]\n"
        "print(sorted({'torch', 'lightning', 'timm', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
