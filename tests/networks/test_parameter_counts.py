"""Published parameter counts, exact, built without memory on the meta device."""

import pytest
import torch

from diffx.networks import RIN, DanceUNet, DiffWave, DiT, MousaiUNet, MPUNet, SongUNet, UNet

DIT = {  # without the table of positions, which is no parameter here
    "S/2": 32_865_056, "S/4": 32_920_448, "S/8": 33_142_016,
    "B/2": 130_315_808, "B/4": 130_426_496, "B/8": 130_869_248,
    "L/2": 457_840_672, "L/4": 457_988_224, "L/8": 458_578_432,
    "XL/2": 674_834_720, "XL/4": 675_000_704, "XL/8": 675_664_640,
}  # fmt: skip
RINS = {
    "cifar": 30_951_180, "imagenet_64_p8": 157_780_160, "imagenet_64_p4": 157_730_864,
    "rin_64": 267_186_736, "rin_128": 395_649_584, "rin_256": 395_928_256,
}  # fmt: skip
PUBLISHED = {
    "adm_64": (lambda: UNet.adm(64, out_channels=6), 295_904_454),
    "adm_64_edm": (lambda: UNet.adm(64), 295_899_267),
    "adm_128": (lambda: UNet.adm(128, out_channels=6), 421_529_606),
    "adm_256": (lambda: UNet.adm(256, out_channels=6), 553_838_086),
    "adm_256_unconditional": (lambda: UNet.adm(256, classes=0, out_channels=6), 552_814_086),
    "adm_512": (lambda: UNet.adm(512, out_channels=6), 558_997_638),
    "adm_upsampler": (lambda: UNet.adm_upsampler(out_channels=6), 311_795_910),
    "ddpmpp_32": (lambda: SongUNet.ddpmpp(32), 55_733_891),
    "ddpmpp_32_classes": (lambda: SongUNet.ddpmpp(32, classes=10), 55_735_299),
    "ncsnpp_32": (lambda: SongUNet.ncsnpp(32), 56_397_827),
    "ncsnpp_32_classes": (lambda: SongUNet.ncsnpp(32, classes=10), 56_400_643),
    "ddpmpp_64": (lambda: SongUNet.ddpmpp(64), 61_805_571),
    "ncsnpp_64": (lambda: SongUNet.ncsnpp(64), 62_761_091),
    # the published files hold 128 more, the head that estimates the loss
    "edm2_xs_pixels": (lambda: MPUNet.published("xs"), 124_710_949 - 128),
    "edm2_xs_latents": (lambda: MPUNet.published("xs", channels=4), 124_713_253 - 128),
    "edm2_s_pixels": (lambda: MPUNet.published("s"), 280_209_381 - 128),
    "edm2_s_latents": (lambda: MPUNet.published("s", channels=4), 280_212_837 - 128),
    "diffwave_vocoder": (lambda: DiffWave.vocoder(), 2_619_971),
    "diffwave_vocoder_large": (lambda: DiffWave.vocoder(128), 6_885_315),
    "diffwave_without_spectrogram": (lambda: DiffWave(), 2_308_737),
    "diffwave_unconditional": (lambda: DiffWave.unconditional(), 24_034_305),
    "dance_diffusion": (lambda: DanceUNet(), 221_389_322),
    "dance_diffusion_six_attention": (lambda: DanceUNet(attention=6), 234_009_098),
    "mousai": (lambda: MousaiUNet(), 217_437_436),
    **{f"dit_{name}": (lambda name=name: DiT.published(name), count) for name, count in DIT.items()},
    **{name: (lambda name=name: RIN.published(name), count) for name, count in RINS.items()},
}


@pytest.mark.parametrize(("make", "count"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_counts(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_published_heads():
    with torch.device("meta"):
        wide = UNet.adm(128)
        heads = {module.heads for module in wide.modules() if hasattr(module, "layer")}
        narrow = {m.out.in_features // m.heads for m in UNet.adm(64).modules() if hasattr(m, "layer")}
    assert heads == {4} and narrow == {64}


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet.adm(32),
        lambda: SongUNet.ddpmpp(48),
        lambda: MPUNet.published("tiny"),
        lambda: DiT.published("M/2"),
        lambda: DiT.published("S/3"),
    ],
)
def test_unpublished_sizes(make):
    with pytest.raises(ValueError, match=r"published (sizes|names) are"):
        make()
