"""The Efficient U-Net: where it works, what that saves, where it attends."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffx.networks import EfficientUNet, UNet
from diffx.networks.attention import SelfAttention
from diffx.recipes.build import build
from diffx.recipes.compose import compose

SHAPE = {"width": 64, "mults": (1, 2, 4), "blocks": (1, 2, 4)}


def weights(net):
    return sum(p.numel() for p in net.parameters())


def flops(net, side):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, side, side), torch.empty(1))
    return counter.get_total_flops()


def test_works_much_less_than_a_plain_u_net_of_as_many_weights():
    with torch.device("meta"):
        efficient, plain = EfficientUNet(3, **SHAPE), UNet(3, **SHAPE, resample="conv")
    assert weights(efficient) == pytest.approx(weights(plain), rel=0.02)
    assert flops(efficient, 64) < 0.35 * flops(plain, 64)


def test_only_the_stem_and_one_block_see_the_full_resolution():
    net, sides = EfficientUNet(3, width=8, mults=(1, 2), blocks=1, head_dim=8), {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out, name=name: sides.update({name: out.shape[-1]}))
    net(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    full = {name for name, side in sides.items() if side == 16}
    assert full == {"stem", "body.up.conv", "body.last.conv1", "body.last.conv2", "head"}
    assert {side for name, side in sides.items() if name.startswith("body.body.encoder.0")} == {8}
    assert {side for name, side in sides.items() if name.startswith("body.body.middle")} == {4}


@pytest.mark.parametrize(("levels", "places"), [((), 0), ((-1,), 2 + 3 + 1), ((0,), 1 + 2)])
def test_attends_on_the_named_levels_only(levels, places):
    with torch.device("meta"):
        net = EfficientUNet(3, width=8, mults=(1, 2), blocks=(1, 2), head_dim=8, attention_levels=levels)
    assert sum(isinstance(module, SelfAttention) for module in net.modules()) == places


def test_without_attention_a_window_is_worked_as_in_the_whole_picture():
    """What stands more than a receptive field away does not matter, but for the statistics of the normalisations, which are held here."""
    net = EfficientUNet(1, width=8, mults=(1,), blocks=1, attention_levels=())
    x = torch.randn(1, 1, 64, 64)
    far = x.clone()
    far[..., -4:] = far[..., -4:].flip(-1)
    with torch.no_grad():
        for module in net.modules():
            if type(module).__name__ == "Norm":
                module.forward = lambda x: x
        net.head.weight.normal_()
        a, b = net(x, torch.zeros(1)), net(far, torch.zeros(1))
    assert torch.equal(a[..., :24], b[..., :24]) and not torch.equal(a, b)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"no level attends to the tokens \['text'\]"):
        EfficientUNet(3, width=8, mults=(1,), blocks=1, attention_levels=(), tokens={"text": 4})
    with pytest.raises(ValueError, match="divisible by 4"):
        EfficientUNet(3, width=8, mults=(1, 1), blocks=1, head_dim=8)(torch.zeros(1, 3, 6, 6), torch.zeros(1))


@pytest.mark.parametrize(("experiment", "count"), [("base_64", 2_387_915_779), ("sr_256", 889_665_155), ("sr_1024", 814_057_091)])
def test_the_experiments_have_the_documented_sizes(experiment, count):
    module = compose(f"imagen/{experiment}", ["data.root=pictures", "module.text.path=t5"]).tree["module"]
    with torch.device("meta"):
        assert weights(build(module["denoiser"]["net"])) == count
