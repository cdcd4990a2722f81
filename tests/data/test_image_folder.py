"""Folders of pictures, drawn by Pillow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffx.data import ImageFolder, PictureReader


def picture(path, colour, size=(12, 10), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def noise(size, seed=0, mode="RGB"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def everything(source):
    return source.fetch(np.arange(len(source)), 0)


def grey(batch):
    return batch["x"].float().mean((1, 2, 3)).round().int().tolist()


@pytest.fixture
def classes(tmp_path):
    for i, name in enumerate(("b/x/2.png", "a/1.JPG", "b/0.webp", "a/.hidden.png", ".cache/c.png", "c/9.bmp")):
        picture(tmp_path / name, (40 * i,) * 3)
    (tmp_path / "README.txt").write_text("no caption")
    return tmp_path


def test_class_folders(classes):
    data = ImageFolder(classes, 2, size=8)
    assert [path.relative_to(classes).as_posix() for path in data.train.listing.paths] == ["a/1.JPG", "b/0.webp", "b/x/2.png", "c/9.bmp"]
    assert (data.classes, data.class_names, data.shape, data.val) == (3, ("a", "b", "c"), (3, 8, 8), None)
    batch = everything(data.train)
    assert batch["label"].tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(torch.tensor(grey(batch)), torch.tensor([40, 80, 0, 200]), rtol=0, atol=3)


def test_captions_beside_the_pictures(tmp_path):
    for name in ("b", "sub/a"):
        picture(tmp_path / f"{name}.png", "red")
        (tmp_path / f"{name}.txt").write_text(f"the {name}\n", encoding="utf-8")
    data = ImageFolder(tmp_path, 1, size=4)
    assert data.train.listing.layout == "captions"
    batch = everything(data.train)
    assert batch["text"] == ["the b", "the sub/a"] and "label" not in batch


@pytest.mark.parametrize(
    ("labels", "expected", "names"), [(["y", "x"], [1, 0], ("x", "y")), ([4, 0], [4, 0], None), ([None, None], None, None)]
)
def test_metadata(tmp_path, labels, expected, names):
    for name in ("a.png", "more/b.png", "unlisted.png"):
        picture(tmp_path / name, "blue")
    rows = [
        {"file_name": name, "text": f"this is {name}", "label": label} for name, label in zip(("a.png", "more/b.png"), labels, strict=True)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))) + "\n\n")
    data = ImageFolder(tmp_path, 1, size=4)
    batch = everything(data.train)
    assert batch["text"] == ["this is a.png", "this is more/b.png"]
    assert data.class_names == names and data.classes == (max(expected) + 1 if expected else None)
    assert (batch["label"].tolist() if expected else "label" not in batch) == (expected or True)


@pytest.mark.parametrize(("label", "expected", "names"), [("y x", [1, 0], ("x", "y")), ("4 0", [4, 0], None), (None, None, None)])
def test_metadata_in_csv(tmp_path, label, expected, names):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, "blue")
    first, second = (f",{entry}" for entry in label.split()) if label else ("", "")
    head = "file_name,text,label" if label else "file_name,text"
    (tmp_path / "metadata.csv").write_text(f'\ufeff{head}\nb.png,plain{second}\na.png,"one, two"{first}\n', encoding="utf-8")
    data = ImageFolder(tmp_path, 1, size=4)
    batch = everything(data.train)
    assert batch["text"] == ["one, two", "plain"] and data.class_names == names
    assert (batch["label"].tolist() if expected else "label" not in batch) == (expected or True)


def test_empty_captions_are_counted(tmp_path, caplog):
    for name, text in (("a", " \n"), ("b", "words"), ("c", "")):
        picture(tmp_path / f"{name}.png", "red")
        (tmp_path / f"{name}.txt").write_text(text)
    assert everything(ImageFolder(tmp_path, 1, size=4).train)["text"] == ["", "words", ""]
    assert "2 of 3 captions are empty, the first is that of" in caplog.text and "a.png" in caplog.text


def test_plain_pictures_and_a_held_out_fraction(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{i:02}.png", i, mode="L")
    data, again = (ImageFolder(tmp_path, 2, val=0.25, channels=1, seed=seed) for seed in (0, 1))
    held = grey(everything(data.val))
    assert len(held) == 5 and sorted(held + grey(everything(data.train))) == list(range(20))
    assert held == grey(everything(again.val)) == sorted(held)


@pytest.mark.parametrize("beside", ["train/", ""])
def test_validation_folder(tmp_path, beside):
    for name in (f"{beside}a/0.png", f"{beside}b/1.png", "val/b/2.png"):
        picture(tmp_path / name, int(name[-5]), mode="L")
    data = ImageFolder(tmp_path, 1, channels=1)
    assert (grey(everything(data.train)), grey(everything(data.val))) == ([0, 1], [2])
    assert data.class_names == ("a", "b") and everything(data.val)["label"].tolist() == [1]
    picture(tmp_path / "val/c/3.png", 3, mode="L")
    with pytest.raises(ValueError, match=r"1 classes in .*val do not occur in training: c"):
        ImageFolder(tmp_path, 1, channels=1).setup("fit")


def test_size_is_a_centred_box_resampled_with_antialiasing():
    wide = noise((64, 32))
    reader = PictureReader(8)
    ours = reader(wide)
    short = np.asarray(wide.crop((16, 0, 48, 32)).resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert ours.shape == (3, 8, 8) and ours.dtype == torch.uint8 and ours.is_contiguous()
    inner = (slice(None), slice(1, -1), slice(2, -2))  # at the cut edges the filter sees a little beyond the crop
    assert (ours[inner].int() - torch.from_numpy(short.copy())[inner].int()).abs().max() <= 2
    assert PictureReader((6, 12))(wide).shape == (3, 6, 12) and PictureReader()(wide).shape == (3, 32, 64)
    assert np.array_equal(PictureReader((32, 64))(wide), np.asarray(wide).transpose(2, 0, 1)), "the right size is not resampled"


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    half = PictureReader()(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))
    assert (PictureReader().open(tmp_path / "rgba.png") == 255).all() and half[:, 0, 0].tolist() == [255, 127, 127]
    palette = Image.new("RGB", (4, 4), "red").quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert (PictureReader().open(tmp_path / "palette.png") == 255).all()


def test_camera_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    upright = noise((6, 9))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(PictureReader().open(tmp_path / "turned.png"), np.asarray(upright).transpose(2, 0, 1))


def test_grey_and_draft(tmp_path):
    smooth = noise((16, 16)).resize((256, 256), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "big.jpg", quality=95)
    exact, draft = (PictureReader(32, draft=draft).open(tmp_path / "big.jpg").float() for draft in (False, True))
    assert exact.shape == draft.shape and 0 < (exact - draft).abs().mean() < 4
    assert PictureReader(32, channels=1).open(tmp_path / "big.jpg").shape == (1, 32, 32)


def test_flip_only_in_training_and_repeatable_with_workers(tmp_path):
    for i in range(8):
        noise((6, 6), seed=i).save(tmp_path / f"{i}.png")
    data = ImageFolder(tmp_path, 8, flip=True, val=0.25)
    straight = ImageFolder(tmp_path, 8, val=0.25)
    assert torch.equal(everything(data.val)["x"], everything(straight.val)["x"])
    x, flipped = everything(straight.train)["x"], [data.train.fetch(np.arange(6), epoch)["x"] for epoch in range(10)]
    share = torch.stack([(f != x).flatten(1).any(1) for f in flipped]).float().mean()
    assert 0.2 < share < 0.8 and all(((f == x) | (f == x.flip(-1))).all() for f in flipped)
    loaders = [iter(ImageFolder(tmp_path, 3, flip=True, num_workers=workers).train_dataloader()) for workers in (0, 2)]
    assert all(torch.equal(next(loaders[0])["x"], next(loaders[1])["x"]) for _ in range(6))


def test_an_unreadable_picture(tmp_path):
    for i in range(10):
        noise((16, 16), seed=i).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "7.png").write_text("no picture")
    for index, words in ((3, "3.png cannot be read"), (7, "7.png cannot be read .*UnidentifiedImageError")):
        with pytest.raises(ValueError, match=words):
            ImageFolder(tmp_path, 2).train.fetch(np.array([index]), 0)
    skipping = ImageFolder(tmp_path, 2, on_error="skip", max_bad=0.2)
    assert everything(skipping.train)["index"].tolist() == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9]


def test_deep_pixels_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        everything(ImageFolder(tmp_path, 1).train)


def write(root, **files):
    for name, content in files.items():
        (root / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize(
    ("files", "options", "error", "words"),
    [
        (None, {}, FileNotFoundError, "no folder"),
        ({}, {}, FileNotFoundError, "no pictures below"),
        ({"a": "", "b__txt": "b"}, {}, ValueError, "1 pictures without a caption file of the same name: .*a.png"),
        ({"a": "", "a__txt": "a", "z__txt": "z"}, {}, ValueError, "1 caption files without a picture of the same name: .*z.txt"),
        ({"a": "", "metadata__jsonl": '{"file_name": "z.png"}'}, {}, FileNotFoundError, "1 files named in .* do not exist: .*z.png"),
        ({"a": "", "metadata__jsonl": '{"file_name": "a.png"'}, {}, ValueError, "metadata.jsonl:1 is no JSON"),
        ({"a": "", "metadata__jsonl": '\n{"file": "a.png"}'}, {}, ValueError, 'metadata.jsonl:2 has no "file_name"'),
        (
            {"a": "", "metadata__jsonl": '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png"}'},
            {}, ValueError, '1 of 2 lines in .* have no "text", the first is for b.png',
        ),
        ({"a": "", "metadata__jsonl": '{"file_name": "a.png", "label": -1}'}, {}, ValueError, "all names or all integers >= 0"),
        ({"a": "", "metadata__jsonl": '{"file_name": "a.png", "text": 3}'}, {}, ValueError, "texts in .* are no strings"),
        ({"a": "", "metadata__csv": "name\na.png"}, {}, ValueError, "metadata.csv:2 names no file .* columns are .'name'"),
        ({"a": "", "metadata__csv": "file_name\na.png,extra"}, {}, ValueError, "metadata.csv:2 .* more fields than the head line"),
        ({"a": "", "metadata__csv": "file_name\nz.png"}, {}, FileNotFoundError, "1 files named in .* do not exist: .*z.png"),
        ({"a": "", "metadata__csv": "file_name", "metadata__jsonl": "{}"}, {}, ValueError, "metadata.jsonl and .*metadata.csv both say"),
        ({"a": ""}, dict(layout="metadata"), FileNotFoundError, "metadata.jsonl; it holds one JSON object per file"),
        ({"a": ""}, dict(layout="classes"), ValueError, "lies in no class folder"),
        ({"a": ""}, dict(layout="flat"), ValueError, "layout must be one of"),
        ({"a": ""}, dict(channels=4), ValueError, "channels must be 1"),
        ({"a": ""}, dict(size=0), ValueError, "size must be positive"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_folder_is_named(tmp_path, files, options, error, words):
    root = tmp_path if files is not None else tmp_path / "none"
    for name, content in (files or {}).items():
        if content:
            write(root, **{name: content})
        else:
            picture(root / f"{name}.png", "red")
            picture(root / "b.png", "red") if any("b.png" in text or name == "b__txt" for name, text in files.items()) else None
    with pytest.raises(error, match=words):
        ImageFolder(root, 1, **options).setup("fit")


def test_loose_pictures_beside_class_folders_ask_for_a_layout(classes):
    picture(classes / "loose.png", "red")
    with pytest.raises(ValueError, match=r"1 pictures lie in .*, 4 in its sub-folders; set layout="):
        ImageFolder(classes, 1).setup("fit")
    assert len(ImageFolder(classes, 1, layout="plain").train) == 5
