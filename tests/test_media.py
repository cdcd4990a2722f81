"""Grids of pictures and clips, as files and in loggers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffx import media


def test_pixel_values_round_and_clip():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, float("nan"), 2 * 100 / 255 - 1])
    assert media.to_uint8(x).tolist() == [0, 0, 128, 255, 255, 0, 100]


def test_every_byte_survives():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(media.to_uint8(pixels / 127.5 - 1), pixels)


@pytest.mark.parametrize("frames", [(), (5,)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_places_sample_i_in_row_i_div_columns(channels, frames):
    x = torch.rand(7, channels, *frames, 5, 6) * 2 - 1
    sheet = media.grid(x, columns=3, zoom=2, gap=1)
    assert sheet.shape == (*frames, channels, 3 * 11 - 1, 3 * 13 - 1)
    for i in range(7):
        top, left = i // 3 * 11, i % 3 * 13
        tile = sheet[..., top : top + 10 : 2, left : left + 12 : 2]
        expected = media.to_uint8(x[i]).movedim(0, 1) if frames else media.to_uint8(x[i])
        assert torch.equal(tile, expected)
    assert (sheet[..., 22:, 13:] == 255).all()  # what no sample fills is white


def test_small_samples_are_enlarged_for_people():
    assert media.grid(torch.zeros(1, 1, 8, 8)).shape == (1, 48, 48)
    assert media.grid(torch.zeros(1, 3, 64, 64)).shape == (3, 64, 64)


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 3, 8), (3, 8, 8), (0, 3, 8, 8)])
def test_grid_refuses_other_data(shape):
    with pytest.raises(ValueError, match="expected images"):
        media.grid(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_exact(tmp_path, channels):
    sheet = media.grid(torch.rand(4, channels, 16, 16) * 2 - 1)
    path = media.save(sheet, tmp_path / "deep" / "grid")
    assert path.suffix == ".png"
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(pixels if channels > 1 else pixels[..., None], sheet.permute(1, 2, 0).numpy())


def moving_square(frames: int = 6) -> torch.Tensor:
    x = -torch.ones(2, 3, frames, 16, 16)
    for t in range(frames):
        x[:, t % 3, t, 4:8, 2 * t : 2 * t + 4] = 1
    return x


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animation_holds_every_frame(tmp_path, suffix):
    """Few colours, so that a palette loses none either."""
    sheet = media.grid(moving_square())
    path = media.save(sheet, tmp_path / f"clip{suffix}", fps=10)
    with Image.open(path) as file:
        assert file.n_frames == 6
        for t, frame in enumerate(sheet):
            file.seek(t)
            assert np.array_equal(np.asarray(file.convert("RGB")), frame.permute(1, 2, 0).numpy())
        assert file.info["duration"] == pytest.approx(100)


def test_a_pause_keeps_its_time(tmp_path):
    """Encoders merge equal frames; the clip must still last as long."""
    clip = moving_square()[:, :, [0, 1, 1, 1, 2]]
    with Image.open(media.save(media.grid(clip), tmp_path / "clip.gif", fps=10)) as file:
        durations = []
        for frame in range(file.n_frames):
            file.seek(frame)
            durations.append(file.info["duration"])
    assert sum(durations) == pytest.approx(500) and 300 in durations


def test_animations_have_their_suffixes(tmp_path):
    assert media.save(media.grid(moving_square()), tmp_path / "clip").suffix == ".gif"
    with pytest.raises(ValueError, match=r"\.gif"):
        media.save(media.grid(moving_square()), tmp_path / "clip.jpg")


def read_summaries(folder) -> dict[str, bytes]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: events.Images(tag)[0].encoded_image_string for tag in events.Tags()["images"]}


def test_tensorboard_shows_pictures_and_moving_clips(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="", version="")
    still, moving = media.grid(torch.zeros(2, 1, 8, 8)), media.grid(moving_square())
    assert media.log_media(logger, "picture", still, 3) and media.log_media(logger, "clip", moving, 3)
    logger.finalize("success")
    shown = read_summaries(tmp_path)
    assert Image.open(io.BytesIO(shown["picture"])).size == (still.shape[-1], still.shape[-2])
    clip = Image.open(io.BytesIO(shown["clip"]))
    assert clip.format == "GIF" and clip.n_frames == 6


def test_loggers_with_log_image_get_pillow_images_and_others_say_no(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    class Notes:
        def log_image(self, key, images, step):
            self.seen = key, images[0].size, step

    notes = Notes()
    assert media.log_media(notes, "samples", media.grid(moving_square()), 7)
    assert notes.seen == ("samples", (98, 48), 7)
    assert not media.log_media(CSVLogger(tmp_path), "samples", media.grid(moving_square()), 7)
