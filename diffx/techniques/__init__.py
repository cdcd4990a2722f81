"""Techniques: one LightningModule per file."""

from .autoencoder import Autoencoder
from .cold import ColdDiffusion
from .consistency import ConsistencyDistillation
from .dit import DiTDiffusion
from .dit import LearnedRange as LearnedRange
from .dmd import DMD
from .edm import EDM
from .experts import NoiseBandExperts
from .experts import expert_tree as expert_tree
from .experts import inherit as inherit
from .guided import GuidanceDistillation
from .instruct_pix2pix import InstructPix2Pix
from .knowledge import KnowledgeEnhanced
from .masked_tokens import MaskedTokens
from .meanflow import MeanFlow
from .paella import Paella
from .prior import Prior
from .progressive import ProgressiveDistillation
from .rin import RINDiffusion
from .sequence import SequenceDiffusion
from .super_resolution import SuperResolution
from .textual_inversion import TextualInversion
from .video import VideoDiffusion
from .vq import VQAutoencoder

__all__ = [
    "DMD",
    "EDM",
    "Autoencoder",
    "ColdDiffusion",
    "ConsistencyDistillation",
    "DiTDiffusion",
    "GuidanceDistillation",
    "InstructPix2Pix",
    "KnowledgeEnhanced",
    "MaskedTokens",
    "MeanFlow",
    "NoiseBandExperts",
    "Paella",
    "Prior",
    "ProgressiveDistillation",
    "RINDiffusion",
    "SequenceDiffusion",
    "SuperResolution",
    "TextualInversion",
    "VQAutoencoder",
    "VideoDiffusion",
]
