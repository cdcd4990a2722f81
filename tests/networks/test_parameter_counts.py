"""Published parameter counts, exact, built without memory on the meta device."""

import pytest
import torch

from diffx.networks import SongUNet, UNet

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


@pytest.mark.parametrize("make", [lambda: UNet.adm(32), lambda: SongUNet.ddpmpp(48)])
def test_unpublished_sizes(make):
    with pytest.raises(ValueError, match="published sizes are"):
        make()
