"""What else judges a reconstruction: the critic's gradients stay with the critic, the codec's with the codec, and their pulls balance."""

import pytest
import torch
from torch.nn import functional as F

from diffx.codebook import Codebook
from diffx.codecs import KL
from diffx.networks import ConvAutoencoder, PatchCritic
from diffx.resizing import enlarge, shrink
from diffx.techniques import Autoencoder, VQAutoencoder
from diffx.techniques.first_stage import balance
from diffx.tokenizers import VQ

MAKE = {
    "kl": lambda **options: Autoencoder(KL(ConvAutoencoder(1, 2, 8, (1, 2))), shape=(1, 8, 8), **options),
    "vq": lambda **options: VQAutoencoder(VQ(ConvAutoencoder(1, 4, 8, (1, 2), moments=False), Codebook(6, 4)), shape=(1, 8, 8), **options),
}


def critic():
    torch.manual_seed(1)
    made = PatchCritic(1, 8, (1, 2))
    made.layers[-1].weight.data.normal_()
    return made


def gradients(module, part):
    torch.manual_seed(5)
    module.zero_grad(set_to_none=True)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parts = module.loss({"x": x})
    parts[part].mean().backward()
    return parts, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_each_learns_from_its_own_part(make):
    torch.manual_seed(0)
    module = make(critic=critic(), adversarial_weight=0.7).train()
    if isinstance(module, VQAutoencoder):
        module.codec.codebook.update = lambda *_: None  # the book moves in training
    parts, whole = gradients(module, "loss")
    _, telling = gradients(module, "telling")
    _, fooling = gradients(module, "fooling")
    assert set(telling) == {name for name in whole if name.startswith("critic.")}
    assert all(torch.equal(whole[name], telling[name]) for name in telling)
    assert fooling and all(name.startswith("codec.") for name in fooling)
    module.adversarial_weight = 0.0
    _, alone = gradients(module, "loss")
    decoder = [name for name in fooling if "decoder" in name]
    differences = torch.cat([(whole[name] - alone[name]).flatten() for name in decoder])
    pulls = torch.cat([fooling[name].flatten() for name in decoder])
    scale = (differences @ pulls / (pulls @ pulls)).item()
    torch.testing.assert_close(differences, scale * pulls, atol=1e-5 * scale, rtol=1e-3)
    assert scale > 0 and {"telling", "fooling"} <= parts.keys()


def test_the_pulls_are_equal_at_the_reconstruction():
    y = torch.randn(3, 5, requires_grad=True)
    loss, other = 3 * y.square().sum(1), (y * torch.arange(5.0)).sum(1)
    by = balance(loss, other, y)
    pulls = [torch.autograd.grad(part.sum(), y, retain_graph=True)[0].norm() for part in (loss, by * other)]
    torch.testing.assert_close(*pulls, rtol=1e-3, atol=0)
    assert not by.requires_grad and balance(loss, 0 * other, y) == 1e4


def test_the_critic_learns_by_the_hinge_loss_and_only_in_training():
    module = MAKE["kl"](critic=critic()).train()
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    torch.manual_seed(2)
    parts = module.loss({"x": x})
    torch.manual_seed(2)
    mean, std = (lambda m: (m.chunk(2, 1)[0], (0.5 * m.chunk(2, 1)[1]).exp()))(module.codec.moments(x))
    y = module.codec.picture(mean + std * torch.randn(mean.shape))
    hinge = (F.relu(1 - module.critic(x)).flatten(1).mean(1) + F.relu(1 + module.critic(y)).flatten(1).mean(1)) / 2
    torch.testing.assert_close(parts["telling"], hinge)
    torch.testing.assert_close(parts["fooling"], -module.critic(y).flatten(1).mean(1))
    assert "telling" not in module.eval().loss({"x": x})
    assert "critic.layers.0.weight" in module.trained_parameters() and "critic.layers.0.weight" not in module.averaged_parameters()


def test_a_critic_of_patches_judges_samples_one_by_one():
    made = critic()
    x = torch.randn(3, 1, 16, 24)
    assert made(x).shape == (3, 1, 4, 6) and torch.allclose(made(x)[1:2], made(x[1:2]), atol=1e-6)
    assert PatchCritic(2, 8, (1, 2), axes=1)(torch.zeros(2, 2, 32)).shape == (2, 1, 8)
    assert not PatchCritic(1, 8)(torch.randn(2, 1, 8, 8)).any()  # a fresh one
    with pytest.raises(ValueError, match="1 channels"):
        made(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="weights and steps"):
        MAKE["vq"](adversarial_from=-1)
    with pytest.raises(ValueError, match="axes"):
        PatchCritic(axes=4)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_what_comes_back_stands_beside_pictures_of_as_many_places(make):
    torch.manual_seed(0)
    module, x = make().eval(), torch.rand(3, 1, 8, 8) * 2 - 1
    found = module.restorations(x)
    assert torch.equal(found["own"], module.reconstruct(x))
    assert torch.equal(found["naive"], enlarge(shrink(x, 2), (8, 8)))  # its latents are 4 x 4
