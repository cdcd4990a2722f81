"""What is asked of a trained module: pictures and prompts together, as the verb, the pipeline and Python ask."""

import pytest
import torch
from technique_list import instructed, pictures, super_resolution, unet

from diffx import Denoiser
from diffx.asked import conditions
from diffx.techniques import SuperResolution
from diffx.text import Bytes


def told_super_resolution():
    net = unet(classes=0, maps={"low_res": 1}, vectors={"augmentation": 1}, tokens={"text": 8})
    return SuperResolution(Denoiser(net), shape=(1, 8, 8), factor=2, text=Bytes(8, 1, 2, 16), drop=0.0)


@pytest.mark.parametrize(("make", "column", "side"), [(instructed, "instruction", 8), (told_super_resolution, "text", 4)])
def test_pictures_and_prompts_together(make, column, side):
    """Two pictures serve three samples in turn, and each sample has its prompt."""
    module, images = make().eval(), pictures(2)["x"][..., :side, :side]
    cond = conditions(module, 3, text={column: ["one", None, "three"]}, images=images)
    assert torch.equal(cond.maps[module.source], images[[0, 1, 0]])
    assert cond.tokens["text"].shape[0] == 3 and module.sample(3, cond, guidance=1.0, seed=0).shape == (3, 1, 8, 8)


def test_pictures_and_labels_together():
    module, images = super_resolution(), pictures(2)["x"][..., :4, :4]
    cond = conditions(module, 2, labels=[1, 2], images=images)
    assert cond.label.tolist() == [1, 2] and torch.equal(cond.maps["low_res"], images)


@pytest.mark.parametrize(("make", "given", "message"), [
    (super_resolution, {}, r"works from given pictures; give them as images, of shape \(1, 4, 4\)"),
    (instructed, {"text": {"instruction": ["a"]}}, r"of shape \(1, 8, 8\)"),
    (instructed, {"text": {"text": ["a"]}, "images": torch.zeros(1, 1, 8, 8)}, "reads 'instruction'"),
])  # fmt: skip
def test_what_cannot_be_asked(make, given, message):
    with pytest.raises(ValueError, match=message):
        conditions(make(), 1, **given)
