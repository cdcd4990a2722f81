"""Diffusion of clips: pictures beside them, known frames, reconstruction guidance against the Gaussian that is known in closed form."""

from dataclasses import replace

import pytest
import torch
from technique_list import clips, frame_rate, labels, unet, video

from diffx import Cond, Denoiser, Heun
from diffx.cascade import Cascade
from diffx.guidance import reconstruction_guided, replaced
from diffx.networks import VideoUNet
from diffx.rng import STRIDE
from diffx.samplers import Euler
from diffx.techniques import SuperResolution, VideoDiffusion

RHO = 0.7


def correlated(x, sigma):
    """The denoiser of two values of variance 1 and correlation RHO."""
    covariance = torch.tensor([[1, RHO], [RHO, 1]], dtype=x.dtype)
    noise = sigma.view(-1, 1, 1) ** 2 * torch.eye(2, dtype=x.dtype)
    return (covariance @ torch.linalg.solve(covariance + noise, x[:, :, None]))[:, :, 0]


def test_reconstruction_guidance_is_exact_for_a_gaussian():
    alpha = torch.tensor(0.6, dtype=torch.float64)
    sigma = ((1 - alpha**2).sqrt() / alpha).view(1)
    known, z = torch.tensor([[1.3, 0.0]], dtype=torch.float64), torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    x = z / alpha
    covariance = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
    inverse = torch.linalg.inv(covariance) + torch.eye(2, dtype=torch.float64) / sigma**2
    posterior = torch.linalg.inv(inverse)
    weight = (sigma**2 / posterior[0, 0]).item()
    assert weight == pytest.approx(3.1585, abs=1e-4)
    mean = correlated(x, sigma)
    wanted = mean[0, 1] + posterior[1, 0] / posterior[0, 0] * (known[0, 0] - mean[0, 0])
    mask = torch.tensor([True, False])
    guided = reconstruction_guided(correlated, known, lambda x0: x0 * mask, weight)(x, sigma)
    torch.testing.assert_close(guided[0, 1], wanted, atol=1e-9, rtol=0)
    assert (mean[0, 1] - wanted).abs() > 0.1


def test_the_weight_counts_the_sum_over_values_or_their_mean():
    x, sigma = torch.randn(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    plain = correlated(x, sigma)
    summed, meant = (
        reconstruction_guided(correlated, torch.ones(3, 2), lambda x0: x0, 1.0, normalise=n)(x, sigma) - plain for n in (False, True)
    )
    torch.testing.assert_close(summed, 2 * meant)
    off = reconstruction_guided(correlated, torch.ones(3, 2), lambda x0: x0, 0.0)(x, sigma)
    assert torch.equal(off, plain)


def test_reconstruction_guidance_refuses_inference_mode():
    guided = reconstruction_guided(correlated, torch.ones(1, 2), lambda x0: x0)
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        guided(torch.ones(1, 2), torch.ones(1))


def test_known_values_are_shown_noised_and_answered_with():
    known, mask = torch.tensor([[2.0, 0.0]]), torch.tensor([True, False])
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return 10 * x

    out = replaced(denoise, known, mask, lambda: torch.ones(1, 2))(torch.tensor([[-4.0, 7.0]]), torch.tensor([3.0]))
    assert seen[0].tolist() == [[3.0 + 2.0, 7.0]] and out.tolist() == [[2.0, 70.0]]


def test_completing_a_gaussian_gives_its_conditional_law():
    """With the ideal weight at every level the drawn half has mean RHO times the known half and variance 1 - RHO^2."""
    n = 4000
    generator = torch.Generator().manual_seed(0)
    known = torch.zeros(n, 2, dtype=torch.float64)
    known[:, 0] = torch.randn(n, generator=generator, dtype=torch.float64)
    mask = torch.tensor([True, False])

    def ideal(x, sigma):
        s2 = sigma[0].item() ** 2
        spread = torch.linalg.inv(
            torch.linalg.inv(torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)) + torch.eye(2, dtype=torch.float64) / s2
        )[0, 0].item()
        return reconstruction_guided(correlated, known, lambda x0: x0 * mask, s2 / spread)(x, sigma)

    walk = Heun(30)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    out = walk(replaced(ideal, known, mask, lambda: torch.randn(n, 2, generator=generator, dtype=torch.float64)), noise)
    assert torch.equal(out[:, 0], known[:, 0])
    slope = (out[:, 1] * known[:, 0]).mean() / known[:, 0].square().mean()
    rest = out[:, 1] - slope * known[:, 0]
    assert slope == pytest.approx(RHO, abs=0.04) and rest.var() == pytest.approx(1 - RHO**2, abs=0.06)


