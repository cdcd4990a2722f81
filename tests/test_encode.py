"""`encode`: what it writes is what the codec says, killed or not, and what would poison a cache is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

import diffx
from diffx import encode
from diffx.codecs import KL, fingerprint
from diffx.data import Arrays, Digits, Latents
from diffx.networks import ConvAutoencoder
from diffx.precomputed import Precomputed
from diffx.techniques import Autoencoder

TESTS = Path(__file__).parent
DATA = "data={_target_: fragile.Fragile}"


def codec(seed=0, channels=1):
    torch.manual_seed(seed)
    return KL(ConvAutoencoder(channels, 2, 8, (1, 2)))


def arrays(n=21, **options):
    """Pictures of 8 x 6 in RGB with labels and captions, six of them for validation."""
    random = np.random.default_rng(0)
    stored = {
        "images": random.integers(0, 256, (n, 8, 6, 3), dtype=np.uint8),
        "kind": np.arange(n) % 3,
        "words": np.array([f"no {i}" for i in range(n)]),
        "part": (np.arange(n) % 4 == 3).astype(int),
    }
    return Arrays(stored, 4, labels="kind", captions="words", split="part", classes=3, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def vae(tmp_path):
    torch.manual_seed(0)
    made = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                         norm_num_groups=4, in_channels=1, out_channels=1, latent_channels=2)  # fmt: skip
    made.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_it_stores_what_the_codec_says(tmp_path):
    kl, data = codec(channels=3), arrays()
    encode.encode(kl, data, tmp_path, flip=True, dtype="float32", rows=5, batch=2)
    for name, source in (("train", data.train), ("val", data.val)):
        stored = Precomputed(tmp_path / name, verify=True)
        everything = source.fetch(np.arange(len(source)), 0)
        x = diffx.data.normalise(everything["x"])
        rows = stored.rows(np.arange(len(source)))
        with torch.no_grad():
            torch.testing.assert_close(rows["code"], kl.moments(x), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows["mirrored"], kl.moments(x.flip(-1)), atol=1e-5, rtol=0)
        assert rows["label"].tolist() == everything["label"].tolist() and rows["text"] == everything["text"]
    about = stored.about
    assert about["codec"]["name"] == "diffx.codecs.KL" and about["codec"]["sha256"] == fingerprint(kl)
    assert about["codec"]["latent_shape"] == [2, 4, 3] and about["data"]["shape"] == [3, 8, 6] and about["data"]["classes"] == 3


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_rounds_and_no_more(tmp_path, dtype, error):
    kl, data = codec(channels=3), arrays()
    encode.encode(kl, data, tmp_path, dtype=dtype)
    with torch.no_grad():
        exact = kl.moments(diffx.data.normalise(data.val.fetch(np.arange(5), 0)["x"]))
    code = Precomputed(tmp_path / "val").rows(np.arange(5))["code"]
    assert code.dtype == getattr(torch, dtype)
    assert 0 < (code.float() - exact).abs().max() < error * exact.abs().max()


def test_killed_and_resumed_equals_uninterrupted_byte_for_byte(tmp_path, vae, monkeypatch, capsys):
    """1,500 digits in files of 400 and batches of 64; the ninth read after the two of the probe dies, in the second file."""
    monkeypatch.chdir(tmp_path)
    argv = [f"codec={vae}", DATA, "rows=400", "batch=64", "device=cpu"]
    assert encode.main([*argv, "out=whole"]) == 0
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "DIE_AFTER": "11"}
    killed = subprocess.run(
        [sys.executable, "-m", "diffx.encode", *argv, "out=cut"], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    before = contents(tmp_path / "cut")
    assert [name for name in before if "manifest" not in name] == ["train/00000.safetensors"]
    with pytest.raises(ValueError, match="holds 400 of 1500 rows"):
        Latents(tmp_path / "cut", 8).setup("fit")
    capsys.readouterr()
    assert encode.main([*argv, "out=cut"]) == 0
    assert "400 of 1500 items are there" in capsys.readouterr().out
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert encode.main([*argv, "out=cut"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_workers_change_nothing(tmp_path):
    for workers in (0, 2):
        encode.encode(codec(channels=3), arrays(num_workers=workers), tmp_path / str(workers), rows=5, batch=2)
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


CHANGES = {
    "codec": (lambda out: encode.encode(codec(1, 3), arrays(), out), r"codec.sha256 is '[0-9a-f]{64}' there and '[0-9a-f]{64}' here"),
    "dtype": (lambda out: encode.encode(codec(0, 3), arrays(), out, dtype="bfloat16"), "dtype is 'float16' there and 'bfloat16' here"),
    "flip": (lambda out: encode.encode(codec(0, 3), arrays(), out, flip=True), "flip is False there and True here"),
    "data": (
        lambda out: encode.encode(codec(0, 3), arrays(22), out),
        r"data.sha256 is '\w+' there and '\w+' here; count is 16",
    ),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_a_cache_of_anything_else_is_refused_with_both_sides(tmp_path, change, words):
    encode.encode(codec(0, 3), arrays(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds another set: about.{words}"):
        change(tmp_path)
    assert contents(tmp_path) == before


def test_random_augmentation_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"augmented at random \(Arrays .*give flip=true to this verb"):
        encode.encode(codec(0, 3), arrays(flip=True), tmp_path)
    assert not contents(tmp_path)


def test_a_size_that_the_codec_cannot_encode_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"divisible by 4, got \(8, 6\); the nearest valid size is \(8, 8\)"):
        encode.encode(KL(ConvAutoencoder(3, 2, 8, (1, 1, 1))), arrays(), tmp_path)


def test_numbers_that_overflow_are_found_and_placed(tmp_path):
    class Loud(nn.Module):
        channels, latent_channels, factor = 3, 1, 1

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def encode(self, x):
            return torch.where(x[:, :2] > 0.99, 1e5, x[:, :2])

        def decode(self, z):
            return z

    first = next(i for i, x in enumerate(diffx.data.normalise(arrays().train.x)) if x[:2].max() > 0.99)
    with pytest.raises(ValueError, match=rf"for item {first} that are not finite as float16; try dtype=float32"):
        encode.encode(KL(Loud()), arrays(), tmp_path / "half")
    encode.encode(KL(Loud()), arrays(), tmp_path / "single", dtype="float32")


def test_codes_without_moments_are_stored_as_they_are(tmp_path):
    class Levels:
        """Tokens: 17 grey levels."""

        def encode(self, x):
            return ((x[:, 0] + 1) * 8).round().long()

        def decode(self, z):
            return z[:, None] / 8 - 1

        def shape(self, data_shape):
            return tuple(data_shape[1:])

    data = Digits(8)
    encode.encode(Levels(), data, tmp_path)
    cache = Latents(tmp_path, 8)
    tokens = cache.train.fetch(np.arange(9), 3)["latent"]
    assert tokens.dtype == torch.int64 and cache.latent_shape == (8, 8)
    assert torch.equal(Levels().decode(tokens), data.train.x[:9]), "the digits have 17 levels, so nothing is lost"


def test_the_codec_of_a_checkpoint_and_of_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, max_steps=1, max_epochs=-1, limit_val_batches=0)  # fmt: skip
    module = Autoencoder(codec(), shape=(1, 8, 8))
    trainer.fit(module, Digits(8))
    trainer.save_checkpoint("ae.ckpt")
    Path("mine.yaml").write_text(
        "description: x\nmodule: {_target_: diffx.EDM, shape: [1, 8, 8],\n"
        "  codec: {_target_: diffx.load, path: ae.ckpt, weights: raw, part: codec},\n"
        "  denoiser: {_target_: diffx.Denoiser, net: {_target_: diffx.networks.UNet, channels: 2}}}\ndata: {_target_: diffx.data.Digits}\n"
    )
    assert encode.main(["checkpoint=ae.ckpt", "weights=raw", "data={_target_: diffx.data.Digits}", "out=one", "device=cpu"]) == 0
    assert encode.main(["experiment=mine.yaml", "out=two", "device=cpu"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    Latents("one", 8).check_codec(module.codec)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["out=x"], ["name the codec", "name the data"]),
        (["out=x", "codec=a", "checkpoint=b", "data={_target_: c}"], ["codec=..., not both"]),
        (["out=x", "codec=a", "data={root: c}"], ["data must be a mapping with _target_"]),
        (["out=x", "codec=a", "data={_target_: c}", "rows=0", "batch=-1"], ["rows must be at least 1, got 0", "batch must be at least 1"]),
        (["codec=a", "data={_target_: c}", "flipped=true"], ["did you mean 'flip'", "out=... must be given"]),
        (["out=x", "codec=a", "data={_target_: c}", "dtype=float8"], ["dtype must be"]),
        (["out=x", "data={_target_: diffx.data.Digits}", "codec=nowhere"], ["no autoencoder in nowhere"]),
        (["out=x", "experiment=digits/edm"], ["its module has no codec"]),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert encode.main(argv) in (1, 2)
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not list(tmp_path.iterdir())
