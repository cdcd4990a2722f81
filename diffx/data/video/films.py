"""Reading frames: of animated pictures by Pillow, of folders of pictures, and of films by PyAV where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...media import pyav
from ..listing import PICTURES, Kind
from ..source import SettingError

__all__ = ["ANIMATED", "CLIPS", "FILMS", "count_frames", "frame_files", "read_frames"]

ANIMATED = (".gif", ".png", ".apng", ".webp")
FILMS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
CLIPS = Kind("clip", "clips", ANIMATED + FILMS)


def count_frames(path: Path) -> int:
    """Frames of an animated picture, a film, or a folder of pictures.

    Raises:
        SettingError: a film without PyAV.
        Exception: whatever Pillow or PyAV raise for a broken file.
    """
    if path.is_dir():
        return len(frame_files(path))
    if path.suffix.lower() in FILMS:
        with _av(path).open(str(path)) as film:
            return film.streams.video[0].frames or sum(1 for _ in film.decode(video=0))
    with Image.open(path) as picture:
        return getattr(picture, "n_frames", 1)


def read_frames(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    """The frames at rising ``indices``.

    Raises:
        SettingError: a film without PyAV.
        ValueError: the film ends before the last of them.
        Exception: whatever Pillow or PyAV raise for a broken file.
    """
    if path.is_dir():
        files = frame_files(path)
        return [_loaded(files[index]) for index in indices]
    if path.suffix.lower() in FILMS:
        return _film(path, indices)
    frames = []
    with Image.open(path) as picture:
        for index in indices:
            picture.seek(index)
            frames.append(picture.convert("RGBA") if picture.has_transparency_data else picture.convert("RGB"))
    return frames


def frame_files(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself, in the order of their names; numbers in names count as numbers."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES.suffixes and not path.name.startswith(".")]
    return sorted(found, key=lambda path: _natural(path.name))


def _loaded(path: Path) -> Image.Image:
    """A picture whose file is closed again."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def _natural(name: str) -> list[tuple[int, str]]:
    parts, digits = [], ""
    for letter in [*name, ""]:
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return parts


def _film(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    wanted, frames = set(indices), []
    with _av(path).open(str(path)) as film:
        for number, frame in enumerate(film.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_image())
            if len(frames) == len(indices):
                return frames
    raise ValueError(f"the film ends before frame {indices[-1]}")


def _av(path: Path) -> Any:
    try:
        return pyav(path)
    except ModuleNotFoundError as error:
        raise SettingError(str(error)) from error
