"""Out: what is written loads again, in diffx and in stock diffusers, and draws the same pictures from the same seed, bit for bit."""

from __future__ import annotations

import json
import logging
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from technique_list import TECHNIQUES, edm, small_pictures, super_resolution, text_edm, unet

import diffx
from diffx import export
from diffx.callbacks import EMA
from diffx.denoiser import Denoiser
from diffx.interop import check_form, write_pipeline, write_safetensors
from diffx.interop.card import Run, card, run_of
from diffx.media import to_uint8
from diffx.networks import WaveUNet
from diffx.samplers import Heun
from diffx.techniques import EDM

COMMON = ["edm", "masked_tokens"]
WITHOUT = {"prior", "vq", "autoencoder"}


def opened(folder):
    """The pipeline of a folder by the stock class, quietly."""
    from diffusers import DiffusionPipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


def drawn(module, seed=0):
    """The module in evaluation mode, its zero-initialised parts drawn, so that pictures depend on every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def roundtrip(name, tmp_path):
    case = TECHNIQUES[name]
    module = drawn(case.make())
    pipe = opened(write_pipeline(module, tmp_path / "folder"))
    cond = case.cond(2)
    ours = module.sample(2, cond, seed=5)
    if {*cond.names} <= {"label"} and not cond.maps:
        classes = None if cond.label is None else cond.label.tolist()
        theirs = pipe(2, class_labels=classes, generator=seeded(5), output_type="raw").to_tuple()[0]
    else:
        theirs = pipe.technique.sample(2, cond, seed=5)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", COMMON)
def test_pipelines_draw_the_same_pictures(name, tmp_path):
    roundtrip(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TECHNIQUES} - {*COMMON} - WITHOUT))
def test_pipelines_of_all_techniques_draw_the_same_pictures(name, tmp_path):
    roundtrip(name, tmp_path)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_techniques_without_a_pipeline_are_told_their_forms(name):
    module = TECHNIQUES[name].make()
    with pytest.raises(ValueError, match=r"has no form as a diffusers pipeline.* There is to=safetensors"):
        check_form(module, "diffusers")
    check_form(module, "safetensors")
    with pytest.raises(ValueError, match="there is no form 'onnx'; there are safetensors, diffusers"):
        check_form(module, "onnx")


def test_guidance_steps_and_prompts_reach_the_technique(tmp_path):
    module = drawn(text_edm())
    pipe = opened(write_pipeline(module, tmp_path / "folder"))
    prompts = ["red", "blue red", None]
    cond = module.condition({"text": prompts})
    ours = module.sample(3, cond, guidance=2.0, sampler=Heun(3), seed=1)
    theirs = pipe(prompt=prompts, guidance_scale=2.0, num_inference_steps=3, generator=seeded(1), output_type="raw").images
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="trained without text"):
        opened(write_pipeline(drawn(edm()), tmp_path / "other"))(prompt="red")


def test_small_pictures_reach_super_resolution(tmp_path):
    module = drawn(super_resolution())
    pipe = opened(write_pipeline(module, tmp_path / "folder"))
    cond = small_pictures(2)
    theirs = pipe(class_labels=[0, 1], image=cond.maps["low_res"], generator=seeded(3), output_type="raw").images
    assert torch.equal(module.sample(2, cond, seed=3), theirs)


def test_forms_of_the_output(tmp_path):
    pipe = opened(write_pipeline(drawn(edm(unet(classes=0))), tmp_path / "folder"))
    x = pipe(2, generator=seeded(0), output_type="raw").images
    assert torch.equal(pipe(2, generator=seeded(0), output_type="pt").images, (x + 1) / 2)
    assert np.array_equal(pipe(2, generator=seeded(0), output_type="np").images, ((x + 1) / 2).numpy().transpose(0, 2, 3, 1))
    pictures = pipe(2, generator=seeded(0), return_dict=False)[0]
    assert np.array_equal(np.asarray(pictures[1]), to_uint8(x)[1, 0].numpy())
    listed = pipe(generator=[seeded(0), seeded(1)], output_type="raw").images
    assert torch.allclose(listed, x, atol=1e-5)  # sample 1 of seed 0 is sample 0 of seed 1; batches of one and two round differently
    with pytest.raises(ValueError, match="output_type must be pil, np, pt or raw"):
        pipe(output_type="latent")
    with pytest.raises(ValueError, match="give height and width, or neither"):
        pipe(height=8)


def test_clips_and_sounds_have_their_own_output(tmp_path):
    clips = opened(write_pipeline(drawn(TECHNIQUES["video"].make()), tmp_path / "clips"))(2, class_labels=1)
    assert [len(clip) for clip in clips.images] == [3, 3]
    assert clips.images[0][0].size == (8, 8)
    net = WaveUNet(channels=1, widths=(8, 8), factors=(4,))
    sound = EDM(Denoiser(net), shape=(1, 256), sampler=Heun(2))
    assert opened(write_pipeline(drawn(sound), tmp_path / "sounds"))(2).audios.shape == (2, 1, 256)


def test_a_pipeline_is_saved_as_it_was(tmp_path):
    module = drawn(edm())
    first = write_pipeline(module, tmp_path / "first")
    opened(first).save_pretrained(tmp_path / "second")
    for name in ("model_index.json", "pipeline.py", "technique/technique.py"):
        assert (first / name).read_text() == (tmp_path / "second" / name).read_text()
    assert torch.equal(diffx.load(tmp_path / "second").sample(1, seed=0), module.sample(1, seed=0))


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write_pipeline(edm(), tmp_path / "mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write_safetensors(edm(), tmp_path / "mine.safetensors")
    assert not list((tmp_path / "mine").iterdir())
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_safetensors_carry_weights_and_recipe(tmp_path):
    module = drawn(edm())
    module.images_seen = 12
    file = write_safetensors(module, tmp_path / "model.safetensors", "ema:slow", {"experiment": "mine"})
    with safe_open(file, "pt") as held:
        about = json.loads(held.metadata()["diffx"])
        assert json.loads(held.metadata()["config"]) == {"experiment": "mine"}
        assert {*held.keys()} == {*module.state_dict()}
    assert about["recipe"]["_target_"] == "diffx.techniques.EDM"
    assert about["weights"] == "ema:slow"
    again = diffx.load(file)
    assert again.images_seen == 12
    assert torch.equal(again.sample(2, seed=0), module.sample(2, seed=0))
    assert isinstance(diffx.load(file, "ema:slow", part="denoiser"), Denoiser)
    with pytest.raises(ValueError, match=r"exported with weights=ema:slow and holds no others, but 'raw'"):
        diffx.load(file, "raw")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="is damaged"):
        diffx.load(tmp_path / "torn.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no diffx checkpoint: it holds no recipe"):
        diffx.load(tmp_path / "foreign.safetensors")


class Mine(EDM):
    """A user's own technique: no part of diffx."""


