"""MaskGIT: what its loss sees, what its guidance is, sizes as published, and clear answers to what cannot be meant."""

import pytest
import torch
from technique_list import labels, masked_tokens, pictures

from diffx import Cond, rng
from diffx.guidance import Rising
from diffx.masking import ParallelDecoding
from diffx.networks import AttentionController, TokenTransformer, attention_control
from diffx.techniques import MaskedTokens
from diffx.tokenizers import PixelLevels


class Table(torch.nn.Module):
    """Logits that are a table: what the loss sees of them shows in its gradient."""

    codes, mask = 5, 5

    def __init__(self, n=6):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(n, 8, 8, 5))

    def forward(self, ids, cond):
        self.hidden = ids == self.mask
        return self.table


def test_only_hidden_tokens_count():
    module = MaskedTokens(Table(), codec=PixelLevels(5), shape=(1, 8, 8), drop=0.0)
    module.loss(pictures(6), u=torch.full((6,), 0.5))["loss"].sum().backward()
    seen = module.net.table.grad.abs().sum(-1) > 0
    assert torch.equal(seen, module.net.hidden) and (seen.flatten(1).sum(1) == 46).all()  # ceil(64 cos(pi / 4))


def test_the_loss_is_the_smoothed_cross_entropy_of_each_sample():
    module = MaskedTokens(Table(), codec=PixelLevels(5), shape=(1, 8, 8), smoothing=0.1)
    parts, net = module.loss(pictures(6)), module.net
    logp, ids = net.table.log_softmax(-1), module.codec.encode(pictures(6)["x"])
    entropy = -(0.9 * logp.gather(-1, ids[..., None])[..., 0] + 0.1 * logp.mean(-1))
    mean = torch.stack([entropy[i][net.hidden[i]].mean() for i in range(6)])
    torch.testing.assert_close(parts["loss"], mean)


def test_guidance_mixes_logits_and_ends_in_both_branches():
    torch.manual_seed(0)
    module = masked_tokens().eval()
    ids = torch.full((3, 8, 8), module.mask)
    told, untold = module.net(ids, labels(3)), module.net(ids)
    torch.testing.assert_close(module.logits(labels(3), 3.0)(ids), untold + 3 * (told - untold))
    torch.testing.assert_close(module.logits(labels(3), 0.0)(ids), untold)
    torch.testing.assert_close(module.net(ids, Cond(label=torch.full((3,), 4))), untold)  # the null label


def test_the_last_picture_of_the_progress_is_the_sample():
    module = masked_tokens()
    *_, last = module.progress(3, labels(3), seed=4)
    assert torch.equal(last, module.sample(3, labels(3), seed=4))


@pytest.mark.parametrize(("name", "count"), [("maskgit_256", 172_457_193)])
def test_published_sizes(name, count):
    with torch.device("meta"):
        net = TokenTransformer.published(name)
    assert sum(p.numel() for p in net.parameters()) == count


def test_levels_lose_nothing_of_digits():
    x = torch.randint(0, 17, (4, 1, 8, 8)) / 8 - 1.0
    levels = PixelLevels(17)
    assert torch.equal(levels.decode(levels.encode(x)), x) and levels.encode(x).unique().max() == 16


