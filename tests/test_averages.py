"""Closed forms of the averaging profiles, and averages made after training."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from diffx.averages import (
    Constant,
    HalfLife,
    InversePower,
    Power,
    coefficients,
    gamma_of,
    reconstruct,
    save_snapshot,
    sigma_rel_of,
    snapshots_in,
)

PROFILES = [Constant(0.99), HalfLife(1000), HalfLife(1000, rampup=None), InversePower(), Power(0.05), Power(0.10)]


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_decay_is_a_share_and_settles_upwards(profile):
    betas = [profile.beta(8 * k, 8, k) for k in range(400)]
    assert all(0 <= beta < 1 for beta in betas)
    assert betas == sorted(betas)


def test_half_life_of_the_edm_cifar_setting():
    profile, batch = HalfLife(500_000, rampup=0.05), 512
    expected = {0: 0.0, batch: 9.5367e-7, 2 * batch: 9.765625e-4, 10 * batch: 0.25}
    for seen, beta in expected.items():
        assert profile.beta(seen, batch, 0) == pytest.approx(beta, rel=1e-5, abs=0)
    steady = profile.beta(10_000_000, batch, 0)
    assert steady == pytest.approx(0.9992904691, abs=5e-11)
    assert math.log(0.5) / math.log(steady) == pytest.approx(976.5625)
    assert profile.beta(9_999_000, batch, 0) < steady  # the ramp ends at images / rampup


def test_half_life_counts_images_not_steps():
    """One step of 2B images keeps as much as two steps of B, once the ramp is over."""
    profile = HalfLife(1000)
    assert profile.beta(10**6, 64, 0) == pytest.approx(profile.beta(10**6, 32, 0) ** 2, rel=1e-12)


def test_inverse_power_warms_up_from_a_copy():
    profile = InversePower(power=2 / 3, max=0.999)
    assert profile.beta(0, 1, 0) == 0 and profile.beta(0, 1, 10**9) == 0.999
    assert profile.beta(0, 1, 7) == pytest.approx(1 - 1 / 4, rel=1e-12)  # 8 ** (2/3) = 4
    assert InversePower(power=0.5, inv_gamma=100).beta(0, 1, 300) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.slow
def test_inverse_power_agrees_with_diffusers():
    training_utils = pytest.importorskip("diffusers.training_utils")
    theirs = training_utils.EMAModel([], decay=0.999, use_ema_warmup=True, inv_gamma=2.0, power=0.75)
    mine = InversePower(power=0.75, inv_gamma=2.0, max=0.999)
    for k in (0, 1, 2, 10, 1000, 10**6):
        assert mine.beta(0, 1, k) == pytest.approx(theirs.get_decay(k + 1), rel=1e-12)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.972199), (0.10, 6.937204), (0.15, 3.557869), (0.20, 1.826214), (0.25, 0.719824)]
)
def test_power_exponents(sigma_rel, gamma):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-7)
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, abs=1e-12)


@pytest.mark.parametrize(("sigma_rel", "mean"), [(0.05, 0.947291), (0.10, 0.888108)])
def test_power_profile_has_the_width_it_says(sigma_rel, mean):
    """Averaging t / T and its square along a straight run gives mean (gamma + 1) / (gamma + 2) and standard deviation sigma_rel."""
    profile, steps = Power(sigma_rel), 20_000
    first = second = 0.0
    for k in range(steps):
        t, beta = (k + 1) / steps, profile.beta(k, 1, k)
        first, second = beta * first + (1 - beta) * t, beta * second + (1 - beta) * t * t
    gamma = gamma_of(sigma_rel)
    assert first == pytest.approx(mean, abs=1e-4) and first == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-4)
    assert math.sqrt(second - first**2) == pytest.approx(sigma_rel, abs=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(1.0), lambda: Constant(-0.1), lambda: HalfLife(0), lambda: HalfLife(10, rampup=0), lambda: InversePower(0),
        lambda: InversePower(max=1.0), lambda: InversePower(min=0.9, max=0.5), lambda: Power(0.0), lambda: Power(0.2886752),
    ],
)  # fmt: skip
def test_profiles_refuse_what_is_no_average(make):
    with pytest.raises(ValueError, match="must"):
        make()


STEPS, STORED = 4096, 16


def trajectory(t: np.ndarray) -> np.ndarray:
    """A bend, a trend and an oscillation: weights of range about 1.5 at the times t in (0, 1]."""
    return np.stack([np.exp(-3 * t), 0.8 * t, 0.4 * np.sin(9 * t)]).sum(0) + np.zeros_like(t)


def true_average(sigma_rel: float, end: int = STEPS) -> float:
    profile, value = Power(sigma_rel), 0.0
    for k, theta in enumerate(trajectory(np.arange(1, end + 1) / STEPS)):
        beta = profile.beta(k, 1, k)
        value = beta * value + (1 - beta) * theta
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    weights = dict.fromkeys((0.05, 0.1), 0.0)
    for k, theta in enumerate(trajectory(np.arange(1, STEPS + 1) / STEPS)):
        for width in weights:
            beta = Power(width).beta(k, 1, k)
            weights[width] = beta * weights[width] + (1 - beta) * theta
            if (k + 1) % (STEPS // STORED) == 0:
                save_snapshot(folder / f"{k + 1:06d}_{width}.safetensors", {"w": torch.tensor([weights[width]])}, k + 1, width)
    return folder


def stored_profiles() -> tuple[list[int], list[float]]:
    times = [STEPS // STORED * i for i in range(1, STORED + 1)]
    return times * 2, [gamma_of(0.05)] * STORED + [gamma_of(0.10)] * STORED


def test_a_stored_profile_is_itself():
    times, gammas = stored_profiles()
    for i in (3, STORED - 1, 2 * STORED - 1):
        c = coefficients(times, gammas, times[i], gammas[i])
        assert np.abs(c - np.eye(2 * STORED)[i]).max() < 1e-12


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.10, 0.15, 0.20])
def test_reconstruction_meets_the_average_of_the_run(folder, sigma_rel):
    assert reconstruct(folder, sigma_rel)["w"].item() == pytest.approx(true_average(sigma_rel), abs=1e-3)


def test_reconstruction_ends_where_asked(folder):
    """In the middle of the run, from the snapshots up to there alone."""
    assert reconstruct(folder, 0.12, images=STEPS // 2)["w"].item() == pytest.approx(true_average(0.12, STEPS // 2), abs=1e-3)


def test_extrapolation_warns_and_interpolation_does_not(folder):
    with pytest.warns(UserWarning, match="extrapolation"):
        value = reconstruct(folder, 0.03)["w"].item()
    assert value == pytest.approx(true_average(0.03), abs=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(folder, 0.05)


def test_each_snapshot_is_read_once(folder, monkeypatch):
    from safetensors import torch as safetensors_torch

    read, load_file = [], safetensors_torch.load_file
    monkeypatch.setattr(safetensors_torch, "load_file", lambda path: read.append(path) or load_file(path))
    reconstruct(folder, 0.15)
    assert len(read) == len(set(read)) == 2 * STORED


def test_snapshots_are_half_precision_with_a_header(folder):
    from safetensors.torch import load_file

    found = snapshots_in(folder)
    assert len(found) == 2 * STORED and found[0].images == STEPS // STORED and {s.sigma_rel for s in found} == {0.05, 0.10}
    assert load_file(found[0].path)["w"].dtype == torch.float16
    assert reconstruct(folder, 0.1)["w"].dtype == torch.float32


def test_what_is_no_snapshot_is_named(folder, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match="the oldest is at"):
        reconstruct(folder, 0.1, images=1)
    save_file({"w": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="no snapshot of a power-function average"):
        reconstruct(tmp_path, 0.1)
    save_snapshot(tmp_path / "plain.safetensors", {"w": torch.zeros(1)}, 10, 0.1)
    save_snapshot(tmp_path / "other.safetensors", {"v": torch.zeros(1)}, 20, 0.1)
    with pytest.raises(ValueError, match="different networks"):
        reconstruct(tmp_path, 0.1)
