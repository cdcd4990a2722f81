"""The VQ autoencoder: its loss against formulas, where gradients go, what it leaves behind as a tokenizer."""

import pytest
import torch
from technique_list import pictures, vq
from torch.nn.functional import softmax

import diffx
from diffx.techniques.vq import assignment_entropy, perplexity


def test_the_loss_is_its_formula():
    module, x = vq(commitment=0.5, entropy=0.2).eval(), pictures(4)["x"]
    parts = module.loss({"x": x})
    book, z = module.codec.codebook, module.codec.vae.encode(x)
    q = book.vectors(book.nearest(z))
    y = module.codec.vae.decode(q)
    torch.testing.assert_close(parts["reconstruction"], (y - x).abs().flatten(1).mean(1) + (y - x).square().flatten(1).mean(1))
    torch.testing.assert_close(parts["commitment"], (z - q).square().flatten(1).mean(1))
    p = softmax(-torch.cdist(z.movedim(1, -1).reshape(-1, 4), book.codes).square() / 0.01, 1).double()
    entropy = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    torch.testing.assert_close(parts["entropy"], entropy.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts["loss"], parts["reconstruction"] + 0.5 * parts["commitment"] + 0.2 * parts["entropy"])


def test_the_gradient_goes_straight_through():
    """What the decoder's input would get is what the encoder's output gets."""
    module, x = vq(commitment=0.0, entropy=0.0).eval(), pictures(4)["x"]
    kept, given = [], []
    module.codec.vae.encoder.register_forward_hook(lambda net, args, out: (out.retain_grad(), kept.append(out))[1])
    module.codec.vae.decoder.register_forward_pre_hook(lambda net, args: (args[0].retain_grad(), given.append(args[0]))[1])
    module.loss({"x": x})["loss"].mean().backward()
    assert kept[0].grad.abs().max() > 0 and torch.equal(kept[0].grad, given[0].grad)


def test_the_codebook_moves_in_training_only():
    module, x = vq(), pictures(16)["x"]
    before = module.codec.codebook.codes.clone()
    module.eval()
    module.loss({"x": x})
    assert torch.equal(module.codec.codebook.codes, before)
    module.train()
    module.loss({"x": x})
    assert not torch.equal(module.codec.codebook.codes, before)


def test_perplexity_and_entropy_at_their_ends():
    assert perplexity(torch.zeros(10, dtype=torch.long), 4) == 1
    assert perplexity(torch.arange(4).repeat(5), 4) == pytest.approx(4)
    sure_and_even = 1e3 * (1 - torch.eye(4))
    assert assignment_entropy(sure_and_even) == pytest.approx(-torch.tensor(4.0).log())
    assert assignment_entropy(torch.zeros(8, 4)) == pytest.approx(0, abs=1e-6)  # as even for each as for all


def test_what_was_trained_is_a_tokenizer_for_others(tmp_path):
    module = vq()
    module.train()
    module.loss(pictures(16))
    path = tmp_path / "vq.ckpt"
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    codec = diffx.load(path, weights="raw", part="codec")
    x = pictures(4)["x"]
    assert torch.equal(codec.encode(x), module.codec.encode(x))
    torch.testing.assert_close(module.reconstruct(x), codec.decode(codec.encode(x)).clamp(-1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vq(commitment=-1.0), "weights must be >= 0"),
        (lambda: vq(shape=(1, 7, 8)), "divisible by 2"),
        (lambda: vq().loss({"latent": torch.zeros(2, 4, 4)}), "trains on pictures"),
        (lambda: vq().sample(2, guidance=2.0), "samples without conditions, guidance and sampler"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