def awake(module):
    with torch.no_grad():
        for parameter in module.denoiser.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.05)
    return module


def test_single_frames_are_from_other_clips_and_stand_alone():
    module = awake(video(stills=2)).train()
    batch = {"x": torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 3, 8, 8) / 4, "label": torch.arange(4)}
    x, cond = module.inputs(batch)
    assert x.shape == (4, 1, 5, 8, 8) and torch.equal(x[:, :, :3], batch["x"])
    assert (x[:, 0, 3:, 0, 0] != batch["x"][:, 0, :1, 0, 0]).all()
    sigma = torch.ones(4)
    changed = x.clone()
    changed[:, :, 3] += 0.3
    with torch.no_grad():
        moved = (module.estimate(changed, sigma, cond) - module.estimate(x, sigma, cond)).abs().amax((0, 1, 3, 4))
    assert moved[3] > 0 and moved[[0, 1, 2, 4]].max() == 0.0
    assert module.eval().inputs(batch)[0].shape == (4, 1, 3, 8, 8)


def test_a_batch_of_one_clip_takes_its_own_frames():
    module = video(stills=2).train()
    assert module.inputs(clips(1))[0].shape == (1, 1, 5, 8, 8)


def test_training_shows_first_frames_and_any_frames():
    module = video(shown=True).train()
    x = torch.rand(2000, 1, 3, 8, 8)
    _, cond = module.inputs({"x": x, "label": torch.zeros(2000, dtype=torch.int64)})
    known = cond.maps["known"][:, 0, :, 0, 0]
    assert torch.equal(cond.maps["given"], x * known[:, None, :, None, None])
    counts = known.sum(1)
    torch.testing.assert_close(counts.long().bincount(minlength=3) / 2000, torch.full((3,), 1 / 3), atol=0.045, rtol=0)
    one = known[counts == 1]
    assert one[:, 0].mean() == pytest.approx(0.5 + 0.5 / 3, abs=0.06)


def test_shown_frames_cost_nothing_and_come_back():
    module = awake(video(shown=True)).eval()
    x = clips(2)["x"]
    known = torch.tensor([[True, True, False], [True, True, True]])
    maps = {"given": x * known[:, None, :, None, None], "known": known[:, None, :, None, None].float().expand(-1, 1, -1, 8, 8)}
    estimate = module.estimate(x + 1, torch.ones(2), replace(labels(2), maps=maps))
    assert torch.equal(estimate[0, :, :2], x[0, :, :2]) and torch.equal(estimate[1], x[1])
    assert (estimate[0, :, 2] - x[0, :, 2]).abs().max() > 0.01


@pytest.mark.parametrize("shown", [False, True], ids=["guided", "shown"])
def test_completing_keeps_what_is_known(shown):
    module = awake(video(shown=shown))
    x, known = clips(3)["x"], torch.tensor([True, False, False])
    whole = module.complete(x, known, labels(3), seed=5)
    torch.testing.assert_close(whole[:, :, 0], x[:, :, 0], atol=1e-6, rtol=0)
    assert whole.shape == x.shape
    torch.testing.assert_close(module.complete(x, known, labels(3), seed=5, chunk=2), whole, atol=1e-4, rtol=0)
    other = module.complete(-x, known, labels(3), seed=5)
    assert (other[:, :, 1:] - whole[:, :, 1:]).abs().max() > 1e-3
    by_row = module.complete(x, torch.stack([known, known, ~known]), labels(3), seed=5)
    torch.testing.assert_close(by_row[:2], whole[:2], atol=1e-4, rtol=0)
    torch.testing.assert_close(by_row[2, :, 1:], x[2, :, 1:], atol=1e-6, rtol=0)


