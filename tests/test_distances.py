"""Errors that count more where objects are."""

import pytest
import torch
from torch.nn import functional as F

from diffx.distances import ObjectRegions, coverage
from diffx.recipes import recipe_of
from diffx.recipes.build import build

QUARTER = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])  # a quarter of a picture of 8 pixels, and an empty slot
X = torch.zeros(1, 3, 8, 8)


def batch(regions=QUARTER, n=1):
    return {"x": X.expand(n, -1, -1, -1), "boxes": regions.expand(n, *regions.shape[1:])}


def test_a_unit_error_by_hand():
    ones = torch.ones_like(X)
    assert ObjectRegions(0.1)(ones, X, batch()).item() == pytest.approx(1.025)
    assert ObjectRegions(0.1, normalize=True)(ones, X, batch()).item() == pytest.approx(1.0)


def test_an_error_on_the_object_by_hand():
    error = torch.zeros_like(X)
    error[..., :4, :4] = 2.0
    assert ObjectRegions(0.1)(error, X, batch()).item() == pytest.approx(1.1)
    assert ObjectRegions(0.0)(error, X, batch()).item() == pytest.approx(1.0)
    assert ObjectRegions(0.1, normalize=True)(error, X, batch()).item() == pytest.approx(1.1 / 1.025)


def test_boxes_and_their_masks_are_one():
    boxes = torch.tensor([[[1, 2, 5, 6], [3, 4, 8, 8], [0, 0, 0, 0]], [[0, 0, 8, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    for row, own in enumerate(boxes.tolist()):
        for slot, (left, top, right, bottom) in enumerate(own):
            masks[row, slot, top:bottom, left:right] = True
    truth = masks.any(1, keepdim=True).float()
    assert torch.equal(coverage(boxes, (8, 8), (8, 8)), truth)
    assert torch.equal(coverage(masks, (8, 8)), truth)
    assert torch.equal(coverage(masks, (4, 2)), F.avg_pool2d(truth, (2, 4)))
    assert torch.equal(coverage(boxes, (4, 2), (8, 8)), F.avg_pool2d(truth, (2, 4)))  # of latents


def test_fractions_of_pixels_and_boxes_that_leave_the_picture():
    boxes = torch.tensor([[[-3.0, -1.0, 1.5, 9.0]]])
    cover = coverage(boxes, (2, 4), (2, 4))
    assert torch.equal(cover[0, 0], torch.tensor([[1.0, 0.5, 0.0, 0.0]] * 2))
    assert not coverage(torch.zeros(2, 0, 4), (2, 4), (2, 4)).any()


def test_overlaps_count_once():
    twice = torch.cat([QUARTER, QUARTER], 1)
    assert torch.equal(coverage(twice, (8, 8), (8, 8)), coverage(QUARTER, (8, 8), (8, 8)))


def test_a_rate_takes_some_samples():
    torch.manual_seed(0)
    errors = ObjectRegions(1.0, rate=0.3)(torch.ones(5000, 1, 8, 8), torch.zeros(5000, 1, 8, 8), batch(n=5000))
    assert set(errors.tolist()) == {1.0, 1.25}
    assert (errors > 1).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_the_gradient_is_that_of_the_weighted_square():
    estimate = torch.randn_like(X, requires_grad=True)
    ObjectRegions(3.0)(estimate, X, batch()).sum().backward()
    weight = torch.ones_like(X)
    weight[..., :4, :4] = 4.0
    torch.testing.assert_close(estimate.grad, 2 * weight * estimate.detach() / X.numel())


def test_regions_of_latents_without_pictures_are_masks():
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[..., :4, :4] = True
    latent = torch.ones(1, 4, 2, 2)
    assert ObjectRegions(0.1, regions="masks")(latent, 0 * latent, {"latent": latent, "masks": masks}).item() == pytest.approx(1.025)


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ({}, {"x": X}, r"there is no column 'boxes' .* holds \['x'\]"),
        ({}, {"x": X, "boxes": torch.zeros(1, 4)}, r"boxes \(B, K, 4\) or masks"),
        ({}, {"latent": X, "boxes": QUARTER}, "does not say how many"),
    ],
)
def test_batches_that_do_not_do(options, given, said):
    with pytest.raises(ValueError, match=said):
        ObjectRegions(**options)(X, X, given)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="weight must be at least 0"):
        ObjectRegions(-1.0)
    with pytest.raises(ValueError, match="rate lie in"):
        ObjectRegions(rate=2.0)
    with pytest.raises(ValueError, match="pictures"):
        ObjectRegions()(torch.zeros(1, 5), torch.zeros(1, 5), batch())


def test_it_travels_in_recipes():
    assert build(recipe_of(ObjectRegions(0.3, True, 0.5, "masks"))) == ObjectRegions(0.3, True, 0.5, "masks")
