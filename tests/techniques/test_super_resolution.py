"""Super-resolution: sizes, the mixture of noise, what the network is told in which branch, and clear refusals."""

import pytest
import torch
from technique_list import labels, pictures, small_pictures, super_resolution, unet

from diffx import Cond, Denoiser
from diffx.resizing import enlarge, shrink
from diffx.techniques import SuperResolution
from diffx.techniques.super_resolution import augmented


def test_sizes_keep_what_is_constant_and_blur_what_is_too_fine():
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(shrink(enlarge(flat, (32, 32)), 4), flat, atol=1e-6, rtol=0)
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2)[None, None] * 2.0 - 1
    assert shrink(board, 2)[..., 2:-2, 2:-2].std() < 0.05
    with pytest.raises(ValueError, match="divisible by the factor 3"):
        shrink(flat, 3)


def test_the_mixture_of_noise():
    up = torch.randn(4, 1, 160, 160, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(up.shape, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0.0, 0.3, 0.8, 1.0])
    mixed = augmented(Cond(maps={"low_res": up}), level, noise).maps["low_res"]
    assert torch.equal(mixed[0], up[0]) and torch.equal(mixed[3], noise[3])
    torch.testing.assert_close(mixed.var((1, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_training_draws_a_level_per_sample_and_tells_it():
    module, seen = super_resolution(), []
    module.denoiser.net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    module.loss(pictures(64))
    level = seen[0].vectors["augmentation"][:, 0]
    up = enlarge(shrink(pictures(64)["x"], 2), (8, 8))
    left = (seen[0].maps["low_res"] - (1 - level**2).sqrt()[:, None, None, None] * up).std((1, 2, 3))
    assert level.min() < 0.1 and level.max() > 0.9
    assert torch.corrcoef(torch.stack([left, level]))[0, 1] > 0.97


def test_picture_and_level_are_seen_in_both_branches_of_guidance():
    module, seen = super_resolution(drop=0.1), []
    module.denoiser.net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    module.sample(3, small_pictures(3), guidance=2.0, seed=0, level=0.25)
    cond = seen[0]
    assert len(cond) == 6 and (cond.vectors["augmentation"] == 0.25).all() and not {"augmentation", "low_res"} & set(cond.keep)
    assert cond.visible("label").tolist() == [True] * 3 + [False] * 3


def test_the_level_matters_once_the_weights_are_moved():
    module = super_resolution()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x, sigma = torch.zeros(2, 1, 8, 8), torch.ones(2)
    low, high = (module.denoiser(x, sigma, Cond(maps={"low_res": x}, vectors={"augmentation": torch.full((2, 1), a)})) for a in (0.0, 1.0))
    assert not torch.allclose(low, high)


def test_pictures_of_the_full_size_are_taken_as_they_are():
    module, cond = super_resolution(), small_pictures(2)
    full = Cond(label=cond.label, maps={"low_res": enlarge(cond.maps["low_res"], (8, 8))})
    assert torch.equal(module.sample(2, cond, seed=1), module.sample(2, full, seed=1))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: super_resolution().sample(2, labels(2)), "needs small pictures"),
    (lambda: super_resolution().sample(2, Cond(maps={"low_res": torch.zeros(2, 1, 5, 5)})), r"have the size \(4, 4\) or \(8, 8\)"),
    (lambda: super_resolution().sample(2, small_pictures(2), level=1.5), "share of noise"),
    (lambda: super_resolution(noise=(0.5, 0.2)), "lowest, highest"),
    (lambda: SuperResolution(Denoiser(unet()), shape=(1, 8, 8), factor=2), "maps={'low_res': 1}"),
    (lambda: SuperResolution(super_resolution().denoiser, shape=(1, 8, 8), factor=3), "divide the sides"),
])  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def far_sighted(**options):
    """Of 16 x 16 pictures; what its network was shown is kept in the list beside it."""
    net = unet(maps={"low_res": 1}, vectors={"augmentation": 1})
    module, seen = SuperResolution(Denoiser(net), shape=(1, 16, 16), factor=2, noise=(0, 0), **options), []
    net.register_forward_pre_hook(lambda _, args: seen.append(args))
    return module, seen


def test_windows_are_cut_from_picture_and_small_picture_alike():
    """Every window of the enlarged small picture is, inside, the enlarged window of the whole's: the whole was shrunk, then cut."""
    x = pictures(32)["x"].repeat(1, 1, 2, 2)[..., :16, :16] * torch.linspace(0.2, 1, 16)
    module, _ = far_sighted(window=8)
    with torch.no_grad():
        cut, cond = module.inputs({"x": x, "label": torch.zeros(32, dtype=torch.long)})
    small, up = shrink(x, 2), cond.maps["low_res"]
    places = set()
    for i in range(32):
        spots = [(a, b) for a in range(0, 9, 2) for b in range(0, 9, 2) if torch.equal(cut[i], x[i, :, a : a + 8, b : b + 8])]
        assert spots and any(
            torch.equal(up[i], enlarge(small[i : i + 1, :, a // 2 : a // 2 + 4, b // 2 : b // 2 + 4], (8, 8))[0]) for a, b in spots
        )
        places.add(spots[0])
    assert len(places) > 8


def test_trains_on_windows_and_samples_whole_pictures():
    module, seen = far_sighted(window=(8, 4))
    x = pictures(4)["x"].repeat(1, 1, 2, 2)
    assert module.loss({"x": x, "label": torch.zeros(4, dtype=torch.long)})["loss"].shape == (4,)
    assert seen[0][0].shape[2:] == (8, 4) and seen[0][2].maps["low_res"].shape[2:] == (8, 4)
    assert module.sample(1, Cond(label=torch.tensor([1]), maps={"low_res": torch.zeros(1, 1, 8, 8)})).shape == (1, 1, 16, 16)


def test_small_pictures_of_training_may_be_spoilt():
    module, seen = far_sighted(shrink=lambda x, factors: torch.full_like(shrink(x, factors), 0.25))
    module.loss({"x": pictures(4)["x"].repeat(1, 1, 2, 2), "label": torch.zeros(4, dtype=torch.long)})
    assert (seen[0][2].maps["low_res"] - 0.25).abs().max() < 1e-6


@pytest.mark.parametrize("window", [5, 18, (8, 0)])
def test_windows_that_do_not_fit_are_refused(window):
    with pytest.raises(ValueError, match="window must be divisible by the factor 2"):
        far_sighted(window=window)


def test_what_is_drawn_stands_beside_what_is_only_enlarged():
    module, x = super_resolution(level=0.2), pictures(3)["x"]
    cond = module.condition(pictures(3))
    found = module.restorations(x, cond, seed=4)
    assert torch.equal(found["own"], module.sample(3, cond, seed=4))
    assert torch.equal(found["naive"], enlarge(shrink(x, 2), (8, 8)))
