"""Sound at other rates: what lies below the new half rate passes, what lies above does not, and moments stay where they were."""

import math

import pytest
import torch

from diffx.resizing import enlarge, factors_of, shrink

TIME = torch.arange(4096, dtype=torch.float64) / 4096
INSIDE = slice(256, -256)


def sine(cycles):
    return 0.8 * torch.sin(2 * math.pi * cycles * TIME)[None, None]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_low_sines_pass_and_high_ones_do_not(factor):
    """Below and above the new half rate, to 44 dB: the ripple of a Hann window."""
    half, length = 2048 / factor, 4096 // factor * factor
    low, high = (sine(share * half)[..., :length] for share in (0.8, 1.2))
    passed, stopped = (enlarge(shrink(x, factor), (length,))[..., INSIDE] for x in (low, high))
    torch.testing.assert_close(passed, low[..., INSIDE], atol=5e-3, rtol=0)
    assert stopped.abs().max() < 5e-3


def test_every_nth_sample_keeps_its_moment():
    x = sine(50)
    torch.testing.assert_close(shrink(x, 4)[..., INSIDE], x[..., ::4][..., INSIDE], atol=2e-4, rtol=0)
    wide = enlarge(x[..., ::4], (4096,))
    torch.testing.assert_close(wide[..., ::4][..., INSIDE], x[..., ::4][..., INSIDE], atol=2e-4, rtol=0)


def test_a_constant_stays_and_nothing_leaves_the_range():
    x = torch.full((2, 3, 96), 0.7)
    torch.testing.assert_close(shrink(x, 3), x[..., :32], atol=1e-5, rtol=0)
    torch.testing.assert_close(enlarge(x, (192,)), torch.full((2, 3, 192), 0.7), atol=1e-3, rtol=0)
    square = torch.sign(sine(7)).float()
    assert shrink(square, 2).abs().max() <= 1 and enlarge(shrink(square, 2), (4096,)).abs().max() <= 1


def test_a_single_factor_is_meant_for_length_or_sides():
    assert [factors_of(4, axes) for axes in (1, 2, 3)] == [(4,), (4, 4), (1, 4, 4)]
    with pytest.raises(ValueError, match="divisible"):
        shrink(torch.zeros(1, 1, 10), 4)
    with pytest.raises(ValueError, match="multiple"):
        enlarge(torch.zeros(1, 1, 10), (25,))
