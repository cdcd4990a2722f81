"""Caption retrieval: pictures that are what was asked for are found, others are not more often than by chance."""

import pytest
import torch

from diffx.metrics.figures import Evidence, Unsuited
from diffx.metrics.retrieval import retrieval_figure


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def found(pictures, samples, **options):
    return retrieval_figure(pictures, **options).compute(Evidence(samples, pictures))["retrieval"]


def test_the_pictures_themselves_are_found(pictures):
    figure = found(pictures, pictures + 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)))
    assert figure["value"] == 1 and figure["shuffled"] < 0.2


@pytest.mark.parametrize("ways", [2, 10])
def test_independent_pictures_are_found_by_chance(pictures, ways):
    samples = torch.rand(2000, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    asked = pictures.repeat(10, 1, 1, 1)
    chance, spread = 1 / ways, (1 / ways * (1 - 1 / ways) / 2000) ** 0.5
    assert found(asked, samples, ways=ways)["value"] == pytest.approx(chance, abs=4 * spread)


def test_one_of_many_captions_asked_for_again_and_again_is_one_picture(pictures):
    asked = pictures[:20].repeat(5, 1, 1, 1)
    assert found(asked, asked, ways=20)["value"] == 1
    with pytest.raises(Unsuited, match=r"among 21 .* got 20"):
        found(asked, asked, ways=21)
