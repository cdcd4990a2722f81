"""The one list of techniques that the contract tests run over: a name, a small module, a batch for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffx import EDM, Cond, Denoiser
from diffx.augment import AugmentPipe
from diffx.codebook import Codebook
from diffx.codecs import KL, Standardised
from diffx.degradations import Blur, GaussianMask
from diffx.denoiser import EDMPrecond, FlowPrecond, FlowTime, VPrecond, X0Precond
from diffx.distances import ObjectRegions
from diffx.experts import Experts
from diffx.guidance import KeyWordBoost
from diffx.module import DiffusionModule
from diffx.networks import (
    RIN,
    ConvAutoencoder,
    DiT,
    PriorTransformer,
    TokenConvNeXt,
    TokenTransformer,
    TokenUNet,
    UNet,
    VideoUNet,
    WaveUNet,
)
from diffx.samplers import Euler, Heun, MultiStep
from diffx.schedules import DDPM, Bands, Cosine, Flow, GammaCosine, Levels, LogNormal
from diffx.techniques import (
    DMD,
    Autoencoder,
    ColdDiffusion,
    ConsistencyDistillation,
    DiTDiffusion,
    GuidanceDistillation,
    InstructPix2Pix,
    KnowledgeEnhanced,
    LearnedRange,
    MaskedTokens,
    MeanFlow,
    NoiseBandExperts,
    Paella,
    Prior,
    ProgressiveDistillation,
    RINDiffusion,
    SequenceDiffusion,
    SuperResolution,
    TextualInversion,
    VideoDiffusion,
    VQAutoencoder,
)
from diffx.techniques.consistency import EasyTuning
from diffx.techniques.dmd import Discriminator
from diffx.text import Bytes, KeyWords, TokenSpan, Words
from diffx.tokenizers import VQ, PixelLevels
from diffx.weightings import LearnedUncertainty


@dataclass(frozen=True)
class Case:
    """``make()`` builds a small module, ``batch(n)`` data for it, ``cond(n)`` conditions to sample with."""

    make: Callable[[], DiffusionModule]
    batch: Callable[[int], dict[str, Any]]
    cond: Callable[[int], Cond]


def unet(classes: int = 4, **options: Any) -> UNet:
    return UNet(channels=1, classes=classes, width=16, mults=(1, 2), blocks=1, **options)


def edm(net: UNet | None = None, *, precond: Any = EDMPrecond(), **options: Any) -> EDM:
    return EDM(Denoiser(net or unet(), precond), shape=(1, 8, 8), sampler=Heun(4), **options)


def dit(out_channels: int = 1, **options: Any) -> DiTDiffusion:
    net = DiT(channels=1, out_channels=out_channels, size=8, width=32, depth=2, heads=4, classes=4)
    return DiTDiffusion(net, shape=(1, 8, 8), **options)


def rin(**options: Any) -> RINDiffusion:
    net = RIN(1, size=8, patch=2, width=16, latents=4, latent_width=16, blocks=1, depth=1, heads=2, read_heads=2, classes=4)
    return RINDiffusion(net, shape=(1, 8, 8), sampler=Euler(4, GammaCosine()), **options)


def progressive(teacher: Denoiser | None = None, **options: Any) -> ProgressiveDistillation:
    return ProgressiveDistillation(teacher or Denoiser(unet()), **{"shape": (1, 8, 8), "teacher_steps": 4, "iterations": 8, **options})


def consistency(**options: Any) -> ConsistencyDistillation:
    return ConsistencyDistillation(Denoiser(unet()), shape=(1, 8, 8), tuning=EasyTuning(images=12), **options)


def dmd(**options: Any) -> DMD:
    critic = {"discriminator": Discriminator(32, 16), "features": "body.middle.1"}
    return DMD(Denoiser(unet()), shape=(1, 8, 8), every=2, **{**critic, **options})


def meanflow(**options: Any) -> MeanFlow:
    return MeanFlow(Denoiser(unet(vectors={"duration": 1}), FlowPrecond(FlowTime(4.0))), shape=(1, 8, 8), **options)


def masked_tokens(**options: Any) -> MaskedTokens:
    net = TokenTransformer(5, (8, 8), width=16, depth=1, heads=2, classes=4, dropout=0.0)
    return MaskedTokens(net, codec=PixelLevels(5), shape=(1, 8, 8), **options)


def masked_text() -> MaskedTokens:
    net = TokenTransformer(5, (8, 8), width=16, depth=1, heads=2, dropout=0.0, tokens={"words": 8})
    return MaskedTokens(net, codec=PixelLevels(5), shape=(1, 8, 8), text={"words": Words(["red", "blue"], 8, 1, 2)})


def paella(**options: Any) -> Paella:
    net = TokenUNet(5, 8, width=16, mults=(1, 2), blocks=1, classes=4)
    return Paella(net, codec=PixelLevels(5), shape=(1, 8, 8), **options)


def paella_convnext() -> Paella:
    net = TokenConvNeXt(5, features=8, widths=(16, 16), blocks=(1, 1), heads=(0, 2), width=16, waves=8, classes=4)
    return Paella(net, codec=PixelLevels(5), shape=(1, 8, 8))


def pictures(n: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n)
    return {"x": torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, "label": torch.arange(n) % 4}


def labels(n: int) -> Cond:
    return Cond(label=torch.arange(n) % 4)


def text_edm() -> EDM:
    """Two encoders trained along: one heard as tokens and as a vector, one as tokens only."""
    net = unet(classes=0, tokens={"words": 8, "bytes": 8}, vectors={"words_pooled": 8})
    return edm(net, text={"words": Words(["red", "blue"], 8, 1, 2), "bytes": Bytes(8, 1, 2, 16)})


def experts(own: tuple[str, ...] = ("*",)) -> NoiseBandExperts:
    """Of seed 2 the first two steps belong to two different experts."""
    bands = Bands(LogNormal(), (0.0, 0.5, 1.0))
    return NoiseBandExperts(Experts(unet(), bands, own=own), shape=(1, 8, 8), sampler=Heun(4), seed=2)


def super_resolution(**options: Any) -> SuperResolution:
    net = unet(maps={"low_res": 1}, vectors={"augmentation": 1})
    return SuperResolution(Denoiser(net), shape=(1, 8, 8), factor=2, sampler=Heun(4), **options)


def instructed(**options: Any) -> InstructPix2Pix:
    net = unet(classes=0, maps={"source": 1}, tokens={"text": 8}, vectors={"text_pooled": 8})
    return InstructPix2Pix(Denoiser(net), shape=(1, 8, 8), text=Bytes(8, 1, 2, 16, reads="instruction"), sampler=Heun(4), **options)


def edits(n: int) -> dict[str, Any]:
    x = pictures(n)["x"]
    return {"x": x, "source": x.flip(-1), "instruction": [("mirror it", "turn it")[i % 2] for i in range(n)]}


def instructions(n: int) -> Cond:
    tokens = torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(n))
    return Cond(tokens={"text": tokens}, vectors={"text_pooled": tokens.mean(1)}, maps={"source": pictures(n)["x"].flip(-1)})


def small_pictures(n: int) -> Cond:
    return replace(labels(n), maps={"low_res": pictures(n)["x"][..., ::2, ::2].contiguous()})


def captioned(n: int) -> dict[str, Any]:
    return {"x": pictures(n)["x"], "text": [("red", "blue red")[i % 2] for i in range(n)]}


def prompts(n: int) -> Cond:
    tokens = {name: torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(n)) for name in ("words", "bytes")}
    return Cond(tokens=tokens, vectors={"words_pooled": tokens["words"].mean(1)})


def knowledge() -> KnowledgeEnhanced:
    """Key words of both encoders are marked and boosted, and the loss looks at boxes."""
    net = unet(classes=0, tokens={"words": 8, "bytes": 8}, vectors={"words_pooled": 8})
    text = {"words": Words(["red", "blue", "*"], 8, 1, 2), "bytes": Bytes(8, 1, 2, 16)}
    return KnowledgeEnhanced(Denoiser(net), shape=(1, 8, 8), text=text, key_words=KeyWords(marker="*"), boost=KeyWordBoost(1.0),
                             distance=ObjectRegions(1.0), sampler=Heun(4))  # fmt: skip


def boxed(n: int) -> dict[str, Any]:
    return {**captioned(n), "boxes": torch.tensor([[[1, 2, 5, 6]]]).expand(n, 1, 4), "rewritten": torch.arange(n) % 3}


def key_prompts(n: int) -> Cond:
    return replace(prompts(n), spans=[[TokenSpan("red", "words", 1, 1 + i % 3)] for i in range(n)])


def prior(**options: Any) -> Prior:
    net = PriorTransformer(6, width=16, depth=1, heads=2, tokens={"words": 8}, vectors={"words_pooled": 8})
    return Prior(Denoiser(net, X0Precond()), shape=(6,), codec=Standardised(0.1, 0.4), schedule=Cosine(), sampler=Heun(4),
                 text={"words": Words(["red", "blue"], 8, 1, 2)}, **options)  # fmt: skip


def embedded(n: int) -> dict[str, Any]:
    return {**captioned(n), "embedding": torch.randn(n, 6, generator=torch.Generator().manual_seed(n))}


def words(n: int) -> Cond:
    told = prompts(n)
    return replace(told, tokens={"words": told.tokens["words"]})


def cold(**options: Any) -> ColdDiffusion:
    module = ColdDiffusion(unet(), shape=(1, 8, 8), **{"degradation": Blur(4), **options})
    module.start.update(pictures(40)["x"], pictures(40)["label"])
    return module


def latent_edm() -> EDM:
    """The codec has fresh weights: the contract holds for any."""
    net = UNet(channels=2, classes=4, width=16, mults=(1,), blocks=1)
    return EDM(Denoiser(net), shape=(1, 8, 8), codec=KL(ConvAutoencoder(1, 2, 8, (1, 2))), sampler=Heun(4))


def new_word(**options: Any) -> TextualInversion:
    """A module whose encoders are words and bytes learns a word; its fresh weights are drawn, for zeros would pass no gradient on."""
    model = text_edm()
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return TextualInversion(model, word="sks", init="red", vectors=2, templates=("{}", "blue {}"), **options)


def vq(**options: Any) -> VQAutoencoder:
    codec = VQ(ConvAutoencoder(1, 4, 8, (1, 2), moments=False), Codebook(6, 4))
    return VQAutoencoder(codec, **{"shape": (1, 8, 8), "entropy": 0.1, **options})


def video(shown: bool = False, **options: Any) -> VideoDiffusion:
    net = VideoUNet(unet(**({"maps": {"given": 1, "known": 1}} if shown else {})), heads=2)
    return VideoDiffusion(Denoiser(net), shape=(1, 3, 8, 8), sampler=Heun(4), **options)


def sequence(**options: Any) -> SequenceDiffusion:
    net = WaveUNet(widths=(8, 8), factors=(2,), classes=4, maps={"given": 1, "known": 1})
    return SequenceDiffusion(Denoiser(net), shape=(1, 16), sampler=Heun(4), **options)


def upsampler(**options: Any) -> SuperResolution:
    net = WaveUNet(widths=(8, 8), factors=(2,), classes=4, maps={"low_res": 1}, vectors={"augmentation": 1})
    return SuperResolution(Denoiser(net), shape=(1, 16), factor=4, sampler=Heun(4), **options)


def sounds(n: int) -> dict[str, Any]:
    return {"x": torch.rand(n, 1, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1, "label": torch.arange(n) % 4}


def frame_rate() -> SuperResolution:
    net = VideoUNet(unet(maps={"low_res": 1, "original": 1}, vectors={"augmentation": 1}), (), None)
    return SuperResolution(Denoiser(net), shape=(1, 4, 8, 8), factor=(2, 2, 2), sampler=Heun(4))


def clips(n: int, frames: int = 3) -> dict[str, Any]:
    return {"x": torch.rand(n, 1, frames, 8, 8, generator=torch.Generator().manual_seed(n)) * 2 - 1, "label": torch.arange(n) % 4}


TECHNIQUES = {
    "edm": Case(edm, pictures, labels),
    "edm_unconditional": Case(lambda: edm(unet(classes=0)), pictures, lambda n: Cond()),
    "edm_flow": Case(lambda: edm(precond=FlowPrecond(), schedule=Flow()), pictures, labels),
    "edm_uncertainty": Case(lambda: edm(uncertainty=LearnedUncertainty()), pictures, labels),
    "edm_augment": Case(lambda: edm(unet(vectors={"augment": 9}), augment=AugmentPipe()), pictures, labels),
    "dit": Case(lambda: dit(sampler=Heun(4)), pictures, labels),
    "dit_learned_variance": Case(lambda: dit(2, variance=LearnedRange(DDPM(length=8, beta_end=0.5))), pictures, labels),
    "experts": Case(experts, pictures, labels),
    "experts_sharing": Case(lambda: experts(("*conv2*",)), pictures, labels),
    "rin": Case(rin, pictures, labels),
    "instruct_pix2pix": Case(instructed, edits, instructions),
    "super_resolution": Case(super_resolution, pictures, small_pictures),
    "progressive": Case(progressive, pictures, labels),
    "progressive_told": Case(lambda: progressive(Denoiser(unet(vectors={"guidance": 1})), scales=(1.0, 4.0)), pictures, labels),
    "guided": Case(lambda: GuidanceDistillation(Denoiser(unet()), shape=(1, 8, 8), sampler=Heun(4)), pictures, labels),
    "consistency": Case(lambda: consistency(sampler=MultiStep(2, Levels((80.0, 0.8)))), pictures, labels),
    "consistency_training": Case(lambda: consistency(solver=None), pictures, labels),
    "dmd": Case(dmd, pictures, labels),
    "dmd_few_steps": Case(lambda: dmd(discriminator=None, features=None, levels=(80.0, 1.0)), pictures, labels),
    "meanflow": Case(meanflow, pictures, labels),
    "masked_tokens": Case(masked_tokens, pictures, labels),
    "masked_text": Case(masked_text, captioned, lambda n: Cond(tokens=words(n).tokens)),
    "paella": Case(paella, pictures, labels),
    "paella_convnext": Case(paella_convnext, pictures, labels),
    "edm_text": Case(text_edm, captioned, prompts),
    "knowledge": Case(knowledge, boxed, key_prompts),
    "cold": Case(cold, pictures, labels),
    "cold_mask": Case(lambda: cold(degradation=GaussianMask(4, centred=False)), pictures, labels),
    "video": Case(video, clips, labels),
    "video_progressive": Case(lambda: progressive(Denoiser(VideoUNet(unet(), heads=2), VPrecond()), shape=(1, 3, 8, 8)), clips, labels),
    "video_stills": Case(lambda: video(stills=2), clips, labels),
    "video_shown": Case(lambda: video(shown=True), clips, labels),
    "video_frame_rate": Case(frame_rate, lambda n: clips(n, 4), lambda n: replace(labels(n), maps={"low_res": torch.zeros(n, 1, 2, 4, 4)})),
    "sequence_shown": Case(sequence, sounds, labels),
    "super_resolution_sound": Case(upsampler, sounds, lambda n: replace(labels(n), maps={"low_res": torch.zeros(n, 1, 4)})),
    "prior": Case(prior, embedded, words),
    "textual_inversion": Case(new_word, captioned, prompts),
    "vq": Case(vq, pictures, lambda n: Cond()),
    "latent": Case(latent_edm, pictures, labels),
    "autoencoder": Case(lambda: Autoencoder(KL(ConvAutoencoder(1, 2, 8, (1, 2))), shape=(1, 8, 8)), pictures, lambda n: Cond()),
}
