"""Where the verb `sample` learns how fast sounds are: from the run's data, which are built no more freely than a checkpoint."""

import sys

import yaml

from diffx.sample import _rate


def run(folder, data):
    (folder / "checkpoints").mkdir()
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
