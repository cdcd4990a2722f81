"""Networks: plain ``nn.Module``s with one contract, ``forward(x (B, C, *), noise (B,), cond) -> (B, C_out, *)`` or ``(output, extra)``."""

from .attention import AttentionController, Site, attention_control
from .autoencoder import ConvAutoencoder
from .border import Conditions
from .control import added_control
from .dance_unet import DanceUNet
from .diffwave import DiffWave
from .dit import DiT
from .efficient_unet import EfficientUNet
from .low_rank import LowRank
from .mlp import MLP
from .mousai_unet import MousaiUNet
from .mp_unet import MPUNet
from .patch_critic import PatchCritic
from .placed import Placed
from .prior_transformer import PriorTransformer
from .rin import RIN
from .song_unet import SongUNet
from .space_to_depth import SpaceToDepth
from .token_convnext import TokenConvNeXt
from .token_transformer import TokenTransformer
from .token_unet import TokenUNet
from .unet import UNet, levels_at
from .units import Unit, checkpoint_activations, units
from .uvit import UViT
from .video_unet import VideoUNet
from .wave_unet import WaveUNet

__all__ = [
    "MLP",
    "RIN",
    "AttentionController",
    "Conditions",
    "ConvAutoencoder",
    "DanceUNet",
    "DiT",
    "DiffWave",
    "EfficientUNet",
    "LowRank",
    "MPUNet",
    "MousaiUNet",
    "PatchCritic",
    "Placed",
    "PriorTransformer",
    "Site",
    "SongUNet",
    "SpaceToDepth",
    "TokenConvNeXt",
    "TokenTransformer",
    "TokenUNet",
    "UNet",
    "UViT",
    "Unit",
    "VideoUNet",
    "WaveUNet",
    "added_control",
    "attention_control",
    "checkpoint_activations",
    "levels_at",
    "units",
]
