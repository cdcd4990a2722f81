"""What the studio does with the values of its page; no page is needed."""

import sys

import numpy as np
import pytest
import torch
from studio_model import model

from diffx.editing import Editor, PromptToPrompt
from diffx.samplers import Euler
from diffx.studio import COLOURS, Studio, strokes
from diffx.studio.__main__ import main

WALK = {"guidance": 2.0, "steps": 3, "seed": 5}


def layer(height=64, width=64, **boxes):
    """A layer of an image editor with boxes (top, bottom, left, right) of colours."""
    pixels = np.zeros((height, width, 4), dtype=np.uint8)
    for name, (top, bottom, left, right) in boxes.items():
        pixels[top:bottom, left:right] = (*COLOURS[name], 255)
    return pixels


def uint8(x, by=16):
    """Pictures (B, C, H, W) in [-1, 1] as the page shows them."""
    x = ((x + 1) * 127.5).round().clamp(0, 255).byte().repeat_interleave(by, 2).repeat_interleave(by, 3)
    return [picture.movedim(0, -1).numpy() for picture in x]


def test_strokes_belong_to_the_nearest_brush_and_the_upper_layer():
    lower, upper = layer(red=(0, 64, 0, 32)), layer(blue=(0, 16, 0, 64))
    upper[0, 0, 3] = 100  # hardly there
    masks = strokes({"layers": [lower, upper]}, (64, 64))
    assert masks["blue"].sum() == 16 * 64 - 1 and masks["red"].sum() == 48 * 32 + 1 and masks["red"][0, 0]
    assert not any(mask.any() for name, mask in masks.items() if name not in ("red", "blue"))
    off = lower.copy()
    off[..., :3] = np.clip(off[..., :3].astype(int) + 20, 0, 255)
    assert np.array_equal(strokes({"layers": [off]}, (64, 64))["red"], strokes({"layers": [lower]}, (64, 64))["red"])
    small = strokes({"layers": [lower, upper]}, (16, 16))
    assert small["blue"][:4].all() and small["red"][4:, :8].all() and small["red"].sum() == 12 * 8
    assert not strokes(None, (4, 6))["red"].any()


def test_samples_are_those_of_the_module():
    module = model()
    studio = Studio(module)
    got = studio.sample("a red circle", None, 2, **WALK)
    cond = Editor(module).told(text=["a red circle"] * 2)
    wanted = module.sample(2, cond, guidance=2.0, sampler=Euler(3, module.sampler.schedule), seed=5)
    assert all(np.array_equal(*pair) for pair in zip(got, uint8(wanted), strict=True))
    labelled = Studio(model(classes=4, text=False))
    assert not np.array_equal(labelled.sample("", 1, 1, **WALK)[0], labelled.sample("", 2, 1, **WALK)[0])


def test_painting_is_the_editors():
    module = model()
    regions = {"red circle": torch.zeros(16, 16), "blue square": torch.zeros(16, 16)}
    regions["red circle"][:, :8] = regions["blue square"][:, 8:] = 1
    drawing = {"background": None, "layers": [layer(red=(0, 64, 0, 32), green=(0, 64, 32, 64))], "composite": None}
    prompt = "a red circle and a blue square"
    got = Studio(module).paint(prompt, drawing, {"red": "red circle", "green": " blue square ", "blue": ""}, 0.5, 1, **WALK)
    editor = Editor(module, guidance=2.0, sampler=Euler(3, module.sampler.schedule), seed=5)
    from diffx.guidance import PaintWithWords

    wanted = editor.paint(editor.told(text=[prompt], phrases=[list(regions)]), regions, brush=PaintWithWords(0.5))
    assert len(got) == 2 and np.array_equal(got[1], uint8(wanted)[0]) and not np.array_equal(*got)


def test_what_is_not_painted_over_stays():
    studio = Studio(model())
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    drawing = {"background": picture, "layers": [layer(16, 16, red=(4, 12, 4, 12))]}
    shown, out = studio.inpaint(drawing, "a red square", None, **WALK)
    hole = np.zeros((16, 16), dtype=bool)
    hole[4:12, 4:12] = True
    assert np.array_equal(shown[::16, ::16, 0] == 255, hole)
    small = out[::16, ::16]
    assert np.abs(small[~hole].astype(int) - picture[~hole]).max() <= 1 and (small[hole] != picture[hole]).any()


def test_pictures_of_any_form_are_changed():
    studio = Studio(model())
    rgba = np.zeros((40, 20, 4), dtype=np.uint8)  # nothing on white
    white = np.full((40, 20, 3), 255, dtype=np.uint8)
    told = ("a red circle", None, 0.5, *WALK.values())
    assert np.array_equal(studio.img2img(rgba, *told)[0], studio.img2img(white, *told)[0])
    assert np.array_equal(studio.img2img(white[..., 0], *told)[0], studio.img2img(white, *told)[0])


def test_prompts_are_reworded_and_attention_is_named():
    module = model()
    pair = Studio(module).reword("a red circle", "a blue circle", "replace", 0.8, 0.4, **WALK)
    editor = Editor(module, guidance=2.0, sampler=Euler(3, module.sampler.schedule), seed=5)
    before, after = (editor.told(text=[text], words=True) for text in ("a red circle", "a blue circle"))
    wanted = editor.prompt_to_prompt(before, after, PromptToPrompt("replace", 0.8, 0.4))
    assert np.array_equal(pair[0], uint8(wanted.source)[0]) and np.array_equal(pair[1], uint8(wanted.target)[0])
    maps = Studio(module).attention("a red circle", **WALK)
    assert [caption for _, caption in maps] == ["a red circle", "a", "red", "circle"]
    assert all(picture.shape == (256, 256, 3) for picture, _ in maps)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda studio: studio.sample("a red circle", None, 99, **WALK), "from 1 to 64 pictures"),
        (lambda studio: studio.sample("a red circle", None, 1, 1.0, 0, 0), "at least 1 step"),
        (lambda studio: studio.sample("a green circle", None, 1, **WALK), "'green'"),
        (lambda studio: studio.paint("a red circle", None, {}, 0.3, 1, **WALK), "at least one colour a phrase"),
        (lambda studio: studio.paint("a red circle", None, {"red": "circle"}, 0.3, 1, **WALK), r"nothing is painted for 'circle' \(red\)"),
        (lambda studio: studio.inpaint(None, "a red circle", None, **WALK), "give a picture first"),
        (lambda studio: studio.inpaint({"background": np.zeros((8, 8, 3), np.uint8)}, "a red circle", None, **WALK), "paint over the part"),
    ],
)
def test_mistakes_are_answered(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(Studio(model()))


def test_other_data_are_refused():
    module = model()
    module.shape = (3, 4, 16, 16)
    with pytest.raises(ValueError, match="the studio shows pictures"):
        Studio(module)


def test_the_verb_says_what_is_missing(tmp_path, capsys, monkeypatch):
    assert main([f"checkpoint={tmp_path / 'no'}", "port=0"]) == 2
    told = capsys.readouterr().err
    assert "no such file" in told and "port must lie" in told
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([f"checkpoint={tmp_path}"]) == 1
    assert "pip install 'diffx[studio]'" in capsys.readouterr().err
