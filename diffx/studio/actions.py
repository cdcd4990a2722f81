"""What the studio does: values of a page in, pictures out. Nothing here knows of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import media
from ..conditions import Cond
from ..editing import Editor, PromptToPrompt
from ..guidance import PaintWithWords
from ..samplers import Euler

__all__ = ["COLOURS", "Studio", "strokes"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 60, 60),
    "green": (60, 170, 80),
    "blue": (70, 110, 230),
    "orange": (240, 160, 40),
    "violet": (150, 80, 190),
    "grey": (120, 120, 120),
}
"""The brushes of paint-with-words, by name."""

LARGEST = 64  # samples of one request


class Studio:
    """A trained model behind a page.

    Args:
        module: a technique with a denoiser of pictures of 1 or 3 channels, told by text or class.

    Raises:
        ValueError: a module without denoiser, or of other data.
    """

    def __init__(self, module: Any) -> None:
        shape = tuple(module.shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"the studio shows pictures (1 or 3, H, W), the model makes {shape}")
        self.module, self.editor = module, Editor(module)
        self.reads_text = getattr(module, "text", None) is not None
        self.classes = int(getattr(getattr(module.denoiser.net, "conditions", None), "classes", 0))

    def sample(self, prompt: str, label: int | None, n: int, guidance: float, steps: int, seed: int) -> list[np.ndarray]:
        """``n`` pictures (H, W, 3) uint8 of a prompt, or a class.

        Raises:
            ValueError: numbers out of range, or a word that the model does not know.
        """
        if not 1 <= n <= LARGEST:
            raise ValueError(f"from 1 to {LARGEST} pictures at a time, got {n}")
        editor, cond = self._editor(guidance, steps, seed), self._told(prompt, label, n)
        return shown(self.module.sample(n, cond, guidance=guidance, sampler=editor.sampler, seed=int(seed), chunk=16))

    def paint(self, prompt: str, drawing: Mapping[str, Any] | None, phrases: Mapping[str, str], weight: float, n: int, guidance: float,
              steps: int, seed: int) -> list[np.ndarray]:  # fmt: skip
        """Pictures whose phrases lie where they were painted, first without and then with the strokes.

        Args:
            prompt: what is drawn.
            drawing: see `strokes`.
            phrases: colour of a brush -> phrase of the prompt; empty ones are left out.
            weight: how strongly.
            n: number of pictures.
            guidance: 1 is off.
            steps: of sampling.
            seed: picture ``i`` is a function of ``seed + i``.

        Raises:
            ValueError: nothing painted for a phrase, no phrase, or one that is not in the prompt.
        """
        wanted = {colour: phrase.strip() for colour, phrase in phrases.items() if phrase and phrase.strip()}
        if not wanted:
            raise ValueError("give at least one colour a phrase of the prompt")
        masks = strokes(drawing, self.module.shape[-2:])
        if bare := [f"{phrase!r} ({colour})" for colour, phrase in wanted.items() if not masks[colour].any()]:
            raise ValueError(f"nothing is painted for {', '.join(bare)}")
        regions = {phrase: torch.from_numpy(masks[colour]).float() for colour, phrase in wanted.items()}
        editor = self._editor(guidance, steps, seed)
        cond = editor.told(text=[prompt] * n, phrases=[list(regions)] * n)
        plain, painted = (editor.paint(cond, regions, brush=PaintWithWords(strength)) for strength in (0.0, weight))
        return shown(torch.cat([plain, painted]))

    def inpaint(self, drawing: Mapping[str, Any] | None, prompt: str, label: int | None, guidance: float, steps: int,
                seed: int) -> list[np.ndarray]:  # fmt: skip
        """The picture of the drawing with what was painted over drawn anew: mask and result.

        Raises:
            ValueError: no picture, or nothing painted.
        """
        x = self._picture(None if drawing is None else drawing.get("background"))
        hole = covered(drawing, self.module.shape[-2:])
        if not hole.any():
            raise ValueError("paint over the part that is to be drawn anew")
        mask = torch.from_numpy(hole).float()[None, None]
        out = self._editor(guidance, steps, seed).inpaint(x, mask, self._told(prompt, label, 1))
        return [*shown(mask.expand(-1, 3, -1, -1) * 2 - 1), *shown(out)]

    def img2img(self, picture: np.ndarray | None, prompt: str, label: int | None, strength: float, guidance: float, steps: int,
                seed: int) -> list[np.ndarray]:  # fmt: skip
        """The picture, noised by a share of the steps and drawn again."""
        x = self._picture(picture)
        return shown(self._editor(guidance, steps, seed).img2img(x, self._told(prompt, label, 1), strength=strength))

    def reword(self, source: str, target: str, mode: str, cross: float, self_attention: float, guidance: float, steps: int,
               seed: int) -> list[np.ndarray]:  # fmt: skip
        """Prompt-to-prompt: what the first prompt gives, and what the second gives with the attention of the first."""
        editor = self._editor(guidance, steps, seed)
        before, after = (editor.told(text=[text], words=True) for text in (source, target))
        out = editor.prompt_to_prompt(before, after, PromptToPrompt(mode, cross, self_attention))  # type: ignore[arg-type]
        return shown(torch.cat([out.source, out.target]))

    def attention(self, prompt: str, guidance: float, steps: int, seed: int) -> list[tuple[np.ndarray, str]]:
        """A picture and, for each word, where it was looked for; with captions."""
        editor = self._editor(guidance, steps, seed)
        out = editor.attention(editor.told(text=[prompt], words=True))
        maps = F.interpolate(out.maps, size=self.module.shape[-2:]).movedim(1, 0).expand(-1, 3, -1, -1) * 2 - 1
        return list(zip([*shown(out.pictures), *shown(maps)], [prompt, *out.phrases[0]], strict=True))

    # Borders ----------------------------------------------------------------------------------------------------------------------------

    def _editor(self, guidance: float, steps: int, seed: int) -> Editor:
        if steps < 1:
            raise ValueError(f"at least 1 step, got {steps}")
        return Editor(self.module, guidance=float(guidance), sampler=Euler(int(steps), self.editor.sampler.schedule), seed=int(seed))

    def _told(self, prompt: str, label: int | None, n: int) -> Cond:
        columns: dict[str, Any] = {"text": [prompt] * n} if self.reads_text and prompt.strip() else {}
        if self.classes and label is not None:
            if not 0 <= int(label) < self.classes:
                raise ValueError(f"the model knows the classes 0 to {self.classes - 1}, got {label}")
            columns["label"] = torch.full((n,), int(label), device=self.module.device)
        return self.editor.told(**columns) if columns else Cond()

    def _picture(self, picture: np.ndarray | None) -> Tensor:
        """A picture (H, W), (H, W, 3) or (H, W, 4) uint8 as (1, C, h, w) in [-1, 1], at the model's size."""
        if picture is None:
            raise ValueError("give a picture first")
        x = torch.from_numpy(np.ascontiguousarray(picture)).float()
        x = x[..., None].expand(-1, -1, 3) if x.ndim == 2 else x
        if x.shape[-1] == 4:  # over white
            x = x[..., :3] * (x[..., 3:] / 255) + 255 - x[..., 3:]
        x = F.interpolate(x.movedim(-1, 0)[None], size=tuple(self.module.shape[-2:]), mode="bicubic", antialias=True)
        x = (x / 127.5 - 1).clamp(-1, 1)
        return (x if self.module.shape[0] == 3 else x.mean(1, keepdim=True)).to(self.module.device)


