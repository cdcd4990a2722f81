"""U-Nets over video: what they share with their picture network, what frames may see of each other."""

import pytest
import torch
from network_list import NETWORKS

from diffx.conditions import Cond
from diffx.networks import SongUNet, UNet, VideoUNet, attention_control
from diffx.networks.attention import AttentionController
from diffx.networks.temporal import TemporalAttention, TemporalConv, relative_bucket
from diffx.recipes.build import build
from diffx.recipes.compose import compose

SMALL = {"width": 16, "mults": (1, 2), "blocks": 1}
FRAMES = 5


def awake(net):
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return net.eval()


def video(**options):
    """A video network of which every part shows, with convolution and attention over time on every level."""
    net = VideoUNet(UNet(3, **SMALL), heads=2, conv_levels=None, **options)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, TemporalConv):
                module.conv.weight.add_(0.1 * torch.randn_like(module.conv.weight))
    return awake(net)


def clips(batch=2, frames=FRAMES):
    return torch.randn(batch, 3, frames, 8, 8), torch.linspace(-1, 1, batch)


IMAGES = {
    "unet": lambda: UNet(3, **SMALL, classes=4, tokens={"text": 6}, maps={"low_res": 1}),
    "ddpmpp": lambda: SongUNet(3, **SMALL, classes=4, maps={"low_res": 1}),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())
def test_a_fresh_one_equals_its_picture_network_frame_by_frame(make):
    image = awake(make()).double()
    net = VideoUNet(image, conv_levels=None).double().eval()
    x, noise = (t.double() for t in clips())
    maps = torch.randn(2, 1, FRAMES, 8, 8)
    tokens = {"text": torch.randn(2, 3, 6)} if image.conditions.tokens else {}
    cond = Cond(label=torch.tensor([1, 3]), tokens=tokens)
    out = net(x, noise, Cond(label=cond.label, tokens=tokens, maps={"low_res": maps}))
    for t in range(FRAMES):
        alone = image(x[:, :, t], noise, Cond(label=cond.label, tokens=tokens, maps={"low_res": maps[:, :, t]}))
        torch.testing.assert_close(out[:, :, t], alone, atol=1e-12, rtol=0)


def test_a_trained_picture_network_keeps_its_weights_and_is_left_alone():
    image = awake(UNet(3, **SMALL))
    before = {name: value.clone() for name, value in image.state_dict().items()}
    net = VideoUNet(image)
    kept = net.image.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    assert {name.split(".over_time.")[1].split(".")[0] for name in kept if name not in before} == {"norm", "qkv", "bias", "out"}
    assert image.state_dict().keys() == before.keys()


@pytest.mark.parametrize("rows", [False, True], ids=["all alike", "by sample"])
def test_still_pictures_neither_see_nor_are_seen(rows):
    net = video()
    x, noise = clips()
    stills = torch.tensor([False, False, False, True, True])
    stills = torch.stack([stills, torch.ones(FRAMES, dtype=torch.bool)]) if rows else stills
    out = net(x, noise, stills=stills)
    for t in range(FRAMES):
        changed = x.clone()
        changed[:, :, t] += 1
        moved = (net(changed, noise, stills=stills) - out).abs().amax((1, 3, 4))  # (B, T)
        for row in range(2):
            alone = (stills[row] if rows else stills).clone()
            seen = torch.zeros(FRAMES, dtype=torch.bool)
            seen[t] = True
            if not alone[t]:
                seen |= ~alone
            assert torch.equal(moved[row] > 0, seen)
            assert (moved[row][~seen] == 0.0).all()


def test_a_clip_of_stills_is_its_frames_by_themselves():
    net = video()
    x, noise = clips()
    whole = net(x, noise, stills=torch.ones(FRAMES, dtype=torch.bool))
    for t in range(FRAMES):
        torch.testing.assert_close(whole[:, :, t], net(x[:, :, t : t + 1], noise)[:, :, 0], atol=1e-5, rtol=0)


def test_only_the_bias_tells_the_order_of_frames():
    net = awake(VideoUNet(UNet(3, **SMALL), heads=2))
    x, noise = clips()
    order = [3, 0, 4, 1, 2]
    assert (net(x[:, :, order], noise) - net(x, noise)[:, :, order]).abs().max() > 1e-3
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, TemporalAttention):
                module.bias.weight.zero_()
    torch.testing.assert_close(net(x[:, :, order], noise), net(x, noise)[:, :, order], atol=1e-5, rtol=0)


