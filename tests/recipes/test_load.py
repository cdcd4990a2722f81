"""Checkpoints to modules: weights, parts, damaged files, and recipes that want more than they may."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

import parts_for_recipes as parts
import pytest
import torch

import diffx
from diffx import EDM, Denoiser, files
from diffx.networks import MLP
from diffx.recipes.build import build
from diffx.recipes.errors import RecipeError
from diffx.recipes.load import load


def make(net=None, **options) -> EDM:
    return EDM(Denoiser(net or MLP(features=2, width=8, depth=1)), shape=(2,), **options)


def save(module: EDM, path: Path, averages: dict[str, float] | None = None, **changes) -> Path:
    """A checkpoint whose average NAME holds the raw weights plus a number."""
    checkpoint = {"state_dict": module.state_dict(), "callbacks": {}}
    module.on_save_checkpoint(checkpoint)
    if averages:
        weights = {name: p.detach() for name, p in module.averaged_parameters().items()}
        profiles = {name: {"weights": {key: w + shift for key, w in weights.items()}} for name, shift in averages.items()}
        checkpoint["callbacks"]["diffx.EMA"] = {"profiles": profiles, "buffers": module.averaged_buffers()}
    checkpoint["diffx"].update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_checkpoint(checkpoint, path)
    return path


def shift(loaded, module) -> set[float]:
    """By how much the loaded weights differ, rounded."""
    mine = dict(module.named_parameters())
    return {round(float((p - mine[name]).mean().detach()), 3) for name, p in loaded.named_parameters()}


def test_weights(tmp_path, capsys):
    module = make(drop=0.25)
    path = save(module, tmp_path / "a.ckpt", {"long": 1.0, "short": 2.0})
    assert shift(load(path), module) == {1.0}
    assert shift(load(path, weights="ema:short"), module) == {2.0}
    raw = load(path, weights="raw")
    assert shift(raw, module) == {0.0}
    assert raw.drop == 0.25 and type(raw) is EDM and not raw.training
    assert capsys.readouterr().out == ""
    bare = save(module, tmp_path / "b.ckpt")
    assert shift(diffx.load(bare), module) == {0.0}
    assert "raw weights" in capsys.readouterr().out


@pytest.mark.parametrize(("weights", "message"), [("ema:shrt", "did you mean 'short'"), ("best", "must be"), ("raw:x", "must be")])
def test_unknown_weights(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        load(save(make(), tmp_path / "a.ckpt", {"short": 1.0}), weights=weights)


def test_parts(tmp_path):
    module = make()
    path = save(module, tmp_path / "a.ckpt")
    denoiser = load(path, part="denoiser")
    assert type(denoiser) is Denoiser and not denoiser.training
    assert type(load(path, part="denoiser.net")) is MLP
    with pytest.raises(ValueError, match=r"no part 'denoisr'.*did you mean 'denoiser'"):
        load(path, part="denoisr")


def test_loading_leaves_random_numbers_alone(tmp_path):
    path = save(make(), tmp_path / "a.ckpt")
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    load(path)
    assert torch.equal(torch.randn(4), expected)


def test_run_folder_falls_back_to_the_last_good_checkpoint(tmp_path, caplog):
    older, newer = make(), make()
    save(older, tmp_path / "checkpoints/step_00000001.ckpt")
    newest = save(newer, tmp_path / "checkpoints/last.ckpt")
    assert shift(load(tmp_path, weights="raw"), newer) == {0.0}
    newest.write_bytes(newest.read_bytes()[:2000])
    assert shift(load(tmp_path, weights="raw"), older) == {0.0}
    assert "last.ckpt" in caplog.text
    (tmp_path / "checkpoints/step_00000001.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="no good checkpoint"):
        load(tmp_path, weights="raw")


def test_files_that_are_no_checkpoints(tmp_path):
    whole = save(make(), tmp_path / "a.ckpt").read_bytes()
    for name, content in {"cut": whole[:-500], "half": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load(tmp_path / name)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / "flipped").write_bytes(flipped)
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "flipped")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="holds no recipe"):
        load(tmp_path / "foreign.ckpt")


def test_schemas(tmp_path, monkeypatch):
    module = make()
    with pytest.raises(ValueError, match=r"schema 99.*newer diffx"):
        load(save(module, tmp_path / "new.ckpt", schema=99))
    old = save(module, tmp_path / "old.ckpt", schema=0)
    monkeypatch.setitem(importlib.import_module("diffx.recipes.load").UPGRADES, 0, lambda c: {**c, "diffx": {**c["diffx"], "schema": 1}})
    assert type(load(old)) is EDM


def evil(place: str) -> None:
    Path(place).write_text("ran")


HOSTILE = [
    {"_target_": "os.system", "command": "touch {mark}"},
    {"_target_": "os.system", "_args_": ["touch {mark}"]},
    {"_target_": "builtins.eval", "_args_": ["open('{mark}', 'w')"]},
    {"_target_": "builtins.exec", "_args_": ["open('{mark}', 'w')"]},
    {"_target_": "subprocess.run", "_args_": [["touch", "{mark}"]]},
    {"_target_": "pathlib.Path.write_text", "_args_": []},
    {"_target_": "torch.os.system", "_args_": ["touch {mark}"]},
    {"_target_": "torch.hub.load", "repo_or_dir": "{mark}", "model": "x", "source": "local"},
    {"_target_": "torch.load", "f": "{mark}"},
    {"_target_": "torch.save", "obj": 1, "f": "{mark}"},
    {"_target_": "torch.serialization.os.system", "_args_": ["touch {mark}"]},
    {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True},
    {"_target_": "diffx.load", "path": "{mark}", "trust": True},
    {"_target_": "diffx.recipes.load.load", "path": "{mark}", "trust": True},
    {"_target_": "diffx.recipes.build.build", "recipe": {"a": 1}},
    {"_target_": "diffx.rng.torch.os.system", "_args_": ["touch {mark}"]},
    {"_target_": "diffx.fit.main", "_args_": [["experiment=digits/edm"]]},
    {"_target_": "diffx.files.os.remove", "_args_": ["{mark}"]},
    {"_target_": "evil_module_of_a_stranger.Thing"},
    {"_target_": "test_load.evil", "place": "{mark}"},
    {"_target_": "test_load.evil", "_partial_": True, "place": "{mark}"},
    {"_target_": "parts_for_recipes.Leaf", "size": 1},
    {"_target_": "functools.partial", "_args_": [{"_target_": "os.system", "_partial_": True}]},
    {"_target_": ["os", "system"]},
]


@pytest.mark.parametrize(
    ("recipe", "where"),
    [*((recipe, "net") for recipe in HOSTILE), (HOSTILE[0], "weighting"), (HOSTILE[1], "optimizer")],
    ids=lambda value: value if isinstance(value, str) else str(value["_target_"]),
)
def test_hostile_recipes_are_refused_before_anything_runs(tmp_path, monkeypatch, recipe, where):
    mark = tmp_path / "mark"
    (tmp_path / "evil_module_of_a_stranger.py").write_text(f"open({str(mark)!r}, 'w')\nclass Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    module = make()
    checkpoint = {"state_dict": module.state_dict(), "callbacks": {}}
    module.on_save_checkpoint(checkpoint)
    payload = _filled(recipe, str(mark))
    if where == "net":
        checkpoint["diffx"]["recipe"]["denoiser"]["net"] = payload
    else:
        checkpoint["diffx"]["recipe"][where] = payload
    files.save_checkpoint(checkpoint, tmp_path / "hostile.ckpt")
    with pytest.raises(RecipeError, match="trust=True") as caught:
        load(tmp_path / "hostile.ckpt")
    assert str(recipe["_target_"]) in str(caught.value) and where in str(caught.value)
    assert not mark.exists()


def _filled(value, mark: str):
    if isinstance(value, dict):
        return {key: _filled(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, mark) for item in value]
    return value.replace("{mark}", mark) if isinstance(value, str) else value


def test_the_payload_is_real(tmp_path):
    """With ``trust=True`` the same kind of recipe does run: the refusal is what stops it."""
    module = make()
    checkpoint = {"state_dict": module.state_dict(), "callbacks": {}}
    module.on_save_checkpoint(checkpoint)
    checkpoint["diffx"]["recipe"]["weighting"] = {"_target_": "os.system", "command": f"touch {tmp_path}/mark"}
    files.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    load(tmp_path / "a.ckpt", trust=True)
    assert (tmp_path / "mark").exists()


def test_a_pickle_with_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/mark",)

    torch.save({"state_dict": {}, "diffx": {"schema": 1, "recipe": {}}, "x": Payload()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load(tmp_path / "a.ckpt", trust=True)
    assert not (tmp_path / "mark").exists()


def test_modules_and_optimizers_of_allowed_packages_may_be_built(tmp_path):
    net = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2})
    loaded = load(save(make(net, optimizer=functools.partial(torch.optim.SGD, lr=0.5)), tmp_path / "a.ckpt"), weights="raw")
    assert type(loaded.denoiser.net) is torch.nn.Linear
    assert loaded.optimizer.func is torch.optim.SGD and loaded.optimizer.keywords == {"lr": 0.5}


class Cells(EDM):
    """A user's own technique."""

    def __init__(self, denoiser, extra=None, **options):
        super().__init__(denoiser, **options)
        self.extra = extra


