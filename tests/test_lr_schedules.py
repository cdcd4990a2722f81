"""Learning-rate schedules: published values and invariances."""

import math

import pytest

from diffx.lr_schedules import Cosine, InverseSqrt, Linear, Ramp

ALL = [Ramp(10.0), InverseSqrt(hold=100.0, ramp=10.0), Linear(ramp=10.0), Cosine(ramp=10.0, floor=0.02)]


def test_edm_ramp_is_linear_in_images():
    assert [Ramp(10e6)(n, math.inf) for n in (0, 2.5e6, 10e6, 200e6)] == [0, 0.25, 1, 1]


def test_edm2_small_network_rates():
    """Peak .010, decay after 70,000 batches of 2,048, ramp of 10 million images."""
    schedule = InverseSqrt(hold=70e3 * 2048)
    images = (0, 5e6, 10e6, 143.36e6, 573.44e6, 2147.484e6)
    assert [0.010 * schedule(n, math.inf) for n in images] == pytest.approx([0, 0.005, 0.01, 0.01, 0.005, 0.00258374], rel=1e-5)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_starts_at_zero_with_a_ramp_and_never_leaves_the_unit_interval(schedule):
    factors = [schedule(n, 200.0) for n in range(0, 300)]
    assert factors[0] == 0 and max(factors) == pytest.approx(1.0, abs=1e-12) and min(factors) >= 0


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=lambda s: type(s).__name__)
def test_falls_from_one_to_zero_over_the_phase_and_stays_where_no_end_is_known(schedule):
    assert schedule(0, 100) == 1 and schedule(50, 100) == pytest.approx(0.5) and schedule(100, 100) == pytest.approx(0, abs=1e-12)
    assert schedule(10**9, math.inf) == 1
