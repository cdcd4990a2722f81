"""U-Nets of other projects: outputs as the source's where it can be run, names and shapes from its description elsewhere."""

from __future__ import annotations

import pickle

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import diffx
from diffx import EDM, Cond, Denoiser
from diffx.denoiser import EpsPrecond, Timesteps
from diffx.interop import load_dit, load_tokens, load_unet, read_unet, read_weights, write_pipeline
from diffx.networks import DiT, SongUNet, TokenTransformer, UNet
from diffx.networks.unet import levels_at
from diffx.samplers import Euler
from diffx.schedules import DDPM
from diffx.techniques import ProgressiveDistillation

TWO = {"block_out_channels": (128, 128), "layers_per_block": 1}
PLAIN = {**TWO, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
LIKE_ADM = {
    "block_out_channels": (128, 256),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "attention_head_dim": 64,
    "num_class_embeds": 5,
    "out_channels": 6,
}


def theirs(**options):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(sample_size=8, **options).eval()


def noise(channels=3, size=8):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])


@pytest.mark.parametrize("options", [PLAIN, LIKE_ADM], ids=["ddpm", "adm"])
def test_unet2d_agrees_with_diffusers(options):
    model = theirs(**options)
    x, steps = noise()
    labels = torch.tensor([1, 4]) if "num_class_embeds" in options else None
    with torch.no_grad():
        ours = read_unet(model)(x, steps.float(), Cond(label=labels))
        assert (ours - model(x, steps, class_labels=labels).sample).abs().max() <= 1e-5


def test_unet2d_from_a_folder(tmp_path):
    model = theirs(**PLAIN)
    model.save_pretrained(tmp_path / "model")
    x, steps = noise()
    assert torch.equal(read_unet(tmp_path / "model")(x, steps.float()), read_unet(model)(x, steps.float()))
    with pytest.raises(ValueError, match=r"stand in its config\.json: give the folder"):
        read_unet(model.state_dict())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"norm_eps": 1e-6}, r"norm_eps = 1e-06 \(only 1e-05\)"),
        ({"flip_sin_to_cos": False, "freq_shift": 1}, r"flip_sin_to_cos = False \(only True\); freq_shift = 1 \(only 0\)"),
        ({"downsample_padding": 0}, r"downsample_padding = 0 \(only 1\)"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "blocks attend differently on the way down and up"),
        ({"block_out_channels": (32, 64)}, "norm_num_groups = 32, but 32 channels are normalised in 8 groups here"),
        ({"down_block_types": ("SkipDownBlock2D",) * 2}, "blocks of type SkipDownBlock2D"),
    ],
)
def test_what_no_network_of_ours_computes_is_refused(options, reason):
    from diffx.interop.unet2d import unet2d_options

    with pytest.raises(ValueError, match=f"no UNet of diffx computes this UNet2DModel: .*{reason}"):
        unet2d_options({**PLAIN, **options})


