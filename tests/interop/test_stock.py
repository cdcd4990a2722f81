"""Stock classes: the folder needs no diffx, and draws the same pictures as closely as diffusers' own start allows."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from technique_list import dit, edm
from technique_list import unet as small_unet

from diffx import EDM, Denoiser, export
from diffx.codecs import KL
from diffx.denoiser import EpsPrecond, Timesteps, VPrecond, X0Precond
from diffx.interop import read_unet, stock_of, write_stock
from diffx.networks import ConvAutoencoder, UNet
from diffx.samplers import Euler, Heun
from diffx.schedules import DDPM
from diffx.techniques import Autoencoder

TABLE = DDPM()


def drawn(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def discrete(precond=EpsPrecond, sampler=None, **options):
    net = UNet(channels=1, width=128, mults=(1, 1), blocks=1, **options)
    return drawn(EDM(Denoiser(net, precond(Timesteps(TABLE))), shape=(1, 8, 8), schedule=TABLE, sampler=sampler or Euler(5, TABLE)))


@pytest.mark.parametrize(
    ("precond", "options"), [(X0Precond, {"scale_shift": False, "resample": "conv"}), (VPrecond, {"heads": 1})], ids=["x0", "v"]
)
def test_ddim_draws_the_same_pictures(precond, options, tmp_path):
    from diffusers import DDIMPipeline, DiffusionPipeline

    module = discrete(precond, **options)
    pipe = DiffusionPipeline.from_pretrained(write_stock(module, tmp_path / "folder"))
    assert type(pipe) is DDIMPipeline
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(7 + i) for i in range(2)]
    theirs = pipe(batch_size=2, generator=generators, num_inference_steps=5, output_type="np").images
    ours = module.sample(2, seed=7)
    assert (torch.from_numpy(theirs).permute(0, 3, 1, 2) * 2 - 1 - ours).abs().max() <= 1e-4
    assert ours.std() > 0.1
    assert (ours.abs() < 1).float().mean() > 0.5, "pictures to compare, not saturated ones"


def test_the_network_itself_agrees_to_rounding(tmp_path):
    module = discrete()
    net = module.denoiser.net
    model = stock_of(module).unet
    x, steps = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert (model(x, steps).sample - net(x, steps.float())).abs().max() <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), read_unet(model).state_dict().values(), strict=True))


@pytest.mark.slow  # diffusers is imported in a new process
def test_a_stock_folder_needs_no_diffx(tmp_path):
    folder = write_stock(discrete(), tmp_path / "folder")
    read = f"from diffusers import DDIMPipeline\nprint(DDIMPipeline.from_pretrained({str(folder)!r}).unet.config.block_out_channels)"
    script = f"import sys; sys.modules['diffx'] = None\n{read}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "128, 128" in done.stdout, done.stderr


def test_an_autoencoder_of_diffusers_goes_out_with_its_normalisation(tmp_path):
    from diffusers import AutoencoderKL

    options = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=2, norm_num_groups=4, **options)
    module = Autoencoder(KL(vae, latent="mean"), shape=(1, 8, 8)).eval()
    module.codec.shift.copy_(torch.tensor([0.3, -0.2]).view(2, 1, 1))
    module.codec.scale.copy_(torch.tensor([2.0, 0.5]).view(2, 1, 1))
    again = KL(write_stock(module, tmp_path / "folder"), latent="mean")
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(again.encode(x), module.codec.encode(x), atol=1e-6)
        z = again.encode(x)
        assert torch.allclose(again.decode(z), module.codec.decode(z), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (edm, "which needs a network without conditions; EpsPrecond, VPrecond or X0Precond with Timesteps; Euler on the table"),
        (lambda: dit(), "which needs a UNet; a network without conditions"),
        (lambda: discrete(sampler=Heun(5, TABLE)), "which needs Euler on the table of those timesteps"),
        (lambda: discrete(sampler=Euler(7, TABLE)), "steps that divide the table"),
        (lambda: discrete(skip_scale=0.5), r"no UNet2DModel of diffusers computes this UNet: skip_scale = 0\.5"),
        (
            lambda: EDM(Denoiser(small_unet(0), EpsPrecond(Timesteps(TABLE))), shape=(1, 8, 8), sampler=Euler(5, TABLE)),
            r"normalisation in \[4, 8, 12, 16\] groups|normalisation in \[4",
        ),
        (
            lambda: Autoencoder(KL(ConvAutoencoder(1, 2, 8, (1, 2))), shape=(1, 8, 8)),
            "is no AutoencoderKL of diffusers; there is to=safetensors",
        ),
    ],
)
def test_what_has_no_stock_class_is_told_why(make, reason):
    with pytest.raises(ValueError, match=reason):
        stock_of(make())


def test_the_verb_writes_a_stock_folder(tmp_path, capsys):
    module = discrete()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "model.ckpt")
    out = tmp_path / "out"
    assert export.main([f"checkpoint={tmp_path / 'model.ckpt'}", "to=stock", f"out={out}"]) == 0
    card = (out / "README.md").read_text()
    assert "pipe = DiffusionPipeline.from_pretrained(FOLDER)\n" in card
    assert "num_inference_steps=5" in card
    assert "sha256" not in card
    with pytest.raises(FileExistsError, match="exists already"):
        write_stock(module, out)
