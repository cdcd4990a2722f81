"""Paella: what is spoilt and what the loss weighs, which codes come back, typical codes, and clear answers to what cannot be meant."""

import pytest
import torch
from chain import STATES, chain_law, frequencies, logits_of
from technique_list import labels, paella, pictures

from diffx import Cond, rng
from diffx.networks import TokenUNet
from diffx.renoising import Renoising, spoilt, typical
from diffx.techniques import Paella
from diffx.tokenizers import PixelLevels


class Table(torch.nn.Module):
    """Logits that are a table, and what was asked."""

    codes = 5

    def __init__(self, n=6):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(n, 8, 8, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids, share, cond):
        self.ids, self.share = ids, share
        return self.table


def test_a_share_of_the_places_is_spoilt_independently():
    ids = torch.zeros(4, 200, 200, dtype=torch.long)
    codes = torch.randint(0, 5, ids.shape, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.0, 0.25, 0.7, 1.0])
    noisy, hit = spoilt(ids, codes, share, torch.Generator().manual_seed(1))
    assert torch.equal(noisy, torch.where(hit, codes, ids))
    changed = (noisy != ids).flatten(1).double().mean(1)
    error = 3 * (share * 0.8 * (1 - share * 0.8) / 40_000).sqrt()
    assert ((changed - 0.8 * share).abs() <= error + 1e-12).all()  # t (1 - 1 / K)


