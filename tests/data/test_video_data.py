"""Clips that are drawn on demand: exact positions, captions, keyed motion."""

import numpy as np
import pytest
import torch

from diffx.data import MovingDigits, MovingShapes
from diffx.data.shapes import COLOURS, PALETTE
from diffx.data.video import bounce, direction


def fetched(data, n=200, part="train"):
    return getattr(data, part).fetch(np.arange(n), 0)


def test_bouncing_is_a_ball_between_two_walls():
    place, velocity, room = 3.0, 2.0, 8.0
    ball = []
    for _ in range(40):
        ball.append(place)
        place += velocity
        if not 0 <= place <= room:
            place, velocity = (2 * room - place if place > room else -place), -velocity
    assert bounce(3.0 + 2.0 * np.arange(40), room).tolist() == ball
    assert bounce(np.array([-1.0, 5.0]), 0.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("velocity", "words"),
    [((0.1, -0.1), "resting"), ((-1, 0), "moving up"), ((1, 1), "moving down and right"), ((0.24, -0.25), "moving left")],
)
def test_directions_in_words(velocity, words):
    assert direction(np.array(velocity, dtype=float), 1.0) == words


def test_digits_stand_where_positions_say_and_never_change():
    data = MovingDigits(size=(16, 20), frames=6)
    batch = fetched(data, 50)
    assert batch["x"].shape == (50, 1, 6, 16, 20) and data.shape == (1, 6, 16, 20) and data.classes == 10
    for x, positions in zip(batch["x"], batch["positions"], strict=True):
        first = None
        for frame, (top, left) in enumerate(positions.tolist()):
            rest = x[0, frame].clone()
            digit = rest[top : top + 8, left : left + 8].clone()
            rest[top : top + 8, left : left + 8] = -1
            assert (rest == -1).all()
            first = digit if first is None else first
            assert torch.equal(digit, first)
    assert (positions.diff(dim=0).abs() <= 2 + 1).all()


def test_clips_are_a_function_of_world_and_index():
    one, two = MovingDigits(), MovingDigits(seed=5)
    assert torch.equal(fetched(one)["x"], fetched(two)["x"])
    assert torch.equal(one.train.fetch(np.array([7]), 3)["x"][0], fetched(one)["x"][7])
    assert not torch.equal(fetched(MovingDigits(world=1), 20)["x"], fetched(one, 20)["x"])
    assert not torch.equal(fetched(one, 20, "val")["x"], fetched(one, 20)["x"])


def test_every_clip_moves_as_its_caption_says():
    batch = fetched(MovingShapes(size=64, objects=(1, 1), speed=0.05, frames=3), 300)
    boxes = batch["boxes"][:, :, 0]
    right, down = (boxes[:, -1, :2] - boxes[:, 0, :2]).T
    moved = {"left": right < 0, "right": right > 0, "up": down < 0, "down": down > 0}
    free = ((boxes[:, :, :2] > 4) & (boxes[:, :, 2:] < 60)).all(2).all(1)  # away from the walls
    assert free.sum() > 50
    for i in free.nonzero()[:, 0].tolist():
        assert all(so[i] for word, so in moved.items() if word in batch["text"][i].split()), batch["text"][i]


def test_shapes_stand_in_their_boxes():
    batch = fetched(MovingShapes(size=24, objects=(2, 2)), 50)
    assert batch["x"].shape == (50, 3, 8, 24, 24) and batch["x"].dtype == torch.uint8
    ink = ((torch.tensor(list(PALETTE.values())) + 1) * 127.5).round().byte()
    for x, colours, boxes in zip(batch["x"], batch["colours"], batch["boxes"], strict=True):
        for frame in range(8):
            left, top, right, bottom = boxes[frame, -1].tolist()  # the last one is in front
            assert 0 <= left < right <= 24 and 0 <= top < bottom <= 24
            same = (x[:, frame] == ink[colours[-1]][:, None, None]).all(0)
            inside = same[top:bottom, left:right]
            assert inside.sum() == same.sum() and inside.any(0).all() and inside.any(1).all()
    assert {COLOURS[c] for c in batch["colours"].flatten().tolist()} == set(COLOURS)


@pytest.mark.parametrize("make", [MovingDigits, MovingShapes])
@pytest.mark.parametrize("options", [{"frames": 0}, {"size": 0}, {"speed": -1}, {"items": 0}])
def test_numbers_out_of_range(make, options):
    with pytest.raises(ValueError, match="positive"):
        make(**options)


def test_shrunken_clips_are_every_second_frame_of_smaller_pictures():
    from diffx.resizing import shrink

    full, small = (fetched(MovingDigits(shrink=by), 20) for by in ((1, 1, 1), (2, 2, 2)))
    assert small["x"].shape == (20, 1, 4, 8, 8) and torch.equal(small["positions"], full["positions"])
    for t in range(4):
        torch.testing.assert_close(small["x"][:, :, t], shrink(full["x"][:, :, 2 * t], 2))
    with pytest.raises(ValueError, match="shrink must divide"):
        MovingDigits(shrink=(3, 1, 1))
