"""Paella's network: its size, its parts against their formulas, and that what is hidden is not there."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from diffx import Cond
from diffx.networks import AttentionController, TokenConvNeXt, attention_control
from diffx.networks.token_convnext import ConvNeXtBlock


def small(**options):
    torch.manual_seed(0)
    net = TokenConvNeXt(
        7, features=8, patch=2, widths=(16, 24), blocks=(1, 2), heads=(0, 2), width=12, waves=8, dropout=0.0,
        **{"classes": 3, "vectors": {"style": 5}, "tokens": {"text": 6}, **options},
    )  # fmt: skip
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net.eval()


def told(**hidden):
    torch.manual_seed(1)
    return Cond(label=torch.tensor([0, 2]), vectors={"style": torch.randn(2, 5)}, tokens={"text": torch.randn(2, 4, 6)}, **hidden)


IDS, SHARE = torch.randint(7, (2, 8, 12), generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.9])


@pytest.mark.parametrize(("byt5", "count"), [(1536, 1_007_302_016), (2560, 1_008_350_592)])
def test_the_published_network_has_its_size(byt5, count):
    with torch.device("meta"):
        net = TokenConvNeXt.published(tokens={"byt5": byt5})
    assert sum(p.numel() for p in net.parameters()) == count


def test_a_fresh_network_does_not_hear_the_share_and_has_the_table_as_its_head():
    torch.manual_seed(0)
    net = TokenConvNeXt(7, features=8, widths=(16,), blocks=(1,), heads=(0,)).eval()
    assert torch.equal(net.head.weight, net.table.weight) and net(IDS, SHARE).shape == (2, 8, 12, 7)
    assert torch.equal(net(IDS, SHARE), net(IDS, 1 - SHARE))


def test_a_block_is_its_formula():
    torch.manual_seed(0)
    block = ConvNeXtBlock(4, 4, 3, 0, 6, 0.0, "b")
    block.gamma.data.normal_()
    block.beta.data.normal_()
    x, skip, emb = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.randn(2, 6)
    h = F.conv2d(torch.cat([x, skip], 1), block.depthwise.weight, block.depthwise.bias, padding=1, groups=4)
    h = h.permute(0, 2, 3, 1)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    h = F.gelu(h @ block.widen.weight.T + block.widen.bias)
    norm = h.pow(2).sum(dim=(1, 2), keepdim=True) ** 0.5
    h = block.gamma * (h * norm / norm.mean(-1, keepdim=True)) + block.beta + h
    y = x + (h @ block.narrow.weight.T + block.narrow.bias).permute(0, 3, 1, 2)
    a, b = (emb @ block.modulation.weight.T + block.modulation.bias)[:, :, None, None].chunk(2, 1)
    got = block(x, type("Context", (), {"emb": emb})(), skip)
    torch.testing.assert_close(got, y * (1 + a) + b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["label", "style", "text"])
def test_what_is_hidden_is_not_there(name):
    net, cond = small(), told()
    without = Cond(
        label=None if name == "label" else cond.label,
        vectors={k: v for k, v in cond.vectors.items() if k != name},
        tokens={k: v for k, v in cond.tokens.items() if k != name},
    )
    hidden = net(IDS, SHARE, replace(cond, keep={name: torch.tensor([False, True])}))
    full, absent = net(IDS, SHARE, cond), net(IDS, SHARE, without)
    torch.testing.assert_close(hidden[0], absent[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden[1], full[1], atol=1e-5, rtol=1e-4)
    assert (full[0] - absent[0]).abs().max() > 1e-3


def test_padding_and_the_null_label_do_not_show():
    net, cond = small(), told()
    longer = F.pad(cond.tokens["text"], (0, 0, 0, 3), value=9.0)
    padded = replace(cond, tokens={"text": longer}, masks={"text": torch.arange(7).expand(2, 7) < 4})
    torch.testing.assert_close(net(IDS, SHARE, padded), net(IDS, SHARE, cond), atol=1e-5, rtol=1e-4)
    nobody = net(IDS, SHARE, Cond(label=torch.full((2,), 3)))
    torch.testing.assert_close(nobody, net(IDS, SHARE), atol=1e-5, rtol=1e-4)


def test_a_controller_sees_map_and_conditions_in_one_sequence():
    sites = []

    class Seen(AttentionController):
        def probs(self, probs, site):
            sites.append(site)
            assert probs.shape[-1] == 2 * 3 + 1 + 4 + 4 and torch.allclose(probs.sum(-1), torch.ones(()))
            return probs

    net, cond = small(), told()
    with attention_control(Seen()):
        watched = net(IDS, SHARE, cond)
    assert [site.layer for site in sites] == [f"{way}.1.{j}.attention" for way in ("encoder", "decoder") for j in (0, 1)]
    assert list(sites[0].key_slices) == ["grid", "label", "style", "text"] and sites[0].kind == "joint"
    torch.testing.assert_close(watched, net(IDS, SHARE, cond), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(IDS[:, :6], SHARE), "sides that 4 divides"),
        (lambda: small()(IDS + 7, SHARE), "codes|codebook"),
        (lambda: small(classes=0)(IDS, SHARE, told()), "takes no label"),
        (lambda: TokenConvNeXt(7, widths=(16,), blocks=(1, 1), heads=(0,)), "same levels"),
        (lambda: TokenConvNeXt(7, widths=(16,), blocks=(1,), heads=(3,)), "divide their width"),
        (lambda: TokenConvNeXt(7, widths=(16,), blocks=(1,), heads=(0,), classes=3), r"no level attends to \['label'\]"),
    ],
)
def test_misuse_is_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()