def edm_names(size: int, mults, blocks: int, attention, *, width: int, classes: int, augment: int = 0, song: bool) -> dict:
    """Names and shapes of EDM's two networks, written down from the description of their constructors."""
    embedded, waves = 4 * width, width
    found: dict[str, tuple[int, ...]] = {"map_layer0.weight": (embedded, waves), "map_layer0.bias": (embedded,),
                                         "map_layer1.weight": (embedded, embedded), "map_layer1.bias": (embedded,)}  # fmt: skip
    if classes:
        found |= {"map_label.weight": (waves if song else embedded, classes)} | ({"map_label.bias": (waves,)} if song else {})
    if augment:
        found["map_augment.weight"] = (waves, augment)

    def conv(name, cin, cout, kernel=3):
        found.update({f"{name}.weight": (cout, cin, kernel, kernel), f"{name}.bias": (cout,)})

    def block(name, cin, cout, attends=False, step=False):
        for norm, channels in (("norm0", cin), ("norm1", cout)):
            found.update({f"{name}.{norm}.weight": (channels,), f"{name}.{norm}.bias": (channels,)})
        conv(f"{name}.conv0", cin, cout), conv(f"{name}.conv1", cout, cout)
        found.update({f"{name}.affine.weight": (cout * (2 - song), embedded), f"{name}.affine.bias": (cout * (2 - song),)})
        if cin != cout or (step and song):
            conv(f"{name}.skip", cin, cout, 1)
        if step:
            found.update({f"{name}.conv0.resample_filter": (1, 1, 2, 2), f"{name}.skip.resample_filter": (1, 1, 2, 2)})
        if attends:
            found.update({f"{name}.norm2.weight": (cout,), f"{name}.norm2.bias": (cout,)})
            conv(f"{name}.qkv", cout, 3 * cout, 1), conv(f"{name}.proj", cout, cout, 1)

    first = width if song else mults[0] * width
    conv(f"enc.{size}x{size}_conv", 3, first)
    skips, channels = [first], first
    for level, mult in enumerate(mults):
        side = f"{size >> level}x{size >> level}"
        if level:
            block(f"enc.{side}_down", channels, channels, step=True)
            skips.append(channels)
        for i in range(blocks):
            block(f"enc.{side}_block{i}", channels, mult * width, size >> level in attention)
            channels = mult * width
            skips.append(channels)
    for level, mult in reversed(list(enumerate(mults))):
        side = f"{size >> level}x{size >> level}"
        if level == len(mults) - 1:
            block(f"dec.{side}_in0", channels, channels, True), block(f"dec.{side}_in1", channels, channels)
        else:
            block(f"dec.{side}_up", channels, channels, step=True)
        for i in range(blocks + 1):
            attends = size >> level in attention and (i == blocks or not song)
            block(f"dec.{side}_block{i}", channels + skips.pop(), mult * width, attends)
            channels = mult * width
    head = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv") if song else ("out_norm", "out_conv")
    found.update({f"{head[0]}.weight": (channels,), f"{head[0]}.bias": (channels,)})
    conv(head[1], channels, 3)
    return found


def filled(shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.full_like(tensor, 0.25) if name.endswith("resample_filter") else tensor for name, tensor in drawn.items()}


SIZES = {"size": 16, "mults": (1, 2), "blocks": 2, "attention": (8,), "width": 16, "classes": 5}


@pytest.mark.parametrize("song", [True, False], ids=["SongUNet", "DhariwalUNet"])
def test_edm_names_and_shapes(song):
    state = filled(edm_names(song=song, augment=9 * song, **SIZES))
    net = read_unet({f"model.{name}": tensor for name, tensor in state.items()})
    assert isinstance(net, SongUNet if song else UNet)
    assert net.conditions.classes == 5
    weights = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("resample_filter"))
    assert sum(parameter.numel() for parameter in net.parameters()) == weights
    x, _ = noise(size=16)
    assert net(x, torch.zeros(2), Cond(label=torch.tensor([0, 4]))).isfinite().all()
    if song:
        other = SongUNet(3, width=16, mults=(1, 2), blocks=2, classes=5, vectors={"augment": 9}, taps=(1, 3, 3, 1))
        with pytest.raises(ValueError, match=r"build it with taps=\(1\.0, 1\.0\)"):
            load_unet(other, state)
    del state["enc.16x16_block1.conv0.weight"]
    state["enc.4x4_block0.conv0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: enc\.16x16_block1\.conv0\.weight; not known to the network: enc\.4x4_block0"):
        load_unet(net, state)


def test_ncsnpp_is_read_with_its_filters_and_pyramid():
    """The names of our own network, turned back into the source's."""
    from diffx.interop.unet_layouts import edm
    from diffx.interop.unets import _entries, _qkv

    net = SongUNet(3, width=16, mults=(1, 2), blocks=1, embedding="fourier", pyramid=True, taps=(1, 3, 3, 1))
    own = net.state_dict()
    state = {entry.theirs[0]: own[entry.ours] for entry in _entries(net, edm(16, True), _qkv("EDM", "new")) if entry.theirs}
    assert "enc.8x8_aux_residual.weight" in state
    assert "map_noise.freqs" in state
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    state["enc.8x8_down.conv0.resample_filter"] = torch.outer(line, line)[None, None]
    again = read_unet(state)
    assert again._recipe["taps"] == [1.0, 3.0, 3.0, 1.0]
    same = [name for name, tensor in again.state_dict().items() if torch.equal(tensor, own[name])]
    assert {*own} - {*same} <= {name for name in own if ".qkv." in name}, "only the rows of attention are turned"


