"""A U-Net over a grid of tokens that is told how many of them are random, the network of Paella (Rampas et al. 2022, arXiv:2211.07292).

Distinctive choices
- Tokens become vectors, the `UNet` of pictures works on the map of them, and its output is compared with the same table.
- A fresh network gives every code the same probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from ..tokenizers import check_ids
from .unet import UNet

__all__ = ["TokenUNet"]


@recorded
class TokenUNet(nn.Module):
    """Logits of every token given all of them, some random: ``(ids (B, h, w), share (B,), cond) -> (B, h, w, codes)``.

    Args:
        codes: size of the codebook.
        features: length of a token's vector.
        options: of the `UNet`; its sides are those of the grid.
    """

    def __init__(self, codes: int, features: int = 256, **options: Any) -> None:
        super().__init__()
        self.codes = codes
        self.table = nn.Embedding(codes, features)
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.unet = UNet(features, **options)
        self.conditions = self.unet.conditions
        self.bias = nn.Parameter(torch.zeros(codes))

    def forward(self, ids: Tensor, share: Tensor, cond: Cond | None = None) -> Tensor:
        """Logits ``(B, h, w, codes)`` of ids ``(B, h, w)`` of which the shares ``(B,)`` in [0, 1] are random.

        Raises:
            ValueError: ids outside the codebook or not on a grid; see also `UNet`.
        """
        if ids.ndim != 3:
            raise ValueError(f"ids must be (B, h, w), got {tuple(ids.shape)}")
        check_ids(ids, self.codes)
        x = self.unet(self.norm(self.table(ids)).movedim(-1, 1), 1000 * share, cond).movedim(1, -1)
        return F.linear(x, self.norm(self.table.weight), self.bias)
