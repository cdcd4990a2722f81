"""Cascades: one seed, stages that run alone give what they give together, and clear refusals."""

import pytest
import torch
from technique_list import edm, labels, super_resolution

from diffx import Cond, Denoiser, rng
from diffx.cascade import Cascade
from diffx.networks import UNet
from diffx.samplers import Heun
from diffx.techniques import EDM, SuperResolution


def stage(size, low=False):
    extra = {"maps": {"low_res": 1}, "vectors": {"augmentation": 1}} if low else {"classes": 4}
    net = UNet(channels=1, width=16, mults=(1, 2), blocks=1, **extra)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    options = {"shape": (1, size, size), "sampler": Heun(3)}
    return SuperResolution(Denoiser(net), factor=2, **options) if low else EDM(Denoiser(net), **options)


@pytest.fixture(scope="module")
def cascade():
    """8 -> 16 -> 32; only the base takes labels."""
    return Cascade([stage(8), stage(16, low=True), stage(32, low=True)])


def test_one_seed_and_every_stage_alone(cascade):
    whole = cascade.sample(3, labels(3), seed=5)
    assert [tuple(x.shape[1:]) for x in whole] == [(1, 8, 8), (1, 16, 16), (1, 32, 32)]
    first = cascade.sample(3, labels(3), seed=5, stop=0)
    rest = cascade.sample(3, labels(3), seed=5, start=1, given=first[-1])
    assert all(torch.equal(a, b) for a, b in zip(whole, [*first, *rest], strict=True))
    assert not torch.equal(cascade.sample(3, labels(3), seed=6)[-1], whole[-1])


def test_a_sample_does_not_depend_on_its_batch(cascade):
    whole = cascade.sample(3, labels(3), seed=5)[-1]
    alone = cascade.sample(1, labels(3).rows(slice(2, 3)), seed=7)[-1]
    torch.testing.assert_close(alone[0], whole[2], atol=1e-4, rtol=0)


def test_every_stage_draws_noise_of_its_own():
    class Stage:
        shape = low_shape = (1, 4, 4)
        source = "low_res"

        def sample(self, n, cond, *, seed):
            return rng.randn((n, 1, 4, 4), rng.sample_generators(seed, n))

    made = torch.stack(Cascade([Stage()] * 5).sample(4, seed=3)).flatten(0, 1).flatten(1)
    assert torch.pdist(made).min() > 1


def test_a_stage_has_options_of_its_own(cascade):
    """A refining stage that is shown nothing but noise gives other pictures from the same base."""
    usual = cascade.sample(2, labels(2), seed=1, stop=1)
    told = cascade.sample(2, labels(2), seed=1, stop=1, options={0: {"guidance": 1.0}, 1: {"level": 1.0}})
    assert torch.equal(usual[0], told[0]) and not torch.allclose(usual[1], told[1])


@pytest.mark.parametrize(("make", "message"), [
    (lambda c: Cascade([]), "at least one stage"),
    (lambda c: Cascade([edm(), edm()]), "reads no samples"),
    (lambda c: Cascade([edm(), super_resolution()]), r"reads samples of shape \(1, 4, 4\), stage 0 gives \(1, 8, 8\)"),
    (lambda c: c.sample(2, Cond(), start=1), "begins with samples of shape"),
    (lambda c: c.sample(2, Cond(), given=torch.zeros(2, 1, 8, 8)), "begins with nothing"),
    (lambda c: c.sample(2, Cond(), start=2, stop=1), "stages 0 to 2"),
])  # fmt: skip
def test_bad_input_is_refused(cascade, make, message):
    with pytest.raises(ValueError, match=message):
        make(cascade)