def test_edm_published_sizes():
    """The names of the CIFAR network, with its shapes, fill `SongUNet.ddpmpp`; counted without their values."""
    shapes = edm_names(32, (2, 2, 2), 4, (16,), width=128, classes=10, augment=9, song=True)
    with torch.device("meta"):
        net = SongUNet.ddpmpp(32, classes=10)
    total = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith("resample_filter"))
    assert total == sum(parameter.numel() for parameter in net.parameters())


def test_edm_with_another_place_for_augmentation_is_refused():
    state = filled(edm_names(song=False, augment=9, **SIZES))
    with pytest.raises(ValueError, match="takes an augmentation label before its two linear layers"):
        read_unet(state)


def attention_of(state, place, x, heads, split):
    """The attention of one block, from the source's rows as its description says; ``split`` (B, rows, N) -> q, k, v (B heads, d, N)."""
    names = {"norm": "norm2", "proj_out": "proj"} if f"{place}.norm2.weight" in state else {}
    weight = {name: state[f"{place}.{names.get(name, name)}.weight"].flatten(1) if name != "norm" else None for name in ("qkv", "proj_out")}
    norm = names.get("norm", "norm")
    h = F.group_norm(x, 4, state[f"{place}.{norm}.weight"], state[f"{place}.{norm}.bias"], 1e-5).flatten(2)
    rows = torch.einsum("oc,bcn->bon", weight["qkv"], h) + state[f"{place}.qkv.bias"][:, None]
    q, k, v = split(rows, heads)
    mixed = torch.einsum("bnm,bcm->bcn", torch.einsum("bcn,bcm->bnm", q, k / q.shape[1] ** 0.5).softmax(2), v).reshape(
        x.shape[0], -1, h.shape[2]
    )
    out = torch.einsum("oc,bcn->bon", weight["proj_out"], mixed) + state[f"{place}.{names.get('proj_out', 'proj_out')}.bias"][:, None]
    return x + out.unflatten(2, x.shape[2:])


def split_edm(rows, heads):
    return rows.reshape(len(rows) * heads, -1, 3, rows.shape[2]).unbind(2)


def split_legacy(rows, heads):
    return rows.reshape(len(rows) * heads, -1, rows.shape[2]).chunk(3, 1)


def split_new(rows, heads):
    return [part.reshape(len(rows) * heads, -1, rows.shape[2]) for part in rows.chunk(3, 1)]


class Still(nn.Module):
    """A residual block that does nothing, so that a block is its attention."""

    def forward(self, x, context):
        return x


def our_attention(block, x):
    from diffx.networks.layers import Context

    block.res = Still()
    return block(x, Context(torch.zeros(len(x), 1), torch.zeros(len(x)), {}, None, None))


def test_rows_of_attention_in_edm():
    sizes = {**SIZES, "width": 8, "mults": (2, 2)}  # 16 channels, two heads of 8
    state = filled(edm_names(song=False, **sizes))
    net = read_unet(state, head_dim=8)
    x = torch.randn(2, 16, 4, 4)
    expected = attention_of(state, "enc.8x8_block0", x, 2, split_edm)
    assert torch.allclose(our_attention(net.body.encoder[1][0], x), expected, atol=1e-5)


