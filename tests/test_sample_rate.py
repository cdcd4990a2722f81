"""Where the verb `sample` learns how fast sounds are: from the run's data, which are built no more freely than a checkpoint."""

import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from diffx.audio import read_sound, write_wav
from diffx.sample import Options, _given, _rate


def run(folder, data):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder / "checkpoints" / "last.ckpt"


def test_the_data_of_the_run_say_it(tmp_path):
    assert _rate(run(tmp_path, {"_target_": "diffx.data.Strings", "sample_rate": 4000, "length": 1024}), False) == 4000
    assert _rate(tmp_path / "elsewhere" / "checkpoints" / "last.ckpt", False) is None


def test_pictures_have_none(tmp_path):
    assert _rate(run(tmp_path, {"_target_": "diffx.data.Digits"}), False) is None


def test_a_hostile_configuration_runs_nothing_without_trust(tmp_path, monkeypatch):
    (tmp_path / "hostile_module.py").write_text("from pathlib import Path\n\n\ndef touch(path):\n    Path(path).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    told = {"_target_": "hostile_module.touch", "path": str(tmp_path / "touched")}
    file = run(tmp_path / "run", {"_target_": "diffx.data.Strings", "notes": told})
    assert _rate(file, False) is None
    assert not (tmp_path / "touched").exists() and "hostile_module" not in sys.modules


def test_a_sound_to_refine_comes_from_a_file_of_the_lower_rate(tmp_path):
    file = run(tmp_path, {"_target_": "diffx.data.Strings", "sample_rate": 4000, "length": 1024})
    low = write_wav(torch.rand(1, 256) * 2 - 1, tmp_path / "low.wav", 1000)
    options = Options(checkpoint=str(file), images=str(low))
    given = _given(SimpleNamespace(factors=(4,)), options, file)
    assert given.shape == (1, 1, 256) and torch.equal(given[0], read_sound(low)[0])
    with pytest.raises(ValueError, match="1000 samples per second, but the model makes 4000 out of 2000"):
        _given(SimpleNamespace(factors=(2,)), options, file)
