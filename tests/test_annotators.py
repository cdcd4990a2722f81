"""Adapters for detectors of torchvision and captioners of transformers, on tiny networks of random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffx.annotators import Captioner, Detector
from diffx.data import AnnotationFile, Shapes, annotate
from diffx.recipes import recipe_of
from diffx.recipes.build import build

transformers = pytest.importorskip("transformers")

CATEGORIES = ["__background__", "dog", "cat"]


def pictures(n=3, size=(24, 32)):
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tiny_faster_rcnn(seed=0):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 8
    return FasterRCNN(
        backbone, rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)), min_size=32, max_size=64,
        box_roi_pool=MultiScaleRoIAlign(["0"], 2, 2), box_head=nn.Sequential(nn.Flatten(), nn.Linear(32, 16)), box_predictor=Predictor(),
    ).eval()  # fmt: skip


class Predictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(16, 3), nn.Linear(16, 12)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


class Scripted(nn.Module):
    """Answers as torchvision's detectors do."""

    def forward(self, images):
        self.images = images
        return [{"boxes": torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [1, 1, 2, 2]]), "labels": torch.tensor([2, 1, 1]),
                 "scores": torch.tensor([0.6, 0.9, 0.3])} for _ in images]  # fmt: skip


def test_detections_are_read_best_first_and_above_the_threshold():
    scripted = Scripted()
    seen = Detector(model=scripted, categories=CATEGORIES)({"x": pictures(2)})
    assert [[(thing.label, thing.box) for thing in one.objects] for one in seen] == [[("dog", (4, 5, 6, 7)), ("cat", (0, 1, 2, 3))]] * 2
    assert [thing.score for thing in seen[0].objects] == pytest.approx([0.9, 0.6]) and seen[0].caption is None
    torch.testing.assert_close(scripted.images[1], pictures(2)[1] / 255, atol=1e-6, rtol=0)  # torchvision's models want [0, 1]
    assert len(Detector(model=scripted, categories=CATEGORIES, most=1)({"x": pictures(1)})[0].objects) == 1
    assert len(Detector(model=scripted, categories=CATEGORIES, threshold=0.0)({"x": pictures(1)})[0].objects) == 3


def test_uint8_and_floats_are_the_same_picture():
    detector = Detector(model=tiny_faster_rcnn(), categories=CATEGORIES, threshold=0.0)
    x = pictures()
    whole, floats = detector({"x": x}), detector({"x": x / 127.5 - 1})
    assert any(one.objects for one in whole)
    for one, other in zip(whole, floats, strict=True):
        assert [thing.label for thing in one.objects] == [thing.label for thing in other.objects]
        assert all(0 <= thing.box[0] <= thing.box[2] <= 32 and 0 <= thing.box[1] <= thing.box[3] <= 24 for thing in one.objects)


def test_weights_come_from_a_folder(tmp_path):
    source, other = tiny_faster_rcnn(1), tiny_faster_rcnn(2)
    torch.save(source.state_dict(), tmp_path / "anything.pth")
    loaded = Detector(tmp_path, other, categories=CATEGORIES, threshold=0.0)
    straight = Detector(model=source, categories=CATEGORIES, threshold=0.0)
    assert loaded({"x": pictures()}) == straight({"x": pictures()}) and loaded.fingerprint == straight.fingerprint
    assert Detector(tmp_path / "anything.pth", tiny_faster_rcnn(3), categories=CATEGORIES, threshold=0.0).fingerprint == loaded.fingerprint
    assert Detector(model=tiny_faster_rcnn(3), categories=CATEGORIES, threshold=0.0).fingerprint != loaded.fingerprint
    assert Detector(tmp_path, other, categories=CATEGORIES, threshold=0.1).fingerprint != loaded.fingerprint


def test_a_model_of_torchvision_by_name():
    detector = Detector(model="ssdlite320_mobilenet_v3_large", threshold=0.0, most=3)
    assert detector.categories[1] == "person" and len(detector.categories) == 91
    (seen,) = detector({"x": pictures(1)})
    assert len(seen.objects) == 3 and all(thing.label in detector.categories for thing in seen.objects)
    assert not detector.train().training and not any(p.requires_grad for p in detector.parameters())
    again = build(recipe_of(detector))
    assert again.fingerprint == detector.fingerprint  # random weights are a function of the seed


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"model": "yolo"}, ValueError, "torchvision keeps no categories for yolo; give categories="),
        ({"model": Scripted()}, ValueError, "no categories for Scripted"),
        ({"model": Scripted(), "categories": CATEGORIES, "threshold": 2.0}, ValueError, "threshold must lie in"),
        ({"path": "absent", "model": Scripted(), "categories": CATEGORIES}, FileNotFoundError, "found 0 there"),
    ],
)
def test_detectors_that_cannot_be(options, kind, said):
    with pytest.raises(kind, match=said):
        Detector(**options)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit FasterRCNN"):
        Detector(tmp_path, tiny_faster_rcnn(), categories=CATEGORIES)


# Captions ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BLIP of random weights with its processor and a vocabulary of twenty words."""
    place = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{i}" for i in range(20))]
    (place / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(place / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    torch.manual_seed(0)
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0,
            "sep_token_id": 3}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
              "patch_size": 16}  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.BlipForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


def test_captions_are_words_and_repeat(folder):
    captioner = Captioner(str(folder), most=6)
    seen = captioner({"x": pictures()})
    assert all(one.caption and not one.objects and len(one.caption.split()) <= 6 for one in seen)
    assert all(word.startswith("word") for one in seen for word in one.caption.split())
    assert captioner({"x": pictures() / 127.5 - 1}) == seen
    assert [captioner({"x": x[None]})[0] for x in pictures()] == seen


def test_a_captioner_is_known_by_its_weights(folder, tmp_path):
    one, same, other = Captioner(str(folder), most=6), Captioner(str(folder), most=6), Captioner(str(folder), most=7)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    file = annotate(Shapes(8, items=6, val_items=2), one, tmp_path / "seen.jsonl", batch_size=4)
    assert len(file) == 8 and file.fingerprint == one.fingerprint
    with pytest.raises(ValueError, match="give each annotator a file of its own"):
        AnnotationFile(file.path, other.fingerprint)


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="there is no folder absent"):
        Captioner("absent")
