"""Pictures as conditions: CLIP's image tower, e.g. for the style of a reference picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..recipes import recorded
from .encoder import Encoded, Encoder
from .library import Precision, load_part, precision, transformers

__all__ = ["CLIPImage"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pictures CLIP was trained on, in [0, 1]


@recorded
class CLIPImage(Encoder):
    """CLIP's image tower with its projection: pooled is the image embedding, the tokens are that one vector or all patches.

    Args:
        path: folder with weights, or ``hub:NAME``.
        config: entries of ``transformers.CLIPVisionConfig``, for random weights.
        tokens: ``"embedding"``: one token, the image embedding; ``"patches"``: the last states, class token first.
        dtype: ``"float32"`` or ``"bfloat16"`` (``"float64"`` for checks).
        reads: name of the batch column: pictures (B, 3, H, W) in [-1, 1].
        seed: of random weights.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there are no weights at ``path``.
        ValueError: both or neither of ``path`` and ``config``; when encoding, pictures that are not (B, 3, H, W).
    """

    TINY: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 24,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip

    def __init__(
        self, path: str | None = None, config: Mapping[str, Any] | None = None, *, tokens: Literal["embedding", "patches"] = "embedding",
        dtype: Precision = "float32", reads: str = "image", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(reads=reads, trainable=False)
        if (path is None) == (config is None):
            raise ValueError(f"CLIPImage takes a path or a config, got path = {path!r} and config = {config!r}")
        if tokens not in ("embedding", "patches"):
            raise ValueError(f"tokens must be 'embedding' or 'patches', got {tokens!r}")
        kind, library = precision(dtype), transformers()
        if path is not None:
            self.model = load_part(library.CLIPVisionModelWithProjection.from_pretrained, path, dtype=kind)
        else:
            with rng.forked("image encoder", seed):
                self.model = library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**(config or {}))).to(kind)
        about = self.model.config
        self.side, self.form = about.image_size, tokens
        self.pooled_dim = about.projection_dim
        self.dim = about.projection_dim if tokens == "embedding" else about.hidden_size
        self.freeze()

    @classmethod
    def tiny(cls, **options: Any) -> Self:
        """Random weights, width 32, two layers, pictures of 16 pixels."""
        return cls(config=cls.TINY, **options)

    def settings(self) -> Mapping[str, Any]:
        return {"tokens": self.form, "side": self.side}

    def encode(self, inputs: Tensor) -> Encoded:
        """Encode pictures (B, 3, H, W) in [-1, 1]; the middle square is taken, as CLIP does. Gradients flow into the pictures."""
        return self(inputs)

    def forward(self, inputs: Tensor) -> Encoded:
        """See `encode`."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] != 3:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"CLIPImage looks at RGB pictures (B, 3, H, W) in [-1, 1], got {got}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and inputs.requires_grad), torch.autocast(self.device.type, enabled=False):
            out = self.model(pixel_values=self._prepared(inputs))
            pooled = _wide(out.image_embeds)
            tokens = pooled[:, None] if self.form == "embedding" else _wide(out.last_hidden_state)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), pooled)

    def _prepared(self, x: Tensor) -> Tensor:
        """Resize the short side, cut the middle square, normalise."""
        kind = next(self.model.parameters()).dtype
        x = x.to(self.device, torch.promote_types(kind, torch.float32))
        height, width = x.shape[-2:]
        scale = self.side / min(height, width)
        size = [max(self.side, round(height * scale)), max(self.side, round(width * scale))]
        if size != [height, width]:
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        x = x[..., top : top + self.side, left : left + self.side]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return (((x.clamp(-1, 1) + 1) / 2 - mean) / std).to(kind)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
