"""Cold diffusion: what a fresh restorer does, which levels it is trained on, restoring from any level, and clear refusals."""

import pytest
import torch
from technique_list import cold, labels, pictures, unet

from diffx.degradations import Blur, GaussianMask, Naive, OneShot
from diffx.techniques import ColdDiffusion


def test_a_fresh_restorer_leaves_pictures_as_they_are():
    module = cold()
    blurred = module.degrade(pictures(4)["x"])
    *_, back = module.restored(blurred, labels(4), sampler=OneShot())
    torch.testing.assert_close(back, blurred.clamp(-1, 1))


def test_the_loss_is_the_absolute_error_at_the_level_of_the_position():
    module, batch = cold().eval(), pictures(4)
    for u, level in ((0.0, 1), (0.25, 1), (0.26, 2), (1.0, 4)):
        error = Blur(4)(batch["x"], torch.full((4,), level)) - batch["x"]
        parts = module.loss(batch, u=torch.full((4,), u))
        torch.testing.assert_close(parts["loss"], error.abs().flatten(1).mean(1))
        torch.testing.assert_close(parts["mse"], error.square().flatten(1).mean(1))


def test_all_levels_are_trained_evenly():
    module, seen = cold(), []
    module.net.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    module.loss(pictures(64))
    assert seen[0].long().bincount().tolist() == [0, 16, 16, 16, 16]


@pytest.mark.parametrize("degradation", [Blur(4), GaussianMask(4, centred=False)])
def test_an_oracle_restores_from_any_level(degradation):
    module, x = cold(degradation=degradation), pictures(4)["x"]
    module.restore = lambda z, level, cond: x
    for level in (0, 2, 4):
        states = list(module.restored(module.degrade(x, level, seed=3), level=level, seed=3))
        assert len(states) == level
        if level:
            torch.testing.assert_close(states[-1], x, atol=1e-5, rtol=0)


def test_restorations_are_both_ways_back_from_the_last_level():
    module, x = cold(degradation=GaussianMask(4, centred=False)), pictures(4)["x"]
    found = module.restorations(x, labels(4), seed=3)
    worst = module.degrade(x, seed=3)
    for name, way in (("own", None), ("naive", Naive())):
        *_, last = module.restored(worst, labels(4), sampler=way, seed=3)
        assert torch.equal(found[name], last)
    assert torch.equal(module.restorations(x, labels(4), sampler=Naive(), seed=3)["own"], found["naive"])


def test_samples_begin_as_degraded_data_look():
    """With nothing learnt the naive way blurs again and again what the start drew: samples keep the mean of their class."""
    module = ColdDiffusion(unet(), shape=(1, 8, 8), degradation=Blur(4))
    batch = {"x": pictures(400)["x"] * 0.05 + (pictures(400)["label"] * 0.4 - 0.6)[:, None, None, None], "label": pictures(400)["label"]}
    module.loss(batch)
    drawn = module.sample(40, labels(40), seed=0, sampler=Naive())
    means = drawn.flatten(1).mean(1).view(10, 4).mean(0)
    torch.testing.assert_close(means, torch.tensor([-0.6, -0.2, 0.2, 0.6]), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m.sample(2, guidance=2.0), "knows no guidance, got 2.0"),
        (lambda m: m.sample(2, shape=(1, 16, 16)), r"fitted to samples of shape \(1, 8, 8\), got \(1, 16, 16\)"),
        (lambda m: list(m.restored(pictures(2)["x"], level=5)), r"levels must lie in \[0, 4\], got 5"),
        (lambda m: m.degrade(pictures(2)["x"], -1), r"levels must lie in \[0, 4\], got -1"),
        (lambda m: cold(noise=-0.1), "noise must be >= 0"),
        (lambda m: ColdDiffusion(unet(), shape=(1, 8, 8), degradation=Blur(4)).sample(2), "train first"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(cold())