def strokes(drawing: Mapping[str, Any] | None, size: Sequence[int]) -> dict[str, np.ndarray]:
    """Where each brush of `COLOURS` painted: colour -> bool (h, w).

    Args:
        drawing: ``{"layers": [(H, W, 4) uint8, ...]}``, the layers of an image editor; a pixel belongs to the nearest colour where a layer
            is more than half opaque, the upper layer first.
        size: (h, w) of the masks.
    """
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=np.float32)
    owner: np.ndarray | None = None
    for layer in (drawing or {}).get("layers", ()):
        pixels = np.asarray(layer, dtype=np.float32)
        nearest = ((pixels[..., None, :3] - values) ** 2).sum(-1).argmin(-1)
        owner = np.full(nearest.shape, -1) if owner is None else owner
        owner = np.where(pixels[..., 3] > 127, nearest, owner)
    if owner is None:
        return {name: np.zeros(tuple(size), dtype=bool) for name in names}
    return {name: _resized(owner == place, size) for place, name in enumerate(names)}


def covered(drawing: Mapping[str, Any] | None, size: Sequence[int]) -> np.ndarray:
    """Where anything was painted: bool (h, w)."""
    layers = [np.asarray(layer)[..., 3] > 127 for layer in (drawing or {}).get("layers", ())]
    return _resized(np.any(layers, 0), size) if layers else np.zeros(tuple(size), dtype=bool)


def shown(x: Tensor) -> list[np.ndarray]:
    """Pictures (B, C, H, W) in [-1, 1] as (H, W, 3) uint8, enlarged by a whole factor where they are small."""
    by = max(1, 256 // max(x.shape[-2:]))
    rgb = x.float().cpu().expand(-1, 3, -1, -1).repeat_interleave(by, 2).repeat_interleave(by, 3)
    return [picture.movedim(0, -1).numpy() for picture in media.to_uint8(rgb)]


def _resized(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A mask at another size; a place belongs to it where at least half of it does."""
    height, width = size
    area = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], (height, width))[0, 0]
    return area.numpy() >= 0.5
