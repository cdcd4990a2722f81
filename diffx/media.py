"""Batches of samples as something to look at and listen to, as files and in a logger.

Pictures, and the spectra of sounds, make a grid; clips an animation; sounds one track. Data lies in [-1, 1]; what leaves this room is
uint8, or sound.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .audio import STFT, wav_bytes, write_wav

__all__ = [
    "animation", "grid", "log_media", "log_sound", "picture", "pyav", "save", "save_sound", "showable", "spectra", "to_uint8", "track",
]  # fmt: skip

TILE = 48  # pixels: smaller samples are enlarged by a whole factor until a person can read them
GAP = 2  # pixels between tiles
SPECTRUM = 256  # samples under the window of the pictures of sounds, which gives 128 rows
COLUMNS = 128  # about as many columns have the pictures of sounds
PAUSE = 0.1  # seconds between sounds
FADE = 80.0  # dB below full scale that are black in the pictures of sounds


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255, rounded; what lies outside is clipped, NaN becomes 0."""
    return ((x.detach().float().nan_to_num(-1.0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def showable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures ``(C, H, W)`` or clips ``(C, T, H, W)`` with 1, 3 or 4 channels, or sounds ``(C, L)``."""
    sound = len(shape) == 2 and shape[0] in (1, 2) and shape[1] >= SPECTRUM
    return sound or (len(shape) in (3, 4) and shape[0] in (1, 3, 4))


def grid(x: Tensor, *, columns: int | None = None, zoom: int | None = None, gap: int = GAP) -> Tensor:
    """Lay samples out in rows.

    Args:
        x: images ``(B, C, H, W)`` or clips ``(B, C, T, H, W)`` in [-1, 1]; 1 (grey), 3 (RGB) or 4 (RGBA) channels. Or sounds ``(B, C, L)``
            with 1 or 2 channels, of which the `spectra` are shown.
        columns: samples per row; about as many as rows by default.
        zoom: whole factor of enlargement, without smoothing; by default what makes the shorter side at least 48 pixels.
        gap: white pixels between samples.

    Returns:
        uint8 ``(C, H', W')``, or ``(T, C, H', W')`` for clips, on the CPU.

    Raises:
        ValueError: not a batch of images, clips or sounds, or another number of channels.
    """
    if not len(x) or not showable(x.shape[1:]):
        raise ValueError(
            f"expected images (B, C, H, W) or clips (B, C, T, H, W) with C = 1, 3 or 4, or sounds (B, C, L) with C = 1 or 2 and L >= "
            f"{SPECTRUM}, got shape {tuple(x.shape)}"
        )
    x = spectra(x) if x.ndim == 3 else x
    frames = rearrange(to_uint8(x).cpu(), "b c ... h w -> b c (...) h w")
    b, h, w = len(frames), frames.shape[-2], frames.shape[-1]
    columns = min(b, columns or math.ceil(math.sqrt(b)))
    zoom = zoom or max(1, math.ceil(TILE / min(h, w)))
    frames = frames.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
    frames = F.pad(frames, (0, gap, 0, gap), value=255)
    missing = -b % columns
    frames = torch.cat([frames, frames.new_full((missing, *frames.shape[1:]), 255)])
    sheet = rearrange(frames, "(r k) c t h w -> t c (r h) (k w)", k=columns)
    sheet = sheet[..., : sheet.shape[-2] - gap, : sheet.shape[-1] - gap]
    return sheet if x.ndim == 5 else sheet[0]


def spectra(x: Tensor) -> Tensor:
    """Pictures (B, 1, 128, about 128) in [-1, 1] of sounds (B, C, L), channels averaged.

    Time runs right, frequency upwards to half the rate; black is 80 dB below full scale.
    """
    hop = max(1, min(SPECTRUM // 2, x.shape[-1] // COLUMNS))
    sound = x.detach().float().nan_to_num(0.0).mean(1, keepdim=True)
    sound = F.pad(sound, (0, -x.shape[-1] % hop))
    decibels = 20 * STFT(SPECTRUM, hop)(sound).abs().clamp_min(1e-9).log10()
    return (2 * decibels / FADE + 1).clamp(-1, 1)[:, :, 1:].flip(2)


def track(x: Tensor, rate: int) -> Tensor:
    """Sounds (B, C, L) after one another, a tenth of a second apart: (C, L')."""
    return rearrange(F.pad(x.detach().float().cpu(), (0, round(PAUSE * rate))), "b c l -> c (b l)")


def animation(frames: Tensor, *, fps: float = 8.0, format: str = "GIF") -> bytes:
    """Encode frames ``(T, C, H, W)`` uint8 as an endless ``"GIF"`` (256 colours a frame) or, exactly, ``"WEBP"`` or ``"PNG"``."""
    pages = [picture(frame) for frame in frames]
    if format == "GIF":  # one palette a frame, chosen without dithering: still parts stay still
        pages = [page if page.mode == "L" else page.convert("RGB").quantize(256, dither=0) for page in pages]
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    buffer = io.BytesIO()
    pages[0].save(buffer, format, save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, **options)
    return buffer.getvalue()


def save(sheet: Tensor, path: str | os.PathLike, *, fps: float = 8.0) -> Path:
    """Write a grid to a file: ``(C, H, W)`` as a picture, ``(T, C, H, W)`` as an animation (.gif, .webp, .png) or a film (.mp4, by PyAV).

    Without a suffix, ``path`` gets ``.png`` or ``.gif``. Returns the path written.

    Raises:
        OSError: the file cannot be written.
        ModuleNotFoundError: a film without PyAV.
        ValueError: an animation with another suffix.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".gif" if sheet.ndim == 4 else ".png")
    if sheet.ndim == 4 and path.suffix not in (".gif", ".webp", ".png", ".mp4"):
        raise ValueError(f"an animation is saved as .gif, .webp, .png or .mp4, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        _film(sheet, path, fps)
    elif sheet.ndim == 4:
        path.write_bytes(animation(sheet, fps=fps, format=path.suffix[1:].upper()))
    else:
        picture(sheet).save(path)
    return path


def pyav(path: Path) -> Any:
    """The library that reads and writes films.

    Raises:
        ModuleNotFoundError: it is not installed; names the file that needs it.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} needs PyAV, which is not there; pip install 'diffx[video]', or use .gif, .webp or .png"
        ) from error
    return av


def _film(frames: Tensor, path: Path, fps: float) -> None:
    """H.264 of frames (T, C, H, W) uint8; of odd sides it takes a line less."""
    from fractions import Fraction

    av = pyav(path)
    height, width = (side // 2 * 2 for side in frames.shape[2:])
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            film.mux(stream.encode(av.VideoFrame.from_image(picture(frame[:, :height, :width]).convert("RGB"))))
        film.mux(stream.encode())


def save_sound(sound: Tensor, path: str | os.PathLike, rate: int) -> Path:
    """Write a sound (C, L) to a WAV file of 16 bit; give back the path."""
    return write_wav(sound, Path(path), rate)


def log_media(logger: Any, tag: str, sheet: Tensor, step: int, *, fps: float = 8.0) -> bool:
    """Show a grid in a Lightning logger: TensorBoard's (pictures and animations) or any with ``log_image`` (a clip's middle frame).

    TensorBoard's own ``add_video`` needs moviepy 1 and writes nothing without it; a GIF as an image summary plays in every version.

    Returns:
        Whether the logger could take it.
    """
    experiment: Any = getattr(logger, "experiment", None)
    still = sheet if sheet.ndim == 3 else sheet[len(sheet) // 2]
    if hasattr(logger, "log_image"):
        logger.log_image(key=tag, images=[picture(still)], step=step)
    elif sheet.ndim == 4 and hasattr(experiment, "_get_file_writer"):
        experiment._get_file_writer().add_summary(_summary(tag, sheet, fps), step)
    elif hasattr(experiment, "add_image"):
        experiment.add_image(tag, still.numpy(), step)
    else:
        return False
    return True


def log_sound(logger: Any, tag: str, sound: Tensor, rate: int, step: int) -> bool:
    """Let a sound (C, L) be heard in a Lightning logger, TensorBoard's or any with ``log_audio``. Returns whether it could take it."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_audio"):
        logger.log_audio(key=tag, audios=[sound.T.numpy()], step=step, sample_rate=[rate])
    elif hasattr(experiment, "_get_file_writer"):
        experiment._get_file_writer().add_summary(_audio(tag, sound, rate), step)
    else:
        return False
    return True


def _audio(tag: str, sound: Tensor, rate: int) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    channels, length = sound.shape
    audio = Summary.Audio(sample_rate=rate, num_channels=channels, length_frames=length, encoded_audio_string=wav_bytes(sound, rate),
                          content_type="audio/wav")  # fmt: skip
    return Summary(value=[Summary.Value(tag=tag, audio=audio)])


def _summary(tag: str, frames: Tensor, fps: float) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    c, h, w = frames.shape[1:]
    image = Summary.Image(height=h, width=w, colorspace=c, encoded_image_string=animation(frames, fps=fps))
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def picture(image: Tensor) -> Any:
    """An image ``(C, H, W)`` uint8 on the CPU as a Pillow image."""
    from PIL import Image

    pixels = rearrange(image, "c h w -> h w c").numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
