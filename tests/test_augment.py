"""The augmentation pipe: identity when off, exact flips, transforms that agree with exact ones on smooth pictures."""

import math

import pytest
import torch

from diffx import augment
from diffx.augment import AugmentPipe

NOTHING = dict(xflip=0, yflip=0, scale=0, rotate=0, stretch=0, translate=0)


def blob(size=32, shift=0.5, sharp=1.0):
    at = torch.linspace(-3, 3, size, dtype=torch.float64)
    return torch.exp(-sharp * (at[:, None] ** 2 + (at[None] - shift) ** 2))[None, None]


def test_wavelet_is_orthonormal_to_its_even_shifts():
    taps = torch.tensor(augment.SYM6, dtype=torch.float64)
    products = [float(taps[2 * m :] @ taps[: len(taps) - 2 * m]) for m in range(6)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2), abs=1e-12)


def test_off_is_the_identity_with_a_zero_label():
    x = torch.randn(8, 3, 12, 10)
    y, label = AugmentPipe(p=0, xflip=0)(x)
    assert torch.equal(x, y) and label.shape == (8, 9) and not label.any()


def test_vertical_flip_is_exact_and_a_fair_coin():
    x = torch.randn(400, 1, 6, 6)
    y, label = AugmentPipe(p=1, **{**NOTHING, "yflip": 1})(x, torch.Generator().manual_seed(0))
    flipped = label[:, 1] == 1
    assert torch.equal(y[flipped], x[flipped].flip(2)) and torch.equal(y[~flipped], x[~flipped])
    assert 0.4 < flipped.float().mean() < 0.6 and not label[:, [0, *range(2, 9)]].any()


def test_horizontal_flip_ignores_p():
    _, label = AugmentPipe(p=0)(torch.zeros(400, 1, 4, 4), torch.Generator().manual_seed(0))
    assert 0.4 < label[:, 0].mean() < 0.6


def test_interior_survives_resampling_under_the_identity():
    x = torch.randn(2, 3, 24, 16, dtype=torch.float64)
    y = augment._resample(x, torch.eye(2, dtype=torch.float64).expand(2, 2, 2), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(y[..., 6:-6, 6:-6], x[..., 6:-6, 6:-6], atol=1e-10, rtol=0)


def test_whole_pixel_shift_and_quarter_turn_agree_with_exact_ones():
    x, still = blob(), torch.zeros(1, 2, dtype=torch.float64)
    shifted = augment._resample(x, torch.eye(2, dtype=torch.float64)[None], torch.tensor([[4 / 32, 0]], dtype=torch.float64))
    torch.testing.assert_close(shifted[..., 8:], x[..., 4:-4], atol=1e-3, rtol=0)
    quarter = augment._rotation(torch.tensor([-math.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(augment._resample(x, quarter, still), x.rot90(-1, (2, 3)), atol=5e-3, rtol=0)


def test_label_describes_the_rotation_that_was_applied():
    """A rotated blob's centre of mass turns by the angle of the label, in image coordinates with y downwards."""
    x = blob(64, shift=1.0, sharp=4.0).float().repeat(16, 1, 1, 1)
    y, label = AugmentPipe(p=1, **{**NOTHING, "rotate": 1})(x, torch.Generator().manual_seed(3))
    at = torch.arange(64.0) - 31.5
    centre = torch.stack([(y * at).sum((1, 2, 3)), (y * at[:, None]).sum((1, 2, 3))], 1) / y.sum((1, 2, 3))[:, None]
    cosine, sine = label[:, 3] + 1, label[:, 4]
    start = float((x[0] * at).sum() / x[0].sum())
    torch.testing.assert_close(centre, start * torch.stack([cosine, sine], 1), atol=0.15, rtol=0)


def test_wrong_rank_is_refused():
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\)"):
        AugmentPipe()(torch.zeros(2, 3, 4))