def test_bad_input_is_answered():
    module = masked_tokens()
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 5\), got 6"):
        module.loss({"latent": torch.full((2, 8, 8), 6)})
    with pytest.raises(ValueError, match="ids must be integers"):
        module.loss({"latent": torch.zeros(2, 8, 8)})
    with pytest.raises(ValueError, match=r"ids must be \(B, 8, 8\)"):
        module.net(torch.zeros(2, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="make them equal"):
        MaskedTokens(module.net, codec=PixelLevels(6), shape=(1, 8, 8))
    inside = Table()
    inside.mask = 3
    with pytest.raises(ValueError, match="outside the codebook"):
        MaskedTokens(inside, codec=PixelLevels(5), shape=(1, 8, 8))
    with pytest.raises(ValueError, match="whole number of steps, at least 1"):
        module.sample(1, sampler=ParallelDecoding(0))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        PixelLevels(1)
    with pytest.raises(ValueError, match="one channel"):
        PixelLevels(5).encode(torch.zeros(1, 3, 8, 8))


def test_rng_is_keyed_per_sample():
    module = masked_tokens()
    walk = ParallelDecoding(4)
    ids = torch.full((4, 8, 8), module.mask)
    with module.drawing():
        whole = walk(module.logits(labels(4)), ids, module.mask, rng.sample_generators(3, 4))
        alone = walk(module.logits(labels(4).rows(slice(2, 3))), ids[:1], module.mask, rng.sample_generators(5, 1))
    assert torch.equal(whole[2:3], alone)


def test_an_edit_keeps_what_is_not_masked():
    module, x = masked_tokens(), (pictures(4)["x"] * 2).round() / 2
    mask = torch.zeros(4, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    new = module.edit(x, mask, labels(4), seed=3)
    assert torch.equal(new[mask.expand_as(new) == 0], x[mask.expand_as(x) == 0]) and not torch.equal(new, x)
    assert torch.equal(module.edit(x, torch.zeros_like(mask), labels(4)), x)
    alone = module.edit(x[2:3], mask[2:3], labels(4).rows(slice(2, 3)), seed=5)
    torch.testing.assert_close(alone[0], new[2])


def test_an_edit_of_everything_is_a_sample():
    module, x = masked_tokens(), pictures(3)["x"]
    new = module.edit(x, torch.ones(3, 1, 8, 8), labels(3), seed=4)
    torch.testing.assert_close(new, module.sample(3, labels(3), seed=4))


def test_the_ring_is_found_anew_but_does_not_show():
    module, x, seen = masked_tokens(), pictures(1)["x"], []
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4, 4] = 1
    module.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for ring, count in ((0, 1), (1, 9), (2, 25)):
        seen.clear()
        new = module.edit(x, mask, labels(1), ring=ring)
        assert (seen[0] == module.mask).sum() == count and (new != x).sum() <= 1


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 4, 4), torch.ones(2, 8, 8), torch.full((2, 1, 8, 8), 2.0)])
def test_masks_that_do_not_fit_are_refused(mask):
    with pytest.raises(ValueError, match=r"mask must be \(B, 1, H, W\) = \(2, 1, 8, 8\) in \[0, 1\], 1 = regenerate"):
        masked_tokens().edit(pictures(2)["x"], mask)


def told(n=3):
    return Cond(tokens={"words": torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(n))})


def test_text_is_heard_by_every_layer_and_hidden_text_is_none():
    torch.manual_seed(0)
    net = TokenTransformer(5, (8, 8), width=16, depth=2, heads=2, dropout=0.0, tokens={"words": 8})
    ids = torch.randint(0, 6, (3, 8, 8))
    torch.testing.assert_close(net(ids, told().hidden()), net(ids), atol=1e-6, rtol=0)
    assert not torch.allclose(net(ids, told()), net(ids))
    sites = []

    class Watch(AttentionController):
        def probs(self, probs, site):
            sites.append((site.layer, site.kind, site.grid, site.n_prefix, probs.shape[-1]))
            return probs

    with attention_control(Watch()):
        watched = net(ids, told())
    torch.testing.assert_close(watched, net(ids, told()), atol=1e-5, rtol=0)
    every = [[(f"layers.{i}", "self", (8, 8), 0, 64), (f"layers.{i}.cross", "cross", (8, 8), 0, 5)] for i in range(2)]
    assert sites == [*every[0], *every[1]]


def test_guidance_rises_with_what_is_known():
    torch.manual_seed(0)
    module = masked_tokens().eval()
    ids = torch.randint(0, 5, (3, 8, 8))
    ids[0], ids[1, :4] = module.mask, module.mask
    with_, without = module.net(ids, labels(3)), module.net(ids)
    scales = torch.tensor([1.0, 3.0, 5.0])[:, None, None, None]
    torch.testing.assert_close(module.logits(labels(3), Rising(5.0))(ids), without + scales * (with_ - without))
    assert module.sample(2, labels(2), guidance=Rising(3.0), seed=0).shape == (2, 1, 8, 8)
