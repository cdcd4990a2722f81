"""Figures of motion on clips whose motion is known."""

import numpy as np
import pytest
import torch

from diffx.data import MovingDigits
from diffx.metrics import MOTION, ClipFeatures, Evidence, figure_names, measure, motion


@pytest.fixture(scope="module")
def clips():
    data = MovingDigits()
    return data.train.fetch(np.arange(600), 0), data.val.fetch(np.arange(300), 0)


def test_the_centre_of_a_block_and_its_steps():
    x = torch.full((1, 1, 4, 9, 9), -1.0)
    for t, (row, column) in enumerate([(0, 0), (0, 3), (4, 3), (4, 3)]):
        x[0, 0, t, row : row + 2, column : column + 2] = 1
    seen = motion(x)
    assert seen.centroid[0].tolist() == [[0.5, 0.5], [0.5, 3.5], [4.5, 3.5], [4.5, 3.5]]
    assert seen.steps[0].tolist() == [3, 4, 0] and seen.turns[0].tolist() == [5, 4]
    assert seen.mass[0].tolist() == [4, 4, 4, 4] and seen.variation[0] == 0
    brighter = motion((x + 1) / 2 * 0.5 + 0.2)  # another background, half the contrast
    assert torch.allclose(brighter.centroid, seen.centroid, atol=1e-5) and torch.allclose(brighter.mass, seen.mass / 4, atol=1e-5)


def test_an_empty_clip_rests_in_the_middle():
    seen = motion(torch.zeros(1, 3, 2, 4, 6))
    assert seen.centroid[0, 0].tolist() == [1.5, 2.5] and seen.steps.max() == 0 and seen.variation.isfinite().all()


def test_the_centre_follows_the_positions_of_the_data(clips):
    batch = clips[0]
    relative = motion(batch["x"]).centroid - batch["positions"]
    assert relative.std(1).max() < 1e-6  # the same place of the digit in every frame


def test_disorder_is_seen_by_every_figure_that_should(clips):
    train, val = clips[0]["x"], clips[1]["x"]
    order = torch.rand(300, 8, generator=torch.Generator().manual_seed(0)).argsort(1)
    shuffled = torch.stack([clip[:, row] for clip, row in zip(val, order, strict=True)])
    mixed = torch.stack([val[(torch.arange(300) + 37 * t) % 300, :, t] for t in range(8)], 2)
    found = {}
    for name, x in {"real": val, "shuffled": shuffled, "mixed": mixed}.items():
        figures, skipped = measure(Evidence(x, train, held_out=val), MOTION)
        assert not skipped
        found[name] = {figure: entry["value"] for figure, entry in figures.items()}
    assert found["real"]["mean_step"] == pytest.approx(1.54, abs=0.1) and found["real"]["unsteadiness"] == pytest.approx(1.0, abs=0.05)
    assert found["shuffled"]["unsteadiness"] > 4 and found["mixed"]["unsteadiness"] > 6
    assert found["real"]["mass_variation"] < 1e-6 < 0.08 < found["mixed"]["mass_variation"]
    assert found["real"]["frechet_clip"] * 10 < found["shuffled"]["frechet_clip"] < found["mixed"]["frechet_clip"]


def test_features_have_the_width_that_is_told():
    assert ClipFeatures()(torch.zeros(2, 3, 5, 8, 8)).shape == (2, 3 * 5 + 2 * 4 + 16 * 3)


def test_pictures_have_no_motion():
    with pytest.raises(ValueError, match="expected clips"):
        motion(torch.zeros(2, 1, 8, 8))
    assert not {"mean_step", "frechet_clip"} & {*figure_names()}
