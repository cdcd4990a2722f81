"""From a picture file or object to a uint8 tensor of the wanted size and number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..tensors import sinusoid
from .buckets import Size
from .source import SettingError

__all__ = ["PictureReader", "covering", "is_file", "size_crop", "size_of"]

ORIENTATION = 0x0112  # EXIF tag of the way the camera was held
WAVES = 256


def size_of(picture: Any) -> Size:
    """Height and width, in pixels, of a picture as it is to be looked at: a path, an open file, or an object as in `PictureReader`.

    Of a file only the head is read; the camera's orientation is obeyed.

    Raises:
        SettingError: no picture.
        ValueError: a side has no pixels.
    """
    if is_file(picture):
        with Image.open(picture) as opened:
            return size_of(opened)
    if isinstance(picture, Image.Image):
        height, width = picture.height, picture.width
        if Image.Image.getexif(picture).get(ORIENTATION, 1) > 4:  # lying on a side; PngImageFile.getexif would decode the whole picture
            height, width = width, height
    elif isinstance(picture, (Tensor, np.ndarray)):
        height, width = picture.shape[-2:] if isinstance(picture, Tensor) else picture.shape[:2]
    else:
        raise _no_picture(picture)
    if min(height, width) < 1:
        raise ValueError(f"the picture has a side of zero pixels: height {height}, width {width}")
    return height, width


def covering(original: Size, size: Size) -> Size:
    """The smallest (height, width) of about the original's aspect that covers ``size``: one side fits exactly, the other is rounded up."""
    (height, width), (high, wide) = original, size
    if high * width >= wide * height:
        return high, -(-width * high // height)
    return -(-height * wide // width), wide


def size_crop(frame: Tensor) -> Tensor:
    """SDXL's size and crop condition (Podell et al. 2023, arXiv:2307.01952, section 2.2): 256 waves for each of six numbers.

    Args:
        frame: ``(B, 6)``: height and width of the original, top and left of the crop in the resized picture, height and width of the
            target; in pixels. For sampling, make the original equal to the target and the crop (0, 0).

    Returns:
        ``(B, 1536)`` float32: the waves of the original height, then those of the width, and so on.
    """
    return sinusoid(frame.flatten(), WAVES).float().view(len(frame), -1)


@dataclass(frozen=True)
class PictureReader:
    """Turn pictures into uint8 tensors ``(C, H, W)``.

    The largest centred box with the target's aspect is cut out and resampled with Pillow's bicubic filter, which widens with the reduction
    (antialiased). Transparent pixels are laid over white; the camera's orientation tag is obeyed.

    Args:
        size: side of the square, or (height, width), in pixels; None keeps each picture's own.
        channels: 3 = RGB, 1 = grey.
        flip: mirror left-right with probability 1/2, drawn from torch's default generator.
        scatter: `framed` cuts at a place drawn from torch's default generator; False = in the middle.
        draft: let the JPEG decoder reduce by a power of two while it decodes: faster, slightly different pixels.

    Raises:
        ValueError: channels is neither 1 nor 3, or the size is not positive.
    """

    size: int | Sequence[int] | None = None
    channels: int = 3
    flip: bool = False
    draft: bool = False
    scatter: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.box is not None and min(self.box) < 1:
            raise ValueError(f"size must be positive, got {self.size}")

    @property
    def box(self) -> tuple[int, int] | None:
        """Height and width of the result, or None."""
        if self.size is None:
            return None
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return height, width

    @property
    def mode(self) -> str:
        """Pillow's name of the colour space."""
        return "RGB" if self.channels == 3 else "L"

    def open(self, path: Path | BinaryIO) -> Tensor:
        """Read a file.

        Raises:
            Exception: whatever Pillow raises for a broken file.
        """
        return self.turned(self.still(path))

    def still(self, picture: Any) -> Tensor:
        """A picture as in `__call__`, or from a file, that is not mirrored."""
        if is_file(picture):
            with Image.open(picture) as opened:
                if self.draft and self.box is not None:
                    self._draft(opened, self.box)
                return self.still(opened)
        if isinstance(picture, (Tensor, np.ndarray)) and picture.dtype not in (torch.uint8, np.uint8):
            return self._float(torch.as_tensor(picture))
        return self._tensor(self._resized(self._converted(self._upright(picture))), mirrored=False)

    def turned(self, x: Tensor) -> Tensor:
        """``x`` (C, H, W), or its mirror image with probability 1/2, where that was asked for."""
        return x.flip(-1) if self._mirror() else x

    def framed(self, picture: Any, size: Size) -> tuple[Tensor, Tensor]:
        """Scale a picture until it covers a size, and cut it to it.

        The side that fits exactly stays exact, the other one is rounded up. A picture that is mirrored is mirrored before it is cut.

        Args:
            picture: a path, an open file, or a picture as in `__call__` that is not of floats.
            size: (height, width) in pixels.

        Returns:
            ``(C, height, width)`` uint8, and the six integers of `size_crop`.
        """
        if is_file(picture):
            with Image.open(picture) as opened:
                return self.framed(opened, size)
        if isinstance(picture, (Tensor, np.ndarray)) and picture.dtype not in (torch.uint8, np.uint8):
            raise SettingError(f"float data is taken as it is and cannot be scaled or cut; got {picture.dtype} pictures in buckets")
        height, width = size
        original = None
        if self.draft and getattr(picture, "format", None) == "JPEG":
            original = size_of(picture)
            self._draft(picture, size if original == (picture.height, picture.width) else (width, height))
        upright = self._upright(picture)
        original = original or size_of(upright)
        high, wide = covering(original, size)
        mirrored = self._mirror()
        places = torch.rand(2).tolist() if self.scatter else (0.5, 0.5)
        top, left = int(places[0] * (high - height + self.scatter)), int(places[1] * (wide - width + self.scatter))
        column = wide - width - left if mirrored else left  # of the crop before mirroring
        y, x = upright.height / high, upright.width / wide
        box = (column * x, top * y, min((column + width) * x, upright.width), min((top + height) * y, upright.height))
        cut = self._converted(upright).resize((width, height), Image.Resampling.BICUBIC, box=box)
        return self._tensor(cut, mirrored), torch.tensor([*original, top, left, *size])

    def __call__(self, picture: Any) -> Tensor:
        """Convert a Pillow picture, a uint8 array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``; float data passes unchanged.

        Raises:
            SettingError: no picture, or float data of another size than asked for.
            ValueError: a depth other than 8 bits.
        """
        return self.turned(self.still(picture))

    def _upright(self, picture: Any) -> Image.Image:
        if isinstance(picture, Tensor) and picture.dtype == torch.uint8:
            picture = picture.numpy() if picture.ndim == 2 else picture.permute(1, 2, 0).numpy()
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
        if not isinstance(picture, Image.Image):
            raise _no_picture(picture)
        return ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION, 1) != 1 else picture

    def _tensor(self, picture: Image.Image, mirrored: bool) -> Tensor:
        pixels = np.atleast_3d(np.asarray(picture))  # (H, W, C)
        return torch.from_numpy((pixels[:, ::-1] if mirrored else pixels).transpose(2, 0, 1).copy())

    def _draft(self, picture: Image.Image, size: Size) -> None:
        scale = min(picture.width / size[1], picture.height / size[0])
        picture.draft(self.mode, (ceil(picture.width / scale), ceil(picture.height / scale)))

    def _float(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise SettingError(f"arrays must be uint8 in [0, 255] or float in [-1, 1], got {x.dtype}")
        if len(x) != self.channels or self.box not in (None, tuple(x.shape[1:])):
            raise SettingError(f"float data is taken as it is: got {tuple(x.shape)}, expected {self.channels} channels, size {self.size}")
        return x.float()

    def _converted(self, picture: Image.Image) -> Image.Image:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"{picture.mode!r} pixels have more than 8 bits; convert to 8 bits, choosing what is black and what is white")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture if picture.mode == self.mode else picture.convert(self.mode)

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self.box is None or self.box == (picture.height, picture.width):
            return picture
        height, width = self.box
        scale = min(picture.width / width, picture.height / height)
        left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
        return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + width * scale, top + height * scale))

    def _mirror(self) -> bool:
        return self.flip and bool(torch.rand(()) < 0.5)


def _no_picture(thing: Any) -> SettingError:
    return SettingError(f"expected a picture (Pillow, array or tensor), got {type(thing).__name__}; name its key with image=")


def is_file(picture: Any) -> bool:
    """Whether a picture is given as a path or an open file."""
    return isinstance(picture, Path) or hasattr(picture, "read")
