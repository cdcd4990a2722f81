"""`KL` against diffusers' own encode and decode, and what a codec promises at its border."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

import diffx
from diffx.codecs import KL, Codec, Identity, draw_latent, fingerprint, posterior
from diffx.denoiser import Denoiser
from diffx.networks import ConvAutoencoder, UNet
from diffx.recipes import recipe_of

SMALL = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4, "latent_channels": 3, "sample_size": 8,
}  # fmt: skip
MEAN, STD = torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1), torch.tensor([2.0, 1.0, 0.5]).view(3, 1, 1)
NORMALISATIONS = {  # configuration, and how the pipelines of diffusers write normalising and its inverse
    "scale": ({"scaling_factor": 0.18215}, lambda z: z * 0.18215, lambda z: z / 0.18215),
    "shift": ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, lambda z: (z - 0.1159) * 0.3611, lambda z: z / 0.3611 + 0.1159),
    "per_channel": (
        {"scaling_factor": 0.5, "latents_mean": MEAN.flatten().tolist(), "latents_std": STD.flatten().tolist()},
        lambda z: (z - MEAN) * 0.5 / STD,
        lambda z: z * STD / 0.5 + MEAN,
    ),
}


def vae(**options):
    torch.manual_seed(1)
    return AutoencoderKL(**{**SMALL, **options}).eval()


def pictures(n=2, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("config", "normalised", "inverse"), NORMALISATIONS.values(), ids=NORMALISATIONS.keys())
def test_encode_and_decode_equal_those_of_diffusers(config, normalised, inverse):
    """The conventions of their pipelines: a latent is (z - shift) * scale, with one number or one per channel."""
    theirs, x = vae(**config), pictures()
    with torch.no_grad():
        law = theirs.encode(x).latent_dist
        means, samples = (KL(theirs, latent=latent) for latent in ("mean", "sample"))
        torch.testing.assert_close(means.encode(x), normalised(law.mean), atol=1e-6, rtol=0)
        torch.manual_seed(3)
        expected = normalised(law.sample())
        torch.manual_seed(3)
        torch.testing.assert_close(samples.encode(x), expected, atol=1e-6, rtol=0)
        decoded = theirs.decode(inverse(expected)).sample
        torch.testing.assert_close(samples.decode(expected), decoded, atol=1e-6, rtol=0)
        assert decoded.std() > 0.01, "a decoder that says nothing would agree with anything"


def test_a_folder_and_the_module_are_one_codec(tmp_path):
    theirs = vae()
    theirs.save_pretrained(tmp_path / "alone")
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    codecs = [KL(theirs), KL(str(tmp_path / "alone")), KL(tmp_path / "pipeline")]
    assert len({fingerprint(codec) for codec in codecs}) == 1
    assert recipe_of(codecs[0]) == recipe_of(codecs[1]), "the recipe holds the configuration, not the folder"
    with torch.no_grad():
        torch.testing.assert_close(codecs[1].decode(torch.ones(1, 3, 4, 4)), codecs[0].decode(torch.ones(1, 3, 4, 4)))


def test_a_checkpoint_brings_its_codec_along(tmp_path):
    import lightning as L

    vae().save_pretrained(tmp_path / "vae")
    net = UNet(channels=3, width=8, mults=(1,), blocks=1)
    module = diffx.EDM(Denoiser(net), shape=(3, 16, 16), codec=KL(tmp_path / "vae"), sampler=diffx.Euler(2))
    run = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                    enable_checkpointing=False, max_steps=1, max_epochs=-1)  # fmt: skip
    run.fit(module, torch.utils.data.DataLoader([{"x": pictures()}] * 2, batch_size=None))
    run.save_checkpoint(tmp_path / "end.ckpt")
    for file in (tmp_path / "vae").iterdir():
        file.unlink()
    loaded = diffx.load(tmp_path / "end.ckpt", weights="raw")
    assert fingerprint(loaded.codec) == fingerprint(module.codec)
    assert torch.equal(loaded.sample(2, seed=1), module.sample(2, seed=1))
    assert not any(parameter.requires_grad for parameter in module.codec.parameters())


def test_a_codec_keeps_its_precision_whatever_the_rest_is_cast_to():
    x = pictures()
    expected = KL(vae(), latent="mean").encode(x)
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()):
        whole = cast(nn.ModuleDict({"codec": KL(vae(), latent="mean"), "net": nn.Linear(2, 2)}))
        assert whole["net"].weight.dtype != torch.float32
        assert torch.equal(whole["codec"].encode(x), expected), "weights that were rounded on the way would show here"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(KL(vae(), latent="mean").encode(x), expected)
    half = KL(vae(), latent="mean", dtype="bfloat16")
    assert half.vae.dtype == torch.bfloat16 and half.encode(x).dtype == half.decode(half.encode(x)).dtype == torch.float32
    assert 0 < (half.encode(x) - expected).abs().max() < 0.05


@pytest.mark.parametrize("codec", [KL(vae()), KL(ConvAutoencoder(3, 2, 8, (1, 2, 2))), Identity()], ids=["theirs", "ours", "none"])
def test_shapes_tell_what_encode_and_decode_give(codec):
    assert isinstance(codec, Codec)
    x = pictures(size=16)
    z = codec.encode(x)
    assert z.shape == (2, *codec.shape((3, 16, 16))) and codec.decode(z).shape == x.shape


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 17, 16), r"divisible by 2, got \(17, 16\); the nearest valid size is \(18, 16\)"),
        ((3, 1, 30), r"the nearest valid size is \(2, 30\)"),
        ((1, 16, 16), r"takes pictures \(3, H, W\), got \(1, 16, 16\)"),
        ((3, 16), "takes pictures"),
    ],
)
def test_sizes_that_do_not_fit_are_named(shape, words):
    codec = KL(vae())
    with pytest.raises(ValueError, match=words):
        codec.shape(shape)
    with pytest.raises(ValueError, match=words):
        codec.encode(torch.zeros(1, *shape))


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no autoencoder in .*config.json"):
        KL(tmp_path)
    with pytest.raises(TypeError, match=r"got torch.nn.*Linear"):
        KL(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="latent must be 'sample' or 'mean', got 'mode'"):
        KL(vae(), latent="mode")
    with pytest.raises(ValueError, match="dtype must be"):
        KL(vae(), dtype="half")


def test_the_fingerprint_follows_weights_and_normalisation_alone():
    codec = KL(vae(), latent="mean")
    same = fingerprint(codec)
    assert fingerprint(KL(vae())) == same, "how latents are drawn is no part of it"
    for change in (lambda c: c.vae.decoder.conv_out.bias.data.add_(1e-6), lambda c: c.scale.mul_(1.0001)):
        other = KL(vae())
        change(other)
        assert fingerprint(other) != same
    assert fingerprint(Identity()) == fingerprint(Identity()) != same


def test_adapted_latents_are_standard_per_channel():
    """Running averages at rate 1 are those of the batch, posterior noise included; at a small rate they approach them."""
    codec = KL(ConvAutoencoder(3, 2, width=8, mults=(1, 2)))
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(512, 2, 4, 4, generator=generator) * torch.tensor([3.0, 0.1]).view(2, 1, 1) + torch.tensor([-5.0, 7.0]).view(2, 1, 1)
    moments = torch.cat([mean, torch.full_like(mean, -2.0)], 1)
    noise = torch.randn(mean.shape, generator=generator)
    codec.adapt(moments, 1.0)
    at_once = codec.shift.clone(), codec.scale.clone()
    z = draw_latent(moments, noise, codec.shift, codec.scale)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), atol=0.03, rtol=0)
    codec.shift.zero_()
    codec.scale.fill_(1.0)
    for _ in range(400):
        codec.adapt(moments, 0.05)
    torch.testing.assert_close((codec.shift, codec.scale), at_once, atol=1e-4, rtol=1e-4)


def test_moments_are_clamped_like_those_of_diffusers():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = torch.cat([torch.zeros(1, 2, 2, 2), torch.tensor([-90.0, -3.0, 0.5, 90.0]).view(1, 1, 2, 2).expand(1, 2, 2, 2)], 1)
    mean, std = posterior(moments)
    theirs = DiagonalGaussianDistribution(moments)
    assert torch.equal(mean, theirs.mean) and torch.equal(std, theirs.std)