def test_the_loss_is_the_weighted_smoothed_cross_entropy_over_all_tokens():
    module = Paella(Table(), codec=PixelLevels(5), shape=(1, 8, 8), smoothing=0.1, clean=0.3).eval()
    batch, u = pictures(6), torch.tensor([0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
    rng.seed_default("loss")
    parts = module.loss(batch, u=u)
    ids, share, net = module.codec.encode(batch["x"]), u.clamp_min(1e-3), module.net
    rng.seed_default("loss")
    codes = (rng.rand((6, 8, 8)) * 5).long()
    noisy, hit = spoilt(ids, codes, share)
    assert torch.equal(net.ids, noisy) and torch.equal(net.share, share)
    logp = net.table.log_softmax(-1)
    entropy = -(0.9 * logp.gather(-1, ids[..., None])[..., 0] + 0.1 * logp.mean(-1))
    weight = torch.where(hit, 1.0, 1 - (1 - share[:, None, None]) * 0.7)
    torch.testing.assert_close(parts["loss"], (weight * entropy).sum((1, 2)) / weight.sum((1, 2)))


def test_where_all_is_random_nothing_of_the_picture_is_left():
    module = paella()
    seen = []
    module.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for x in (pictures(6)["x"], -pictures(6)["x"]):
        rng.seed_default("all")
        module.loss({"x": x, "label": pictures(6)["label"]}, u=torch.ones(6))
    assert torch.equal(seen[0], seen[1])


def test_the_codes_of_the_start_come_back():
    """A network that is sure of code 0: what else is seen in a round stood there at the start."""
    generator, seen = torch.Generator().manual_seed(0), []
    codes = torch.randint(1, 5, (3, 40, 40), generator=generator)

    def sure(ids, share):
        seen.append((ids, share))
        return torch.tensor([50.0, 0, 0, 0, 0]).expand(*ids.shape, 5)

    last = Renoising(5)(sure, codes, codes, generator=generator)
    assert (last == 0).all() and torch.equal(seen[0][0], codes)
    for i, (ids, share) in enumerate(seen):
        assert torch.equal(share, torch.full((3,), 1 - i / 5))
        assert torch.equal(ids[ids != 0], codes[ids != 0])
        assert ((ids != 0).double().mean() - (1 - i / 5)).abs() < 0.03


def true_logits(ids, share):
    """Exact posterior law of every token of a chain, each token being random with probability ``share``, by summing over all states."""
    random = share.double()[:, None, None] / 2
    likelihood = torch.where(ids[:, None] == STATES, 1 - random, random).prod(-1)
    return logits_of(likelihood * chain_law())


def test_with_the_true_posterior_rounds_bring_the_joint_law_near():
    """One round draws the tokens independently of each other. Many rounds nearly undo that; a rest is left."""
    codes = torch.randint(0, 2, (20_000, 6), generator=torch.Generator().manual_seed(0))

    def distance(steps):
        ids = Renoising(steps, (1.0, 1.0))(true_logits, codes, codes, generator=torch.Generator().manual_seed(1))
        return (frequencies(ids) - chain_law()).abs().sum() / 2

    one, three, twelve = (distance(steps) for steps in (1, 3, 12))
    assert one > 0.6 and 0.2 < three < 0.4 and twelve < 0.1


def test_two_rounds_of_a_lone_token_draw_its_exact_law():
    """What is seen in the second round is the token spoilt as in training, whatever stood there at the start."""
    law = torch.tensor([0.6, 0.3, 0.1]).double()

    def posterior(ids, share):
        same = torch.nn.functional.one_hot(ids, 3)
        return (law * ((1 - share[:, None, None].double()) * same + share[:, None, None].double() / 3)).log()

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 3, (60_000, 1), generator=generator)
    drawn = Renoising(2, (1.0, 1.0))(posterior, codes, codes, generator=generator)
    error = 4 * (law * (1 - law) / 60_000).sqrt()
    assert ((drawn.flatten().bincount() / 60_000 - law).abs() < error).all()


def test_guidance_mixes_logits_and_ends_in_both_branches():
    torch.manual_seed(0)
    module = paella().eval()
    for weight in module.net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    ids, share = torch.randint(0, 5, (3, 8, 8)), torch.tensor([0.2, 0.6, 1.0])
    told, untold = module.net(ids, share, labels(3)), module.net(ids, share)
    assert (told - untold).abs().max() > 1e-3
    torch.testing.assert_close(module.logits(labels(3), 3.0)(ids, share), untold + 3 * (told - untold))
    torch.testing.assert_close(module.logits(labels(3), 0.0)(ids, share), untold)
    torch.testing.assert_close(module.net(ids, share, Cond(label=torch.full((3,), 4))), untold)  # the null label
    with pytest.raises(ValueError, match=r"guidance = 2\.0 needs conditions"):
        module.sample(2, guidance=2.0)


def test_temperature_moves_from_first_to_last():
    drawn = []

    def logits(ids, share):
        return torch.tensor([0.0, 2.0]).expand(*ids.shape, 2)

    start = torch.zeros(1, 400, 400, dtype=torch.long)
    for ids in Renoising(3, (2.0, 0.5)).rounds(logits, start, start, generator=torch.Generator().manual_seed(0)):
        drawn.append(ids.double().mean())
    expected = torch.tensor([2 / 2.0, 2 / 1.25, 2 / 0.5]).sigmoid()
    torch.testing.assert_close(torch.stack(drawn).float(), expected, atol=0.005, rtol=0)
    assert (Renoising(1, (0.0, 0.0))(logits, start, start) == 1).all()


def test_typical_codes_are_as_surprising_as_the_entropy():
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    entropy = -(p * p.log()).sum()
    order = (-p.log() - entropy).abs().argsort()
    for mass in (0.1, 0.3, 0.6, 0.99):
        kept = typical(p.log(), mass).isfinite()
        count = int((p[order].cumsum(0) < mass).sum()) + 1
        assert sorted(kept.nonzero()[:, 0].tolist()) == sorted(order[:count].tolist()), mass
    draw = Renoising(1, mass=0.3)(lambda ids, t: p.log().expand(*ids.shape, 5), *[torch.zeros(1, 50, 50, dtype=torch.long)] * 2)
    assert set(draw.unique().tolist()) <= set(order[:2].tolist())


def test_the_last_picture_of_the_progress_is_the_sample():
    module = paella()
    *_, last = module.progress(3, labels(3), seed=4)
    assert torch.equal(last, module.sample(3, labels(3), seed=4))


def test_variations_keep_what_is_not_random():
    module, x = paella(), (pictures(4)["x"] * 2).round() / 2
    module.net.forward = lambda ids, share, cond: 50.0 * torch.nn.functional.one_hot(ids, 5)  # believes what it sees
    near, far = (module.vary(x, share=share, seed=1, sampler=Renoising(1)) for share in (0.1, 1.0))
    assert 0.8 < (near == x).double().mean() < 1 and (far == x).double().mean() < 0.4
    assert torch.equal(module.vary(x[1:2], share=0.1, seed=2, sampler=Renoising(1))[0], near[1])
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        module.vary(x, share=0)


def test_a_fresh_network_gives_all_codes_the_same_chance():
    net = TokenUNet(5, 8, width=16, mults=(1, 2), blocks=1)
    assert torch.equal(net(torch.zeros(2, 8, 8, dtype=torch.long), torch.ones(2)), torch.zeros(2, 8, 8, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: paella().loss({"latent": torch.full((2, 8, 8), 5)}), r"ids must lie in \[0, 5\), got 5"),
        (lambda: paella().net(torch.zeros(2, 64, dtype=torch.long), torch.ones(2)), r"ids must be \(B, h, w\), got \(2, 64\)"),
        (lambda: Paella(TokenUNet(6, 8, width=16, mults=(1,)), codec=PixelLevels(5), shape=(1, 8, 8)), "knows 6 codes, the codebook .* 5"),
        (lambda: Paella(Table(), codec=PixelLevels(5), shape=(1, 8, 8), clean=1.5), r"clean in \[0, 1\], got 0.1 and 1.5"),
        (lambda: Renoising(0), "at least 1 step, got steps=0"),
        (lambda: Renoising(4, (1.0, -0.1)), "temperature must be two numbers >= 0"),
        (lambda: Renoising(4, mass=1.0), r"mass must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_answered(make, message):
    with pytest.raises(ValueError, match=message):
        make()
