"""Models of transformers that describe pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Annotation, normalise
from ..recipes import recorded
from ..recipes.record import public_name
from ..text.encoder import hash_weights
from ..text.library import Precision, load_part, precision, transformers

__all__ = ["Captioner"]


@recorded
class Captioner(nn.Module):
    """A model of transformers that writes a caption from the picture alone: BLIP, GIT, a vision encoder with a language decoder.

    Decoding is greedy, so that a picture has one caption.

    Args:
        path: folder with weights, image processor and tokenizer, or ``hub:NAME``, which lets transformers download NAME.
        most: at most this many new tokens.
        dtype: ``"float32"`` or ``"bfloat16"``.
        device: where it runs.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: there is no such model at ``path``.
    """

    def __init__(self, path: str, *, most: int = 40, dtype: Precision = "float32", device: str = "cpu") -> None:
        super().__init__()
        library, self.most, self.device = transformers(), most, torch.device(device)
        self.images = load_part(library.AutoImageProcessor.from_pretrained, path)
        self.words = load_part(library.AutoTokenizer.from_pretrained, path)
        self.model = load_part(library.AutoModelForImageTextToText.from_pretrained, path, dtype=precision(dtype))
        self.requires_grad_(False).eval().to(self.device)
        about = {"class": public_name(type(self)), "images": self.images.to_dict(), "words": sorted(self.words.get_vocab().items()),
                 "most": most, "weights": hash_weights(self.model)}  # fmt: skip
        self.fingerprint = f"Captioner {hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]}"

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> list[Annotation]:
        """Captions of the pictures ``batch["x"]`` (B, 3, H, W), uint8 or floats in [-1, 1]."""
        x: Tensor = batch["x"]
        x = (normalise(x) if x.dtype == torch.uint8 else x).clamp(-1, 1)
        pictures = [((picture + 1) * 127.5).round().byte().numpy() for picture in x.cpu()]
        pixels = self.images(images=pictures, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        kind = next(self.model.parameters()).dtype
        ids = self.model.generate(pixel_values=pixels.to(self.device, kind), max_new_tokens=self.most, do_sample=False, num_beams=1)
        texts = self.words.batch_decode(ids, skip_special_tokens=True)
        return [Annotation(caption=text.strip()) for text in texts]
