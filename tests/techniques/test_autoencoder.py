"""The KL autoencoder: its loss against closed forms, what it leaves behind as a codec, and what it refuses."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL
from torch import distributions, nn

import diffx
from diffx import Cond
from diffx.codecs import KL, posterior
from diffx.data import Digits
from diffx.denoiser import Denoiser
from diffx.networks import ConvAutoencoder, UNet
from diffx.techniques import Autoencoder


def small(**options):
    torch.manual_seed(0)
    return Autoencoder(KL(ConvAutoencoder(1, 2, 8, (1, 2))), **{"shape": (1, 8, 8), **options})


def batch(n=4):
    return {"x": torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)) * 2 - 1}


def trainer(folder, **options):
    return L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                     enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0, max_epochs=-1, **options)  # fmt: skip


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_the_loss_is_its_formula(reconstruction):
    module, x = small(reconstruction=reconstruction, kl=0.3).eval(), batch()["x"]
    torch.manual_seed(5)
    parts = module.loss({"x": x})
    mean, std = posterior(module.codec.moments(x))
    law = distributions.kl_divergence(distributions.Normal(mean, std), distributions.Normal(0.0, 1.0)).flatten(1).sum(1) / 64
    torch.manual_seed(5)
    y = module.codec.vae.decode(mean + std * torch.randn(mean.shape))
    error = (y - x).abs() if reconstruction == "l1" else (y - x) ** 2
    torch.testing.assert_close(parts["kl"], law)
    torch.testing.assert_close(parts["reconstruction"], error.flatten(1).mean(1))
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 0.3 * law)
    mse = (y.clamp(-1, 1) - x).square().flatten(1).mean(1)
    torch.testing.assert_close(parts["psnr"], 10 * torch.log10(4 / mse))


def test_a_known_error_has_a_known_psnr():
    """Off by 0.2 everywhere in a range of 2: 20 dB."""

    class Off(ConvAutoencoder):
        def decode(self, z):
            return torch.full((len(z), 1, 8, 8), 0.3)

    module = Autoencoder(KL(Off(1, 2, 8, (1, 2))), shape=(1, 8, 8))
    assert module.loss({"x": torch.full((2, 1, 8, 8), 0.5)})["psnr"].tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_a_perceptual_distance_joins_and_stays_frozen():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x, y):
            return (self.conv(x) - self.conv(y)).square().flatten(1).mean(1)

    module = small(perceptual=Distance(), perceptual_weight=2.0, kl=0.0)
    parts = module.loss(batch())
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 2 * parts["perceptual"])
    assert parts["perceptual"].min() > 0
    assert not any(name.startswith("perceptual") for name in module.trained_parameters())
    parts["perceptual"].mean().backward()
    assert module.perceptual.conv.weight.grad is None and module.codec.vae.decoder[0].weight.grad.abs().sum() > 0


def test_only_training_moves_the_normalisation():
    module = small()
    before = module.codec.scale.clone()
    module.eval().loss(batch())
    assert torch.equal(module.codec.scale, before)
    module.train().loss(batch())
    assert not torch.equal(module.codec.scale, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """150 steps on digits, about five CPU seconds."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    module = Autoencoder(KL(ConvAutoencoder(1, 2, 16, (1, 2))), shape=(1, 8, 8), kl=1e-4, rate=0.05, optimizer=optimizer)
    data = Digits(64)
    x = data.val.fetch(torch.arange(len(data.val)).numpy(), 0)["x"]
    before = psnr(module, x)
    run = trainer(folder, max_steps=150)
    run.fit(module, data)
    run.save_checkpoint(folder / "end.ckpt")
    return module.eval(), before, x, folder / "end.ckpt"


def psnr(module, x):
    return 10 * math.log10(4 / float((module.reconstruct(x) - x).square().mean()))


def test_it_learns_to_reconstruct_digits_it_never_saw(trained):
    module, before, x, _ = trained
    centre = torch.full_like(x, float(x.mean()))
    assert psnr(module, x) > before + 5
    assert psnr(module, x) > 10 * math.log10(4 / float((centre - x).square().mean())) + 5, "better than a grey picture"


