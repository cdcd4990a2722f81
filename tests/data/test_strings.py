"""Plucked strings: exact pitch, a pure function of world and index."""

import numpy as np
import pytest
import torch

from diffx.audio import cents, note_frequency, pitch
from diffx.data import Strings
from diffx.data.strings import pluck
from diffx.recipes import recipe_of


def test_every_clip_has_the_pitch_that_it_says():
    data = Strings(8)
    batch = data.train.fetch(np.arange(160), 0)
    assert batch["x"].shape == (160, 1, 2048) and batch["x"].abs().amax((1, 2)).sub(0.9).abs().max() < 1e-6
    error = cents(pitch(batch["x"], 8000), note_frequency(batch["note"])).abs()
    assert error.quantile(0.5) < 1 and error.max() < 5
    assert batch["x"].mean(-1).abs().max() < 5e-3, "no constant part"
    assert batch["text"][1] == "a plucked string at C3" and data.class_names[:3] == ("A2", "C3", "D3") and data.classes == 8
    assert batch["label"].tolist() == [i % 8 for i in range(160)] and batch["pitch"].shape == (160, 3)


@pytest.mark.parametrize("note", [45.5, 62.31, 70])
def test_fractions_of_a_note_are_kept(note):
    data = Strings(2, notes=[note], sample_rate=16_000, length=8192, items=8)
    assert (cents(pitch(data.train.fetch(np.arange(8), 0)["x"], 16_000), note_frequency(torch.full((8,), note))).abs() < 3).all()


def test_a_loop_of_whole_length_is_the_recursion_itself():
    """With a period that needs no fraction (half a sample from the mean of neighbours), against the loop written out."""
    burst = np.random.default_rng(0).standard_normal((2, 20))
    periods, decay = np.array([20.5, 31.5]), 0.9
    out = pluck(burst, periods, 200, decay)
    for row, period in enumerate(periods):
        delay, y = int(period - 0.5), np.zeros(200)
        for t in range(200):
            y[t] = burst[row, t] if t < 20 else 0
            y[t] += decay * 0.5 * sum(y[t - delay - k] for k in (0, 1) if t >= delay + k)
        np.testing.assert_allclose(out[row], y, atol=1e-12)


def test_clips_depend_on_world_and_index_alone():
    batch = Strings(8).train.fetch(np.array([3, 9, 700]), 0)
    alone = Strings(8, items=5000, seed=4).train.fetch(np.array([9]), 5)
    torch.testing.assert_close(alone["x"], batch["x"][1:2], atol=1e-6, rtol=0)
    other = Strings(8, world=1).train.fetch(np.array([9]), 0)["x"], Strings(8).val.fetch(np.array([9]), 0)["x"]
    assert all((clip - alone["x"]).abs().max() > 0.1 for clip in other)
    assert Strings(8, val_items=0).val is None and len(Strings(8, items=40).train) == 40
    assert recipe_of(Strings(8, notes=[60])) == {"_target_": "diffx.data.Strings", "batch_size": 8, "notes": [60]}


@pytest.mark.parametrize(("settings", "message"), [
    ({"notes": []}, "must be positive"), ({"decay": 0}, "decay in"), ({"notes": [110]}, "at least 8 samples"),
    ({"notes": [20]}, "fit into a clip of 2048 twice.*change notes"), ({"items": 0}, "must be positive"),
])  # fmt: skip
def test_settings_are_checked(settings, message):
    if settings.get("notes") == [20]:
        settings = {**settings, "length": 500}
        message = message.replace("2048", "500")
    with pytest.raises(ValueError, match=message):
        Strings(8, **settings)
