"""Every experiment builds, trains and is judged in its small form; there is no other way of shrinking one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from diffx import evaluate, fit, load, sample
from diffx.recipes.build import build
from diffx.recipes.compose import compose
from diffx.recipes.errors import RecipeError

ROOT = Path(__file__).resolve().parents[1] / "experiments"
ALIKE = {  # recipes whose path another one, or another test, takes, too
    "digits/guided_few",
    "digits/teacher",
    "ediff_i/expert_64",
    "ediff_i/sr_1024",
    "ediff_i/sr_256",
    "emoji/buckets",
    "emoji/cascade_16",
    "emoji/cascade_32",
    "emoji/cascade_64",
    "imagen/base_64",
    "imagen/sr_1024",
    "imagen_video/1_base",
    "imagen_video/2_frames",
    "imagen_video/3_size",
    "imagen_video/4_size",
    "imagen_video/5_frames",
    "imagen_video/6_frames",
    "imagen_video/7_size",
    "imagenet/sit_xl_2",
    "shapes/experts",
    "shapes/two_encoders",
}
NAMES = sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.yaml") if not path.name.startswith("_"))


def pictures_for(run, folder):
    """What a model that refines pictures is given."""
    module = load(run)
    if not hasattr(module, "source"):
        return []
    np.savez(folder / "small.npz", images=np.zeros((1, *module.low_shape), dtype=np.float32))
    return [f"images={folder / 'small.npz'}"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in NAMES])
def test_runs_in_its_small_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit.main([f"experiment={name}", "small=true", "run=try", "trainer.accelerator=cpu"]) == 0
    run = tmp_path / "runs" / name / "try"
    assert {"config.yaml", "config.input.yaml", "env.json"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoints" / "last.ckpt").is_file() and list(run.glob("tb/*tfevents*"))
    assert list(run.glob("samples/*")) or yaml.safe_load((run / "config.yaml").read_text())["callbacks"]["samples"] is None
    assert sample.main([f"checkpoint={run}", "n=2", f"out={tmp_path / 'drawn'}", *pictures_for(run, tmp_path)]) == 0 and list(
        (tmp_path / "drawn").iterdir()
    )
    if "claim" in yaml.safe_load((ROOT / f"{name}.yaml").read_text()):
        capsys.readouterr()
        assert evaluate.main([f"run={run}", "n=20", "items=200"]) == 0
        assert "claim" in capsys.readouterr().out


def networks(tree):
    """The outermost sections of a recipe that name a network and load nothing."""
    if isinstance(tree, dict) and str(tree.get("_target_", "")).startswith("diffx.networks.") and "diffx.load" not in str(tree):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else ():
            yield from networks(part)


def full_size(name):
    """The recipe as it stands, with the reader's own paths made up."""
    try:
        return compose(name).tree
    except RecipeError as error:
        return compose(name, [f"{key}=somewhere" for key in re.findall(r"([\w.]+) must be given", str(error))]).tree


@pytest.mark.parametrize("name", NAMES)
def test_networks_build_at_full_size(name):
    with torch.device("meta"):
        for section in networks(full_size(name)["module"]):
            assert sum(p.numel() for p in build(section).parameters()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_has_a_small_form(name):
    recipe = yaml.safe_load((ROOT / f"{name}.yaml").read_text())
    assert recipe["description"] and "small" in recipe
