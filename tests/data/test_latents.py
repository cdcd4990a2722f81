"""`Latents`: draws from stored moments that are keyed by (seed, epoch, index), and the borders around them."""

import lightning as L
import numpy as np
import pytest
import torch

import diffx
from diffx import Cond, rng
from diffx.codecs import KL, Identity, draw_latent
from diffx.data import Digits, Latents
from diffx.denoiser import Denoiser
from diffx.encode import encode
from diffx.metrics.real import real_items
from diffx.networks import ConvAutoencoder, UNet


def codec(seed=0, **options):
    torch.manual_seed(seed)
    kl = KL(ConvAutoencoder(1, 2, 8, (1, 2)), **options)
    kl.adapt(kl.moments(torch.randn(64, 1, 8, 8)), 1.0)
    return kl


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The digits, encoded with their mirror images."""
    folder = tmp_path_factory.mktemp("cache")
    encode(codec(), Digits(64), folder, flip=True, dtype="float32", rows=512, keep=["label", "x"])
    return folder


def module(kl, shape=(1, 8, 8), **options):
    net = UNet(channels=2, classes=10, width=8, mults=(1,), blocks=1)
    return diffx.EDM(Denoiser(net), shape=shape, codec=kl, sampler=diffx.Euler(2), **options)


def trainer(folder, **options):
    return L.Trainer(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                     enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=2, val_check_interval=2,
                     check_val_every_n_epoch=None, max_epochs=-1, **options)  # fmt: skip


def test_means_equal_encoding_on_the_fly(root):
    data, kl = Latents(root, 8, latent="mean"), codec(latent="mean")
    rows = np.array([5, 700, 1499])
    batch = data.train.fetch(rows, 4)
    digits = Digits(8).train
    with torch.no_grad():
        torch.testing.assert_close(batch["latent"], kl.encode(digits.x[rows]), atol=1e-5, rtol=0)
    assert batch["label"].tolist() == digits.label[rows].tolist() and batch["index"].tolist() == rows.tolist()
    assert torch.equal(batch["x"], digits.x[rows])


def test_draws_are_functions_of_seed_epoch_and_index(root):
    data = Latents(root, 8, seed=3)
    whole = data.train.fetch(np.arange(40), 2)["latent"]
    apart = torch.cat([data.train.fetch(np.array(rows), 2)["latent"] for rows in ([7], [3, 39])])
    assert torch.equal(apart, whole[[7, 3, 39]])
    assert not torch.isclose(whole, data.train.fetch(np.arange(40), 1)["latent"]).any()
    assert not torch.isclose(whole, Latents(root, 8, seed=4).train.fetch(np.arange(40), 2)["latent"]).any()
    kl = codec()
    noise = torch.randn(2, 4, 4, generator=rng.generator(3, "latent", 2, 7))
    with torch.no_grad():
        expected = draw_latent(kl.moments(Digits(8).train.x[7:8]), noise, kl.shift, kl.scale)
    torch.testing.assert_close(whole[7:8], expected, atol=1e-5, rtol=0)


def test_draws_have_the_stored_mean_and_deviation(root):
    data = Latents(root, 8)
    drawn = torch.stack([data.train.fetch(np.array([11]), epoch)["latent"][0] for epoch in range(2000)])
    kl = codec()
    mean, logvar = data.train.stored.rows(np.array([11]))["code"][0].chunk(2)
    std = (logvar / 2).exp() * kl.scale
    assert ((drawn.mean(0) - (mean - kl.shift) * kl.scale) / std).abs().max() < 5 / 2000**0.5
    assert (drawn.std(0) / std - 1).abs().max() < 5 / 4000**0.5


def test_half_of_the_training_pictures_are_mirrored(root):
    plain, flipped = (Latents(root, 8, latent="mean", flip=flip) for flip in (False, True))
    rows = np.arange(1000)
    as_is, mixed = (data.train.fetch(rows, 0)["latent"] for data in (plain, flipped))
    same = (as_is == mixed).flatten(1).all(1)
    assert 420 < int(same.sum()) < 580
    with torch.no_grad():
        mirrored = codec(latent="mean").encode(Digits(8).train.x[rows].flip(-1))
    torch.testing.assert_close(mixed[~same], mirrored[~same], atol=1e-5, rtol=0)
    assert torch.equal(flipped.val.fetch(rows[:9], 0)["latent"], plain.val.fetch(rows[:9], 0)["latent"])
    assert not torch.equal(flipped.train.fetch(rows, 1)["latent"], mixed)


def test_it_says_what_it_holds(root):
    data = Latents(root, 8, verify=True)
    assert (data.shape, data.latent_shape, data.classes, data.class_names) == ((1, 8, 8), (2, 4, 4), 10, tuple("0123456789"))
    assert (len(data.train), len(data.val)) == (1500, 297)


def test_kept_pictures_can_be_compared_with_samples(root):
    train, held_out = real_items(Latents(root, 8))
    assert torch.equal(train["x"], Digits(8).train.x) and len(held_out["x"]) == 297


def test_a_run_from_the_cache_resumes_exactly(root, tmp_path):
    """Two workers after the resume, none before; the same weights as without an interruption."""

    def run(steps, workers=0, checkpoint=None):
        torch.manual_seed(1)
        model = module(codec())
        fit = trainer(tmp_path, max_steps=steps)
        fit.fit(model, Latents(root, 8, flip=True, num_workers=workers), ckpt_path=checkpoint)
        return fit, model

    whole = run(5)[1].state_dict()
    run(2)[0].save_checkpoint(tmp_path / "two.ckpt")
    resumed = run(5, 2, tmp_path / "two.ckpt")[1].state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not torch.equal(whole["denoiser.net.head.weight"], torch.load(tmp_path / "two.ckpt")["state_dict"]["denoiser.net.head.weight"])
    assert run(1)[1].sample(2, Cond(label=torch.arange(2))).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            lambda: codec(1),
            r"made by diffx.codecs.KL [0-9a-f]{12}, but the module's codec is diffx.codecs.KL [0-9a-f]{12}; give",
        ),
        (lambda: None, r"made by diffx.codecs.KL [0-9a-f]{12}, but the module's codec is diffx.codecs.Identity [0-9a-f]{12}"),
    ],
)
def test_latents_of_another_codec_are_refused_with_both_named(root, tmp_path, other, words):
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, max_steps=1).fit(module(other()), Latents(root, 8))


def test_the_module_must_have_the_shape_of_the_pictures(root, tmp_path):
    with pytest.raises(ValueError, match=r"module.shape is \(1, 16, 16\), but the data gives samples of shape \(1, 8, 8\)"):
        trainer(tmp_path, max_steps=1).fit(module(codec(), shape=(1, 16, 16)), Latents(root, 8))


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest.json in .*train"):
        Latents(tmp_path, 8).setup("fit")
    encode(codec(), Digits(64), tmp_path)
    with pytest.raises(ValueError, match=r"flip = true, but .* holds no mirrored pictures; encode with flip=true"):
        Latents(tmp_path, 8, flip=True).setup("fit")
    with pytest.raises(ValueError, match="latent must be 'sample' or 'mean', got 'median'"):
        Latents(tmp_path, 8, latent="median").setup("fit")


def test_codes_without_moments_pass_unchanged(tmp_path):
    encode(Identity(), Digits(64), tmp_path, dtype="float32")
    data = Latents(tmp_path, 8)
    assert torch.equal(data.train.fetch(np.arange(5), 0)["latent"], Digits(8).train.x[:5])