def adm_names(width=8, classes=0, channels=3) -> dict:
    """Names and shapes of a guided-diffusion network of two levels with one block each, attention on the lower one."""
    emb = 4 * width
    found: dict[str, tuple[int, ...]] = {}

    def affine(name, *shape):
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def res(name, cin, cout):
        affine(f"{name}.in_layers.0", cin), affine(f"{name}.in_layers.2", cout, cin, 3, 3)
        affine(f"{name}.emb_layers.1", 2 * cout, emb)
        affine(f"{name}.out_layers.0", cout), affine(f"{name}.out_layers.3", cout, cout, 3, 3)
        if cin != cout:
            affine(f"{name}.skip_connection", cout, cin, 1, 1)

    def attention(name, c):
        affine(f"{name}.norm", c), affine(f"{name}.qkv", 3 * c, c, 1), affine(f"{name}.proj_out", c, c, 1)

    affine("time_embed.0", emb, width), affine("time_embed.2", emb, emb)
    affine("input_blocks.0.0", width, channels, 3, 3)
    res("input_blocks.1.0", width, width), res("input_blocks.2.0", width, width)  # the second halves the sides
    res("input_blocks.3.0", width, 2 * width), attention("input_blocks.3.1", 2 * width)
    res("middle_block.0", 2 * width, 2 * width), attention("middle_block.1", 2 * width), res("middle_block.2", 2 * width, 2 * width)
    res("output_blocks.0.0", 4 * width, 2 * width), attention("output_blocks.0.1", 2 * width)
    (
        res("output_blocks.1.0", 3 * width, 2 * width),
        attention("output_blocks.1.1", 2 * width),
        res("output_blocks.1.2", 2 * width, 2 * width),
    )
    res("output_blocks.2.0", 3 * width, width), res("output_blocks.3.0", 2 * width, width)
    affine("out.0", width), affine("out.2", channels, width, 3, 3)
    return {**found, **({"label_emb.weight": (classes, emb)} if classes else {})}


def small_adm(**options):
    return UNet(channels=3, width=8, mults=(1, 2), blocks=1, attention_levels=(1,), head_dim=8, **options)


@pytest.mark.parametrize(("order", "split"), [("legacy", split_legacy), ("new", split_new)])
def test_guided_diffusion_names_and_rows(order, split):
    state = filled(adm_names(classes=3))
    net = load_unet(small_adm(classes=3), state, order=order)
    assert sum(parameter.numel() for parameter in net.parameters()) == sum(tensor.numel() for tensor in state.values())
    x = torch.randn(2, 16, 4, 4)
    expected = attention_of(state, "input_blocks.3.1", x, 2, split)
    assert torch.allclose(our_attention(net.body.encoder[1][0], x), expected, atol=1e-5)


def test_guided_diffusion_agrees_with_diffusers():
    """The same numbers under both names: diffusers computes this network, too."""
    model = theirs(**{**LIKE_ADM, "num_class_embeds": None})
    net = read_unet(model)
    from diffx.interop.unet_layouts import ADM
    from diffx.interop.unets import _entries

    renamed = {entry.theirs[0]: net.state_dict()[entry.ours] for entry in _entries(net, ADM, lambda rows, heads: rows)}
    again = UNet(channels=3, out_channels=6, width=128, mults=(1, 2), blocks=1, attention_levels=(1,), scale_shift=True)
    x, steps = noise()
    with torch.no_grad():
        assert (load_unet(again, renamed, order="new")(x, steps.float()) - model(x, steps).sample).abs().max() <= 1e-5


def test_published_sizes_of_guided_diffusion_are_asked_for():
    with pytest.raises(ValueError, match="give size=64, 128, 256 or 512"):
        read_unet(filled(adm_names()))
    assert levels_at(64, (32, 16, 8)) == (1, 2, 3)
    with pytest.raises(ValueError, match='order must be "legacy" or "new"'):
        load_unet(small_adm(), filled(adm_names()), order="old")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"],
            "U-Net with text; diffx has no",
        ),
        (["x_embedder.proj.weight", "final_layer.linear.weight"], "DiT; read them with load_dit"),
        (["encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight"], r"AutoencoderKL; read them with diffx\.codecs\.KL"),
        (["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"], "BERT; read them with load_tokens"),
        (["conv.weight"], "of no architecture that diffx knows"),
    ],
)
def test_weights_of_another_architecture_are_named(names, said):
    state = {name: torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match=said):
        load_unet(small_adm(), state)
    with pytest.raises(ValueError, match=said):
        read_unet(state)