def test_distances_fall_into_buckets():
    far = torch.tensor([-31, -16, -9, -8, -7, -1, 0, 1, 7, 8, 9, 16, 31])
    assert relative_bucket(far).tolist() == [15, 12, 8, 8, 7, 1, 0, 17, 23, 24, 24, 28, 31]
    every = relative_bucket(torch.arange(-500, 501))
    assert every.min() == 0 and every.max() == 31 and relative_bucket(torch.tensor([500, 32])).tolist() == [31, 31]


def test_the_bias_belongs_to_the_key_ahead():
    layer = TemporalAttention(8, 2)
    with torch.no_grad():
        layer.bias.weight.copy_(torch.arange(64.0).view(32, 2))
    bias = layer.relative(4)
    assert bias.shape == (1, 2, 4, 4)
    assert bias[0, 0, 1, 3] == 2 * relative_bucket(torch.tensor(2))  # query 1, key 3: two frames ahead


@pytest.mark.parametrize(("channels", "heads"), [(32, 1), (64, 4)])
def test_parameters_of_a_layer_over_time(channels, heads):
    c = channels
    assert sum(p.numel() for p in TemporalAttention(c, heads).parameters()) == 2 * c + 3 * c**2 + 3 * c + c**2 + c + heads * 32
    assert sum(p.numel() for p in TemporalConv(c).parameters()) == 3 * c**2 + c


def test_a_convolution_over_time_equals_one_in_three_dimensions():
    from diffx.networks.layers import Clip, Context

    layer = TemporalConv(6)
    torch.nn.init.normal_(layer.conv.weight)
    x = torch.randn(2, 6, FRAMES, 4, 4)
    context = Context(torch.zeros(10, 1), torch.zeros(10), {}, None, None, Clip(FRAMES, None))
    rows = layer(x.transpose(1, 2).flatten(0, 1), context).unflatten(0, (2, FRAMES)).transpose(1, 2)
    wanted = torch.nn.functional.conv3d(x, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=0)


def test_attention_over_time_is_seen_by_controllers():
    class Watch(AttentionController):
        def __init__(self):
            self.seen = {}

        def probs(self, probs, site):
            self.seen[site.layer] = (site.kind, site.grid, tuple(probs.shape), len(site.noise))
            return probs

    net = video()
    x, noise = clips()
    plain = net(x, noise)
    with attention_control(Watch()) as watch:
        torch.testing.assert_close(net(x, noise), plain, atol=1e-5, rtol=0)
    over_time = {layer: seen for layer, seen in watch.seen.items() if seen[0] == "time"}
    assert over_time["image.body.encoder.0.0.over_time"] == ("time", (FRAMES,), (2 * 64, 2, FRAMES, FRAMES), 128)
    assert over_time["image.body.middle.0.over_time"] == ("time", (FRAMES,), (2 * 16, 2, FRAMES, FRAMES), 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": (), "conv_levels": ()}, "never meet"),
        ({"attention_levels": (8,)}, "counts the 2 levels"),
        ({"buckets": 6}, "divisible by 4"),
        ({"kernel": 2, "conv_levels": None}, "odd kernel"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        VideoUNet(UNet(3, **SMALL), **options)


def test_refuses_other_data():
    net = VideoUNet(UNet(3, **SMALL))
    x, noise = clips()
    with pytest.raises(ValueError, match="T, H, W"):
        net(x[:, :, 0], noise)
    with pytest.raises(ValueError, match="nearest valid size"):
        net(x[..., :7], noise)
    with pytest.raises(ValueError, match="stills must be bool"):
        net(x, noise, stills=torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="UNet or SongUNet"):
        VideoUNet(NETWORKS["dit"].make())


@pytest.mark.parametrize(("stage", "count"), [
    ("1_base", 5_955_085_571), ("2_frames", 1_573_862_915), ("3_size", 1_573_859_459), ("4_size", 1_580_583_811),
    ("5_frames", 861_018_083), ("6_frames", 707_154_611), ("7_size", 314_648_003),
])  # fmt: skip
def test_the_stages_of_the_large_cascade_have_the_documented_sizes(stage, count):
    tree = compose(f"imagen_video/{stage}", ["data.root=clips", "module.text.path=t5"]).tree
    with torch.device("meta"):
        assert sum(p.numel() for p in build(tree["module"]["denoiser"]["net"]).parameters()) == count
    frames, size = tree["data"]["frames"], tree["data"]["size"]
    assert tree["module"]["shape"] == [3, frames, *size]