def test_what_it_hands_on_is_normalised(trained):
    module, _, x, _ = trained
    z = module.codec.encode(x)
    assert z.mean((0, 2, 3)).abs().max() < 0.2
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_its_codec_serves_another_technique(trained):
    module, _, x, checkpoint = trained
    codec = diffx.load(checkpoint, weights="raw", part="codec")
    assert isinstance(codec, KL) and codec.shape((1, 8, 8)) == (2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(codec.moments(x), module.codec.moments(x))
        torch.testing.assert_close(codec.decode(torch.ones(1, 2, 4, 4)), module.codec.decode(torch.ones(1, 2, 4, 4)))
    net = UNet(channels=2, classes=10, width=8, mults=(1,), blocks=1)
    latent = diffx.EDM(Denoiser(net), shape=(1, 8, 8), codec=codec, sampler=diffx.Euler(2))
    assert not any(name.startswith("codec") for name in latent.trained_parameters())
    assert latent.loss({"x": x[:4], "label": torch.arange(4)})["loss"].shape == (4,)
    assert latent.sample(2, Cond(label=torch.arange(2)), guidance=2.0, seed=0).shape == (2, 1, 8, 8)


def test_its_own_samples_are_decoded_noise(trained):
    module, *_ = trained
    noise = torch.stack([torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(7 + i)) for i in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(module.sample(3, seed=7), module.codec.decode(noise).clamp(-1, 1))


def test_an_autoencoder_of_diffusers_trains_on():
    vae = AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.5,
                        up_block_types=("UpDecoderBlock2D",) * 2, in_channels=1, out_channels=1)  # fmt: skip
    module = Autoencoder(KL(vae), shape=(1, 8, 8))
    assert module.codec.scale.flatten().tolist() == [0.5] * 4
    module.loss(batch())["loss"].mean().backward()
    assert all(parameter.grad is not None for parameter in module.trained_parameters().values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(reconstruction="l3"), "reconstruction must be 'l1' or 'l2', got 'l3'"),
        (dict(kl=-1.0), "kl must be >= 0"),
        (dict(rate=0.0), r"rate in \(0, 1\]"),
        (dict(shape=(1, 9, 8)), r"divisible by 2, got \(9, 8\); the nearest valid size is \(10, 8\)"),
        (dict(shape=(3, 8, 8)), r"takes pictures \(1, H, W\), got \(3, 8, 8\)"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


@pytest.mark.parametrize(
    "options", [dict(cond=Cond(label=torch.zeros(2, dtype=torch.int64))), dict(guidance=2.0), dict(sampler=diffx.Heun())]
)
def test_it_samples_without_conditions_guidance_and_sampler(options):
    with pytest.raises(ValueError, match="samples without conditions"):
        small().sample(2, **options)


def test_latents_are_no_pictures():
    with pytest.raises(ValueError, match=r'trains on pictures, batch\["x"\]; got'):
        small().loss({"latent": torch.zeros(2, 2, 4, 4)})


def test_sizes_of_the_network_are_at_least_one():
    with pytest.raises(ValueError, match="latent_channels=0"):
        ConvAutoencoder(1, 0)


@pytest.mark.parametrize(("axes", "size"), [(1, (24,)), (3, (4, 8, 12))], ids=["sound", "clips"])
def test_sound_and_clips_have_codecs_too(axes, size):
    torch.manual_seed(0)
    module = Autoencoder(KL(ConvAutoencoder(1, 3, 8, (1, 2, 2), axes=axes)), shape=(1, *size)).train()
    x = torch.rand(64, 1, *size) * 2 - 1
    small_size = tuple(side // 4 for side in size)
    assert module.codec.shape((1, *size)) == (3, *small_size) and module.reconstruct(x).shape == x.shape
    assert module.loss({"x": x})["loss"].shape == (64,)
    for _ in range(300):
        module.codec.adapt(module.codec.moments(x).detach(), 0.05)
    z = module.codec.encode(x)
    assert z.shape == (64, 3, *small_size) and module.codec.decode(z).shape == x.shape
    across = (0, *range(2, 2 + axes))
    torch.testing.assert_close(z.std(across), torch.ones(3), atol=0.1, rtol=0)
    torch.testing.assert_close(z.mean(across), torch.zeros(3), atol=0.1, rtol=0)
    assert module.sample(2, seed=0).shape == (2, 1, *size)
    with pytest.raises(ValueError, match=r"the codec takes (sound|clips)"):
        module.codec.shape((1, 8, 8))
    with pytest.raises(ValueError, match="divisible by 4"):
        module.codec.shape((1, *(side + 1 for side in size)))
