"""Grids of pictures and clips, as files and in loggers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffx import media
from diffx.audio import read_sound, wav_bytes


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


def bell(n: int = 3, channels: int = 1, length: int = 2048) -> torch.Tensor:
    """A tone of an eighth of the rate, that dies away."""
    t = torch.arange(length)
    return (torch.sin(2 * torch.pi * t / 8) * torch.exp(-t / 400)).expand(n, channels, -1)


@pytest.mark.parametrize(("shape", "shown"), [((1, 2048), True), ((2, 256), True), ((3, 2048), False), ((1, 12), False), ((2,), False),
                                              ((3, 8, 8), True), ((2, 8, 8), False), ((1, 4, 8, 8), True)])  # fmt: skip
def test_what_can_be_shown(shape, shown):
    assert media.showable(shape) is shown


@pytest.mark.parametrize("length", [256, 2048, 5000])
def test_sounds_are_shown_by_their_spectra(length):
    pictures = media.spectra(bell(length=length))
    assert pictures.shape[:3] == (3, 1, 128) and pictures.abs().max() <= 1
    rows = pictures[0, 0].mean(1)
    assert abs(int(rows.argmax()) - (128 - 32)) <= 1, "an eighth of the rate is a quarter of the height, counted from below"
    if length > 256:
        assert pictures[0, 0, 96, 2] > pictures[0, 0, 96, -3], "time runs right"
    assert media.grid(bell(length=length)).shape[1] > 128
    assert (media.spectra(torch.zeros(1, 2, length)) == -1).all()


def test_sounds_follow_one_another_with_a_pause(tmp_path):
    track = media.track(bell(2, 2, 800), 8000)
    assert track.shape == (2, 3200) and not track[:, 800:1600].any() and torch.equal(track[:, :800], track[:, 1600:2400])
    back, rate = read_sound(media.save_sound(track, tmp_path / "deep" / "bells.wav", 8000))
    assert rate == 8000 and (back - track).abs().max() < 1e-4


def test_loggers_hear_sounds(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    assert media.log_sound(logger, "samples", bell(1)[0], 8000, 7)
    logger.finalize("success")
    (audio,) = EventAccumulator(str(tmp_path)).Reload().Audio("samples")
    assert (audio.sample_rate, audio.length_frames, audio.step) == (8000, 2048, 7)
    assert audio.encoded_audio_string == wav_bytes(bell(1)[0], 8000)
    assert not media.log_sound(CSVLogger(tmp_path), "samples", bell(1)[0], 8000, 7)