def test_a_unet_is_no_dit():
    with pytest.raises(ValueError, match="are no DiT that can be read here but a guided-diffusion U-Net; read them with load_unet"):
        load_dit(DiT(channels=3, size=8, width=32, depth=1, heads=2), filled(adm_names()))


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pt"])
def test_pickles_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps({"G_ema": nn.Linear(1, 1)}))
    with pytest.raises(ValueError, match="never unpickled"):
        read_weights(tmp_path / name)


def bert(codes=7, classes=2, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=codes + classes + 1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=12, layer_norm_eps=1e-12, **options)  # fmt: skip
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_maskgit_agrees_with_bert():
    model = bert()
    net = TokenTransformer(7, (3, 3), width=16, depth=2, heads=2, mlp=32, classes=2).eval()
    load_tokens(net, model)
    ids = torch.randint(8, (4, 3, 3), generator=torch.Generator().manual_seed(0))
    ids = torch.where(ids == 7, net.mask, ids)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        theirs = model(torch.cat([7 + labels[:, None], ids.flatten(1)], 1)).logits[:, 1:, :7]
        assert (net(ids, Cond(label=labels)).flatten(1, 2) - theirs).abs().max() <= 1e-5


def test_bert_that_does_not_fit():
    state = bert().state_dict()
    with pytest.raises(ValueError, match=r"do not fit TokenTransformer of this size; not known to the network: bert\.encoder\.layer\.1"):
        load_tokens(TokenTransformer(7, (3, 3), width=16, depth=1, heads=2, mlp=32, classes=2), state)
    with pytest.raises(ValueError, match="attends to no text"):
        load_tokens(TokenTransformer(7, (3, 3), width=16, depth=2, heads=2, tokens={"words": 4}), state)
    with pytest.raises(ValueError, match="are no transformer over tokens that can be read here but a guided-diffusion U-Net"):
        load_tokens(TokenTransformer(7, (3, 3), width=16, depth=2, heads=2), filled(adm_names()))
    state["cls.predictions.decoder.weight"] = torch.zeros(10, 16)
    with pytest.raises(ValueError, match="must be one"):
        load_tokens(TokenTransformer(7, (3, 3), width=16, depth=2, heads=2), state)


# What is loaded is a network like any other -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    """A denoiser with guided-diffusion's weights, as published ones are used: noise at a timestep."""
    return lambda: Denoiser(load_unet(small_adm(), filled(adm_names())), EpsPrecond(Timesteps(DDPM())))


def trained(module):
    items = [{"x": torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) * 2 - 1} for i in range(4)]
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = L.Trainer(max_steps=2, logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False,
                        enable_model_summary=False)  # fmt: skip
    trainer.fit(module, DataLoader(items, batch_size=2))
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return moved


@pytest.mark.filterwarnings("ignore")
def test_it_is_trained_further(loaded):
    assert any(trained(EDM(loaded(), shape=(3, 8, 8))))


@pytest.mark.filterwarnings("ignore")
def test_it_is_a_teacher(loaded):
    teacher = loaded()
    student = ProgressiveDistillation(teacher, shape=(3, 8, 8), teacher_steps=4, iterations=8)
    trained(student)
    assert torch.equal(student.teacher.net.stem.weight, loaded().net.stem.weight)
    assert not torch.equal(student.denoiser.net.stem.weight, student.teacher.net.stem.weight)


def test_it_is_exported_again(loaded, tmp_path):
    module = EDM(loaded(), shape=(3, 8, 8), sampler=Euler(3, DDPM())).eval()
    again = diffx.load(write_pipeline(module, tmp_path / "folder"))
    assert torch.equal(again.sample(2, seed=0), module.sample(2, seed=0))
