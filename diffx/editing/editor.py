"""`Editor`: a trained model, pictures and prompts in, edited pictures out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoise, Denoiser
from ..guidance import Guide, PaintWithWords, as_guide, painted
from ..samplers import Ancestral, Euler, Sampler
from . import inpainting, starts
from .attention import Attended, WatchedAttention
from .diffedit import diffedit, difference_mask
from .imagic import Imagic, fit_imagic
from .inversion import Inversion, invert
from .masks import checked_mask, mixed
from .null_text import NullText, null_text_inversion
from .prompt_to_prompt import Edited, PromptToPrompt, prompt_to_prompt

__all__ = ["Editor"]


class Editor:
    """All edits with one model.

    Works on the module's latents where it has a codec, checks what it is given, and draws picture ``i`` from ``seed + i``.

    Args:
        module: a technique with a denoiser of Gaussian noise, such as `diffx.techniques.EDM`.
        guidance: of what an edit is to show: a number or a guide.
        sampler: whose steps are walked; by default 50 of `Euler` on the schedule of the module's own sampler.
        seed: of all noise.

    Raises:
        ValueError: a module without a denoiser.
    """

    def __init__(self, module: Any, *, guidance: float | Guide = 1.0, sampler: Sampler | None = None, seed: int = 0) -> None:
        if not hasattr(module, "denoiser") or not hasattr(module, "guided"):
            raise ValueError(f"edits need a technique with a denoiser, such as EDM; {type(module).__name__} has none")
        self.module, self.guidance, self.seed = module, guidance, seed
        self.sampler = sampler or Euler(50, module.sampler.schedule)

    # What it is told --------------------------------------------------------------------------------------------------------------------

    def told(self, *, words: bool = False, phrases: Sequence[Sequence[str]] | None = None, **columns: Any) -> Cond:
        """The conditions of a batch.

        Args:
            words: whether the spans of all words are wanted, as `prompt_to_prompt` needs them.
            phrases: the phrases of each text whose spans are wanted, as `paint` needs them.
            columns: by name, such as ``text=["a red circle"]`` or ``label=torch.tensor([3])``.

        Raises:
            ValueError: a column that nothing in the model reads, or a phrase that is not in its text.
        """
        text = columns.get("text")
        if words or phrases is not None:
            columns["spans"] = phrases if phrases is not None else [_words(line or "") for line in text or ()]
        with torch.no_grad():
            cond: Cond = self.module.condition(columns).to(self.module.device)
        if text is not None and not cond.tokens and not cond.vectors:
            raise ValueError(f"nothing in this {type(self.module).__name__} reads text; it was trained without")
        return cond

    def denoise(self, cond: Cond, guidance: float | Guide | None = None) -> Denoise:
        """The denoise function of conditions, under the editor's guidance or another."""
        n = max(1, len(cond))
        cond, guide = self.module.guided(n, cond, self.guidance if guidance is None else guidance)
        return guide(self.module.denoiser, cond)

    # Walks ------------------------------------------------------------------------------------------------------------------------------

    def img2img(self, x: Tensor, cond: Cond, *, strength: float = 0.6) -> Tensor:
        """See `diffx.editing.img2img`; pictures (B, *shape) in [-1, 1] in and out, as in all methods."""
        with self.module.drawing():
            out = starts.img2img(self.denoise(cond), self._encoded(x), strength, sampler=self.sampler, generator=self._generators(len(x)))
            return self._decoded(out)

    def magic_mix(self, x: Tensor, cond: Cond, *, mix: float = 0.5, strongest: float = 0.6, weakest: float = 0.3) -> Tensor:
        """See `diffx.editing.magic_mix`."""
        with self.module.drawing():
            options: dict[str, Any] = {"mix": mix, "strongest": strongest, "weakest": weakest}
            z, generator = self._encoded(x), self._generators(len(x))
            return self._decoded(starts.magic_mix(self.denoise(cond), z, **options, sampler=self.sampler, generator=generator))

    def inpaint(self, x: Tensor, mask: Tensor, cond: Cond, *, strength: float = 1.0) -> Tensor:
        """See `diffx.editing.inpaint`; the mask (B or 1, 1, H, W) is one of pixels, and what is kept comes out exactly."""
        with self.module.drawing():
            x, mask, z, hole = self._masked(x, mask)
            out = inpainting.inpaint(
                self.denoise(cond), z, hole, strength=strength, sampler=self.sampler, generator=self._generators(len(x))
            )
            return mixed(mask, self._decoded(out), x)

    def repaint(self, x: Tensor, mask: Tensor, cond: Cond, *, jump: int = 5, resamples: int = 5) -> Tensor:
        """See `diffx.editing.repaint`; walked by `Ancestral` on the levels of the editor's sampler."""
        with self.module.drawing():
            x, mask, z, hole = self._masked(x, mask)
            sampler = Ancestral(self.sampler.steps, self.sampler.schedule)
            out = inpainting.repaint(
                self.denoise(cond), z, hole, jump=jump, resamples=resamples, sampler=sampler, generator=self._generators(len(x))
            )
            return mixed(mask, self._decoded(out), x)

    def difference(self, x: Tensor, source: Cond, target: Cond, *, sigma: float = 1.0, draws: int = 10, threshold: float = 0.5) -> Tensor:
        """The mask (B, 1, *latent) where the guided target and the source disagree; see `diffx.editing.difference_mask`."""
        with self.module.drawing():
            toward, away = self.denoise(target), self.denoise(source, 1.0)
            options: dict[str, Any] = {"sigma": sigma, "draws": draws, "threshold": threshold}
            return difference_mask(toward, away, self._encoded(x), **options, generator=self._generators(len(x)))

    def diffedit(self, x: Tensor, source: Cond, target: Cond, mask: Tensor, *, strength: float = 0.8, fixed_point: int = 0) -> Tensor:
        """See `diffx.editing.diffedit`; the mask is that of `difference`."""
        with self.module.drawing():
            toward, away = self.denoise(target), self.denoise(source, 1.0)
            options: dict[str, Any] = {"strength": strength, "sampler": self.sampler, "fixed_point": fixed_point}
            return self._decoded(diffedit(toward, away, self._encoded(x), mask, **options))

    # Inversion --------------------------------------------------------------------------------------------------------------------------

    def invert(self, x: Tensor, cond: Cond, *, fixed_point: int = 0) -> Inversion:
        """See `diffx.editing.invert`; without guidance. The states are latents."""
        with self.module.drawing():
            return invert(self.denoise(cond, 1.0), self._encoded(x), sampler=self.sampler, fixed_point=fixed_point)

    def sample(self, path: Inversion, cond: Cond, guidance: float | Guide | None = None) -> Tensor:
        """Walk from the noise of an inversion to pictures, under the editor's guidance or another."""
        with self.module.drawing():
            return self._decoded(self.sampler(self.denoise(cond, guidance), path.noise))

    def null_text(self, path: Inversion, cond: Cond, *, guidance: float, iterations: int = 10, lr: float | None = None) -> NullText:
        """See `diffx.editing.null_text_inversion`; begins with the encoding of the empty text in every source of tokens.

        Raises:
            ValueError: the editor's sampler is not `Euler`, or the model has no encoder of text.
        """
        sources = self.module.text
        if not isinstance(self.sampler, Euler) or sources is None:
            raise ValueError(f"null-text inversion needs the sampler Euler and a model with text encoders, got {self.sampler}")
        empty = {name: sources.nothing(name).tokens for name in cond.tokens}
        with self.module.drawing():
            return null_text_inversion(self.module.denoiser, cond, path, empty, guidance=guidance, iterations=iterations, lr=lr)

    def imagic(self, x: Tensor, target: Cond, **options: Any) -> Imagic:
        """See `diffx.editing.fit_imagic`, whose further ``options`` may be given; one picture and one target."""
        with self.module.drawing():
            return fit_imagic(self.module.denoiser, self._encoded(x), target, self.module.schedule, seed=self.seed, **options)

    def blend(self, fitted: Imagic, target: Cond, share: float) -> Tensor:
        """A picture between the one that was fitted (share 0) and the target (1); see `diffx.editing.Imagic`."""
        with self.module.drawing():
            cond, guide = self.module.guided(1, fitted.cond(target, share), self.guidance)
            generators = self._generators(1)
            walked = self.sampler(guide(fitted.denoiser, cond), self._drawn(generators), generator=generators)
            return self._decoded(walked)

    # Attention --------------------------------------------------------------------------------------------------------------------------

    def prompt_to_prompt(self, source: Cond, target: Cond, edit: PromptToPrompt = PromptToPrompt(), *, path: Inversion | None = None,
                         guidance: float | Guide | None = None) -> Edited:  # fmt: skip
        """See `diffx.editing.prompt_to_prompt`; from fresh noise, or from that of an inversion to edit pictures that exist."""
        with self.module.drawing():
            noise = self._drawn(self._generators(len(source))) if path is None else path.noise
            guide = as_guide(self.guidance if guidance is None else guidance)
            self.module.check_guidance(self.guidance if guidance is None else guidance, source)
            out = prompt_to_prompt(self.module.denoiser, source, target, noise, edit, guidance=guide, sampler=self.sampler)
            return Edited(self._decoded(out.source), self._decoded(out.target), out.mask)

    def attention(self, cond: Cond) -> Attended:
        """New pictures, and where each phrase of ``cond.spans`` was looked for; see `diffx.editing.WatchedAttention`."""
        watched: list[WatchedAttention] = []

        def guide(denoiser: Denoiser, cond: Cond) -> Denoise:
            watched.append(WatchedAttention(denoiser, cond))
            return as_guide(self.guidance)(watched[0], cond)  # type: ignore[arg-type]

        self.module.check_guidance(self.guidance, cond)
        with self.module.drawing():
            generators = self._generators(len(cond))
            drawn = self.sampler(self.denoise(cond, guide), self._drawn(generators), generator=generators)
            return Attended(self._decoded(drawn), watched[0].maps(), watched[0].phrases)

    def paint(self, cond: Cond, regions: Mapping[str, Tensor], *, brush: PaintWithWords = PaintWithWords()) -> Tensor:
        """New pictures with phrases in their regions; see `diffx.guidance.painted` and `diffx.guidance.PaintWithWords`."""
        cond = painted(cond, {phrase: region.to(self.module.device) for phrase, region in regions.items()})

        def guide(denoiser: Denoiser, cond: Cond) -> Denoise:
            return as_guide(self.guidance)(brush(denoiser), cond)  # type: ignore[arg-type]

        self.module.check_guidance(self.guidance, cond)
        with self.module.drawing():
            generators = self._generators(len(cond))
            return self._decoded(self.sampler(self.denoise(cond, guide), self._drawn(generators), generator=generators))

    # Borders ----------------------------------------------------------------------------------------------------------------------------

    def _generators(self, n: int) -> list[torch.Generator]:
        return rng.sample_generators(self.seed, n)

    def _drawn(self, generators: list[torch.Generator]) -> Tensor:
        return rng.randn((len(generators), *self.module.codec.shape(self.module.shape)), generators, device=self.module.device)

    def _encoded(self, x: Tensor) -> Tensor:
        shape = tuple(self.module.shape)
        if x.shape[1:2] != shape[:1] or x.ndim != len(shape) + 1 or not x.is_floating_point():
            raise ValueError(f"pictures must be float (B, {', '.join(map(str, shape))}) in [-1, 1], got {tuple(x.shape)} {x.dtype}")
        if x.abs().max() > 1 + 1e-4:
            raise ValueError(f"pictures must lie in [-1, 1], got values from {float(x.min()):g} to {float(x.max()):g}")
        return self.module.codec.encode(x.to(self.module.device))

    def _masked(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures, mask, latents and the mask of latents, which reaches as far as any of its pixels."""
        x = x.to(self.module.device)
        mask, z = checked_mask(mask, x), self._encoded(x)
        hole = mask if z.shape[2:] == x.shape[2:] else F.adaptive_max_pool2d(mask, tuple(z.shape[2:]))
        return x, mask, z, hole

    def _decoded(self, z: Tensor) -> Tensor:
        return self.module.codec.decode(z).clamp(-1, 1)


def _words(text: str) -> list[tuple[str, int, int]]:
    """Every word of a text with its characters."""
    return [(match.group(), *match.span()) for match in re.finditer(r"\w+", text)]
