"""EDM2's network: what its layers promise, and the whole beside an independent one that reads the published names."""

import math

import pytest
import torch
from torch.nn import functional as F

from diffx.conditions import Cond
from diffx.interop import load_unet, read_unet
from diffx.networks import MPUNet, checkpoint_activations
from diffx.networks.mp_unet import MPLayer, mp_cat, mp_silu, mp_sum

SMALL = {"width": 16, "mults": (1, 2), "blocks": 1, "attention_levels": (-1,), "head_dim": 8, "classes": 3}


def awake(**options):
    net = MPUNet(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return net


def test_parts_keep_unit_variance():
    torch.manual_seed(0)
    a, b = torch.randn(64, 24, 8, 8), torch.randn(64, 48, 8, 8)
    assert mp_silu(a).square().mean().sqrt().item() == pytest.approx(1, abs=0.01)
    for share in (0.1, 0.3, 0.5):
        assert mp_sum(a, torch.randn_like(a), share).std().item() == pytest.approx(1, abs=0.01)
    whole = mp_cat(a, b)
    assert whole.square().mean().item() == pytest.approx(1, abs=0.01)
    assert whole[:, :24].square().sum().item() == pytest.approx(whole[:, 24:].square().sum().item(), rel=0.01)
    for layer, x in ((MPLayer(24, 40, 3), a), (MPLayer(24, 40), a.movedim(1, -1))):
        assert layer.eval()(x)[..., 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.06)


def test_a_layers_output_does_not_depend_on_the_size_of_its_weights():
    layer, x = MPLayer(5, 7).eval(), torch.randn(4, 5)
    plain = layer(x)
    layer.weight.data *= 30
    torch.testing.assert_close(layer(x), plain, atol=1e-3, rtol=1e-3)  # up to the small number that divisions are guarded by
    layer(x).square().sum().backward()
    along = (layer.weight.grad * layer.weight).sum(1)
    assert along.abs().max() <= 1e-3 * layer.weight.grad.norm(dim=1).max() * layer.weight.norm(dim=1).max()


def test_training_brings_weights_to_unit_magnitude_once_per_change():
    layer, x = MPLayer(5, 7), torch.randn(4, 5)
    layer.weight.data *= 30
    layer.eval()(x)
    assert layer.weight.square().mean() > 100
    layer.train()(x)
    torch.testing.assert_close(layer.weight.square().mean(1).sqrt(), torch.ones(7), atol=1e-3, rtol=0)
    first = layer.weight.clone()
    layer(x)
    assert torch.equal(layer.weight, first)  # the same, whether a batch comes whole or in parts, or is computed twice
    with torch.no_grad():
        layer.weight += 1
    layer(x)
    assert not torch.equal(layer.weight, first)


def test_activations_computed_twice_change_nothing():
    torch.manual_seed(0)
    plain = awake(dropout=0.2).train()
    twice = MPUNet(**{**SMALL, "dropout": 0.2}).train()
    twice.load_state_dict(plain.state_dict())
    assert checkpoint_activations(twice) > 5
    x, noise, cond = torch.randn(2, 3, 8, 8), torch.randn(2), Cond(label=torch.tensor([0, 2]))
    found = []
    for net in (plain, twice):
        torch.manual_seed(1)
        net(x, noise, cond).square().mean().backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# The published layout --------------------------------------------------------------------------------------------------------------------


def names(size=8, channels=3, width=16, mults=(1, 2), blocks=1, attention=(4,), classes=3):
    """Names and shapes by the published rules."""
    wide, shapes = [width * mult for mult in mults], {}
    emb, cout = max(wide), width

    def block(name, cin, cout, encoder, attends):
        shapes[f"{name}.emb_gain"] = ()
        shapes[f"{name}.conv_res0.weight"] = (cout, cout if encoder else cin, 3, 3)
        shapes[f"{name}.emb_linear.weight"] = (cout, emb)
        shapes[f"{name}.conv_res1.weight"] = (cout, cout, 3, 3)
        if cin != cout:
            shapes[f"{name}.conv_skip.weight"] = (cout, cin, 1, 1)
        if attends:
            shapes[f"{name}.attn_qkv.weight"] = (3 * cout, cout, 1, 1)
            shapes[f"{name}.attn_proj.weight"] = (cout, cout, 1, 1)

    for name, count in (("emb_fourier.freqs", width), ("emb_fourier.phases", width)):
        shapes[name] = (count,)
    shapes |= {"emb_noise.weight": (emb, width), "emb_label.weight": (emb, classes), "out_gain": ()}
    skips = []
    for level, target in enumerate(wide):
        side = size >> level
        if level == 0:
            shapes[f"enc.{side}x{side}_conv.weight"] = (target, channels + 1, 3, 3)
        else:
            block(f"enc.{side}x{side}_down", cout, cout, True, False)
        skips.append(cout)
        for i in range(blocks):
            block(f"enc.{side}x{side}_block{i}", cout, target, True, side in attention)
            cout = target
            skips.append(cout)
    for level, target in reversed(list(enumerate(wide))):
        side = size >> level
        if level == len(wide) - 1:
            block(f"dec.{side}x{side}_in0", cout, cout, False, True)
            block(f"dec.{side}x{side}_in1", cout, cout, False, False)
        else:
            block(f"dec.{side}x{side}_up", cout, cout, False, False)
        for i in range(blocks + 1):
            block(f"dec.{side}x{side}_block{i}", cout + skips.pop(), target, False, side in attention)
            cout = target
    shapes["out_conv.weight"] = (channels, cout, 3, 3)
    return shapes


def published(**options):
    """Random weights under the published names, as they lie in the preconditioned network, with the head that estimates the loss."""
    torch.manual_seed(0)
    state = {f"unet.{name}": torch.randn(shape) for name, shape in names(**options).items()}
    return {
        **state,
        "logvar_fourier.freqs": torch.randn(128),
        "logvar_fourier.phases": torch.rand(128),
        "logvar_linear.weight": torch.randn(1, 128),
    }


class Reference:
    """The network as the paper's figure 21 draws it, straight from published names."""

    def __init__(self, state, size=8, levels=2, blocks=1, head_dim=8):
        self.state = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
        self.size, self.levels, self.blocks, self.head_dim = size, levels, blocks, head_dim

    @staticmethod
    def normal(x, dims):
        count = math.prod(x.shape[d] for d in dims)
        return x / (1e-4 + (x.square().sum(dims, keepdim=True) / count).sqrt())

    def layer(self, name, x, gain=1.0):
        w = self.state[f"{name}.weight"]
        w = self.normal(w, tuple(range(1, w.ndim))) * gain / w[0].numel() ** 0.5
        return F.conv2d(x, w, padding="same") if w.ndim == 4 else x @ w.T

    def block(self, name, x, emb):
        encoder = name.startswith("enc")
        skip = (lambda x: self.layer(f"{name}.conv_skip", x)) if f"{name}.conv_skip.weight" in self.state else (lambda x: x)
        if encoder:
            x = self.normal(skip(x), (1,))
        y = self.layer(f"{name}.conv_res0", F.silu(x) / 0.596)
        c = 1 + self.layer(f"{name}.emb_linear", emb, self.state[f"{name}.emb_gain"])
        y = self.layer(f"{name}.conv_res1", F.silu(y * c[:, :, None, None]) / 0.596)
        x = (0.7 * (x if encoder else skip(x)) + 0.3 * y) / 0.58**0.5
        if f"{name}.attn_qkv.weight" in self.state:
            b, c, h, w = x.shape
            rows = self.layer(f"{name}.attn_qkv", x).reshape(b, c // self.head_dim, self.head_dim, 3, h * w)
            q, k, v = (self.normal(rows[:, :, :, i], (2,)) for i in range(3))
            weights = torch.softmax(q.transpose(2, 3) @ k / self.head_dim**0.5, -1)
            y = (v @ weights.transpose(2, 3)).reshape(b, c, h, w)
            x = (0.7 * x + 0.3 * self.layer(f"{name}.attn_proj", y)) / 0.58**0.5
        return x.clamp(-256, 256)

    def __call__(self, x, noise, label):
        emb = 2**0.5 * torch.cos(noise[:, None] * self.state["emb_fourier.freqs"] + self.state["emb_fourier.phases"])
        classes = self.state["emb_label.weight"].shape[1]
        told = self.layer("emb_label", F.one_hot(label, classes).float() * classes**0.5)
        emb = F.silu((0.5 * self.layer("emb_noise", emb) + 0.5 * told) / 0.5**0.5) / 0.596
        x = self.layer(f"enc.{self.size}x{self.size}_conv", F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0))
        skips = [x]
        for level in range(self.levels):
            side = f"{self.size >> level}x{self.size >> level}"
            if level:
                x = self.block(f"enc.{side}_down", F.avg_pool2d(x, 2), emb)
                skips.append(x)
            for i in range(self.blocks):
                x = self.block(f"enc.{side}_block{i}", x, emb)
                skips.append(x)
        for level in reversed(range(self.levels)):
            side = f"{self.size >> level}x{self.size >> level}"
            if level == self.levels - 1:
                x = self.block(f"dec.{side}_in1", self.block(f"dec.{side}_in0", x, emb), emb)
            else:
                x = self.block(f"dec.{side}_up", x.repeat_interleave(2, 2).repeat_interleave(2, 3), emb)
            for i in range(self.blocks + 1):
                partner = skips.pop()
                a, b = x.shape[1], partner.shape[1]
                wide = ((a + b) / 0.5) ** 0.5 * 0.5
                x = self.block(f"dec.{side}_block{i}", torch.cat([wide / a**0.5 * x, wide / b**0.5 * partner], 1), emb)
        return self.layer("out_conv", x, self.state["out_gain"])


@pytest.mark.parametrize("blocks", [1, 2])
def test_published_weights_give_what_an_independent_network_gives(blocks):
    state = published(blocks=blocks)
    net = read_unet(state, head_dim=8).eval()
    x, noise, label = torch.randn(3, 3, 8, 8), torch.randn(3), torch.tensor([0, 1, 2])
    wanted = Reference(state, blocks=blocks)(x, noise, label)
    assert wanted.std() > 0.1
    torch.testing.assert_close(net(x, noise, Cond(label=label)), wanted, atol=2e-5, rtol=1e-4)


def test_sizes_are_read_off_and_other_networks_refused():
    with torch.device("meta"):
        shapes = names(64, 4, 128, (1, 2, 3, 4), 3, (16, 8), 1000)
        count = sum(math.prod(shape) for name, shape in shapes.items() if "fourier" not in name)
        assert count == sum(p.numel() for p in MPUNet.published("xs", channels=4).parameters())
    state = published()
    with pytest.raises(ValueError, match=r"not known to the network: enc\.8x8_block1\.emb_gain"):
        load_unet(MPUNet(**SMALL), published(blocks=2))
    with pytest.raises(ValueError, match=r"missing: enc\.8x8_block0\.emb_gain"):
        read_unet({name: t for name, t in state.items() if not name.endswith("8x8_block0.emb_gain") or "enc" not in name}, head_dim=8)
    from diffx.networks import UNet

    with pytest.raises(ValueError, match="weights of the EDM2 U-Net belong into MPUNet, got UNet"):
        load_unet(UNet(3, width=16, mults=(1, 2), blocks=1), state)
    with pytest.raises(ValueError, match="head_dim = 64 must divide the channels of levels with attention, which are 16"):
        MPUNet(3, width=16, mults=(1, 2))