def test_what_cannot_be_loaded_again_is_not_left_behind(tmp_path):
    module = Mine(Denoiser(unet()), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="cannot be loaded again, so it was removed"):
        write_pipeline(module, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint that has averages, and an evaluation of it."""
    import lightning as L
    from torch.utils.data import DataLoader

    folder = tmp_path_factory.mktemp("runs") / "main"
    module = edm()
    items = [{"x": torch.zeros(1, 8, 8), "label": 1}] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(max_steps=1, callbacks=[EMA()], logger=False, enable_progress_bar=False, accelerator="cpu",
                            enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, DataLoader(items, batch_size=2))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    config = "description: four squares\nmodule: {_target_: diffx.techniques.EDM}\ndata: {_target_: mine.Squares}\nruns: elsewhere\n"
    (folder / "config.yaml").write_text(config)
    (folder / "evaluate" / "book").mkdir(parents=True)
    figures = {"frechet": {"value": 1.25, "floor": 0.5}}
    report = {
        "samples": 10, "seed": 0, "guidance": 1.0, "figures": figures, "verdict": {"frechet": {"bound": "<= 1", "met": False}},
        "kept": False, "checkpoint": "last.ckpt", "weights": "ema", "command": "python -m diffx.evaluate run=main",
    }  # fmt: skip
    (folder / "evaluate" / "book" / "one.json").write_text(json.dumps(report))
    (folder / "evaluate" / "raw.json").write_text(json.dumps({**report, "weights": "raw", "samples": 99}))
    return folder


def test_the_verb_writes_pipeline_and_card(run, tmp_path, capsys):
    out = tmp_path / "shared"
    argv = [f"checkpoint={run}", "to=diffusers", f"out={out}", "license=apache-2.0"]
    assert export.main(argv) == 0
    text = (out / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert "# four squares" in text
    assert "| frechet | 1.2500 | <= 1 | missed | floor 0.5000 |" in text
    assert "The claim is missed." in text
    assert "99 samples" not in text, "figures of other weights"
    assert "elsewhere" not in text, "a place on somebody's machine"
    assert "| licence of the data | not said |" in text
    import hashlib

    checksum = hashlib.sha256((out / "technique" / "model.safetensors").read_bytes()).hexdigest()
    assert checksum in text
    assert torch.equal(diffx.load(out).sample(1, seed=0), diffx.load(run).sample(1, seed=0))
    assert export.main(argv) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_verb_numbers_what_it_writes_by_itself(run, capsys):
    for _ in range(2):
        assert export.main([f"checkpoint={run}", "to=safetensors", "weights=raw"]) == 0
    names = sorted(path.name for path in (run / "exports").iterdir())
    assert names == ["last-raw-2.md", "last-raw-2.safetensors", "last-raw.md", "last-raw.safetensors"]
    assert "Of 99 samples" in (run / "exports" / "last-raw.md").read_text()


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert export.main(["checkpoint=nowhere", "to=onnx", "licence=mit"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"unknown key 'licence'.*did you mean 'license'", said)
    assert "to must be" in said


def test_a_card_without_a_run_says_what_is_not_known(tmp_path):
    text = card(edm(), run_of(tmp_path / "loose.ckpt"))
    assert "Nothing was measured" in text
    assert "| data | not said |" in text
    assert Run().config == {}