def test_a_users_own_class(tmp_path):
    """`diffx.load` says what to do; with the class given, its arguments come from the recipe or from the caller."""
    module = Cells(Denoiser(MLP(features=2, width=8, depth=1)), extra=3, shape=(2,))
    path = save(module, tmp_path / "a.ckpt")
    with pytest.raises(RecipeError, match=r"Cells.*trust=True.*Cells\.load\(path"):
        load(path)
    loaded = load(path, cls=Cells)
    assert type(loaded) is Cells and loaded.extra == 3 and shift(loaded, module) == {0.0}
    assert load(path, cls=Cells, extra=4).extra == 4


def test_parts_without_a_recipe_must_be_given(tmp_path):
    module = Cells(Denoiser(parts.Net(2)), shape=(2,))
    path = save(module, tmp_path / "a.ckpt")
    with pytest.raises(RecipeError, match=r"module.denoiser.net: a parts_for_recipes.Net that keeps no recipe.*Cells.load\(path, ...\)"):
        load(path, cls=Cells)
    loaded = load(path, cls=Cells, denoiser=Denoiser(parts.Net(2)))
    assert shift(loaded, module) == {0.0}
    with pytest.raises(ValueError, match="do not fit the module"):
        load(path, cls=Cells, denoiser=Denoiser(parts.Net(3)))
