"""Maps of attention: what is shown is what the layers computed, and watching changes nothing."""

import pytest
import torch

from diffx import EDM, Denoiser, UNet
from diffx.editing import Editor, WatchedAttention
from diffx.networks import DiT
from diffx.samplers import Euler
from diffx.schedules import Karras
from diffx.text import Words

SAMPLER = Euler(3, Karras(0.05, 5.0))
TEXT = ["a red cat", "a dog"]


def model(net):
    torch.manual_seed(0)
    module = EDM(Denoiser(net), shape=(3, 8, 8), text=Words(["a", "cat", "dog", "red"], 8, 1, 2))
    with torch.no_grad():
        for parameter in module.denoiser.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return module


NETS = {
    "unet": lambda: UNet(3, width=8, mults=(1, 2), blocks=1, tokens={"text": 8}),
    "dit": lambda: DiT(channels=3, size=8, patch=2, width=16, depth=1, heads=2, tokens={"text": 8}),
}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_watching_changes_nothing_and_gives_a_map_a_phrase(net, guidance):
    editor = Editor(model(net()), guidance=guidance, sampler=SAMPLER, seed=3)
    cond = editor.told(text=TEXT, words=True)
    out = editor.attention(cond)
    plain = editor.module.sample(2, editor.told(text=TEXT), guidance=guidance, sampler=SAMPLER, seed=3)
    torch.testing.assert_close(out.pictures, plain, atol=1e-4, rtol=1e-4)
    assert out.phrases == [["a", "red", "cat"], ["a", "dog"]] and out.maps.shape[:2] == (2, 3)
    assert torch.equal(out.maps[1, 2], torch.zeros_like(out.maps[1, 2]))  # the second prompt has two words
    assert (out.maps[0].amax((1, 2)) == 1).all() and out.maps.min() >= 0


def test_a_map_is_the_mean_of_the_heads():
    torch.manual_seed(0)
    module = model(NETS["dit"]())
    editor = Editor(module, sampler=SAMPLER)
    cond = editor.told(text=["a red cat"], words=True)
    watched = WatchedAttention(module.denoiser, cond)
    x, sigma = torch.randn(1, 3, 8, 8), torch.ones(1)
    with module.drawing():
        watched(x, sigma, cond)
        blocks = [block for block in module.denoiser.net.modules() if hasattr(block, "kv") and hasattr(block, "null")]
        caught = []
        blocks[0].query.register_forward_hook(lambda _, inputs, out: caught.append(out))
        module.denoiser(x, sigma, cond)
        k = torch.cat([blocks[0].null.expand(1, 1, -1), blocks[0].kv["text"](cond.tokens["text"])], 1).chunk(2, -1)[0]
    q, k = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (caught[0], k))
    probs = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[0]
    wanted = torch.stack([probs[:, 1 + span.start : 1 + span.stop].sum(-1) for span in cond.spans[0]]).view(3, 4, 4)
    torch.testing.assert_close(watched.seen[(4, 4)][0], wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(watched.maps()[0], wanted / wanted.amax((1, 2), keepdim=True), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_shown_is_refused():
    module = model(NETS["unet"]())
    editor = Editor(module, sampler=SAMPLER)
    with pytest.raises(ValueError, match="no spans"):
        editor.attention(editor.told(text=TEXT))
    deaf = Editor(model(UNet(3, width=8, mults=(1, 2), blocks=1, vectors={"text_pooled": 8})), sampler=SAMPLER)
    with pytest.raises(ValueError, match="no attention of a picture to text"):
        deaf.attention(deaf.told(text=TEXT, words=True))
