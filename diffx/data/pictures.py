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

from .source import SettingError

__all__ = ["PictureReader"]

ORIENTATION = 0x0112  # EXIF tag of the way the camera was held


@dataclass(frozen=True)
class PictureReader:
    """Turn pictures into uint8 tensors ``(C, H, W)``.

    The largest centred box with the target's aspect is cut out and resampled with Pillow's bicubic filter, which widens with the reduction
    (antialiased). Transparent pixels are laid over white; the camera's orientation tag is obeyed.

    Args:
        size: side of the square, or (height, width), in pixels; None keeps each picture's own.
        channels: 3 = RGB, 1 = grey.
        flip: mirror left-right with probability 1/2, drawn from torch's default generator.
        draft: let the JPEG decoder reduce by a power of two while it decodes: faster, slightly different pixels.

    Raises:
        ValueError: channels is neither 1 nor 3, or the size is not positive.
    """

    size: int | Sequence[int] | None = None
    channels: int = 3
    flip: bool = False
    draft: bool = False

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
        with Image.open(path) as picture:
            if self.draft and self.box is not None:
                height, width = self.box
                scale = min(picture.width / width, picture.height / height)
                picture.draft(self.mode, (ceil(picture.width / scale), ceil(picture.height / scale)))
            return self(picture)

    def __call__(self, picture: Any) -> Tensor:
        """Convert a Pillow picture, a uint8 array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``; float data passes unchanged.

        Raises:
            SettingError: no picture, or float data of another size than asked for.
            ValueError: a depth other than 8 bits.
        """
        if isinstance(picture, Tensor) and picture.dtype == torch.uint8:
            picture = picture.numpy() if picture.ndim == 2 else picture.permute(1, 2, 0).numpy()
        if isinstance(picture, (Tensor, np.ndarray)) and picture.dtype not in (torch.uint8, np.uint8):
            x = self._float(torch.as_tensor(picture))
            return x.flip(-1) if self._mirror() else x
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
        if not isinstance(picture, Image.Image):
            raise SettingError(f"expected a picture (Pillow, array or tensor), got {type(picture).__name__}; name its key with image=")
        if picture.getexif().get(ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        pixels = np.atleast_3d(np.asarray(self._resized(self._converted(picture))))  # (H, W, C)
        pixels = pixels[:, ::-1] if self._mirror() else pixels
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

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