def test_nothing_known_is_plain_sampling():
    module = awake(video())
    plain = module.sample(2, labels(2), seed=3)
    open_ended = module.complete(torch.zeros(2, 1, 3, 8, 8), torch.zeros(3, dtype=torch.bool), labels(2), seed=3)
    torch.testing.assert_close(open_ended, plain, atol=1e-4, rtol=0)


def test_clips_are_continued_and_filled():
    module = awake(video())
    start = module.sample(2, labels(2), seed=0)
    longer = module.extend(start, 3, labels(2), overlap=1, seed=0)
    assert longer.shape == (2, 1, 7, 8, 8) and torch.equal(longer[:, :, :3], start)
    window = torch.cat([longer[:, :, 2:3], torch.zeros(2, 1, 2, 8, 8)], 2)
    block = module.complete(window, torch.tensor([True, False, False]), labels(2), seed=STRIDE)
    torch.testing.assert_close(longer[:, :, 3:5], block[:, :, 1:])
    filled = module.infill(start, 2, labels(2), seed=0)
    assert filled.shape == (2, 1, 5, 8, 8)
    torch.testing.assert_close(filled[:, :, ::2], start)


def test_a_frame_rate_is_raised_from_every_second_frame():
    module = frame_rate()
    batch = clips(2, 4)
    cond = module.condition(batch)
    assert cond.maps["low_res"].shape == (2, 1, 2, 4, 4)
    told = module.enlarged(cond, (2, 1, 4, 8, 8))
    assert told.maps["low_res"].shape == (2, 1, 4, 8, 8)
    assert torch.equal(told.maps["low_res"][:, :, 0], told.maps["low_res"][:, :, 1])
    assert told.maps["original"][0, 0, :, 0, 0].tolist() == [1, 0, 1, 0]
    assert module.low_shape == (1, 2, 4, 4)


def test_three_stages_make_a_longer_and_larger_clip():
    """8 x 8 with 2 frames, then 4 frames, then 16 x 16."""

    def stage(shape, factor, **time):
        maps = {"low_res": 1, **({"original": 1} if factor[0] > 1 else {})}
        net = VideoUNet(unet(classes=0, maps=maps, vectors={"augmentation": 1}), (), None)
        return awake(SuperResolution(Denoiser(net), shape=shape, factor=factor, sampler=Heun(3)))

    base = VideoDiffusion(Denoiser(VideoUNet(unet(classes=0))), shape=(1, 2, 8, 8), sampler=Heun(3))
    cascade = Cascade([awake(base), stage((1, 4, 8, 8), (2, 1, 1)), stage((1, 4, 16, 16), (1, 2, 2))])
    made = cascade.sample(3, Cond(), seed=1)
    assert [tuple(x.shape) for x in made] == [(3, 1, 2, 8, 8), (3, 1, 4, 8, 8), (3, 1, 4, 16, 16)]
    assert all(x.isfinite().all() for x in made)
    assert torch.equal(cascade.sample(3, Cond(), seed=1, start=2, given=made[1])[0], made[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VideoDiffusion(Denoiser(unet()), shape=(1, 8, 8)), r"\(C, T, H, W\)"),
        (lambda: video(stills=-1), "stills must not be negative"),
        (lambda: video(shown=True, stills=1), "0 for a network that is shown"),
        (lambda: VideoDiffusion(Denoiser(VideoUNet(unet(maps={"known": 1}))), shape=(1, 3, 8, 8)), "'known' alone"),
        (lambda: video().complete(torch.zeros(2, 1, 3, 8, 8), torch.zeros(3)), "known must be bool"),
        (lambda: video().complete(torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.bool)), "samples must be"),
        (lambda: video().extend(torch.zeros(2, 1, 3, 8, 8), 2, overlap=3), "overlap"),
        (lambda: SuperResolution(Denoiser(VideoUNet(unet(maps={"low_res": 1}, vectors={"augmentation": 1}))), shape=(1, 4, 8, 8),
                                 factor=(2, 1, 1)), "'original': 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ddim_under_guidance_is_deterministic_but_for_the_noise_of_known_frames():
    module = awake(video())
    x, known = clips(2)["x"], torch.tensor([True, True, False])
    runs = [module.complete(x, known, labels(2), seed=s, sampler=Euler(3)) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
