"""Pictures edited by instructions: a denoiser that is shown the picture to change and told how (Brooks et al. 2023, arXiv:2211.09800)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide, PictureAndText
from ..module import Batch
from ..samplers import Sampler
from ..tensors import handed
from .edm import EDM

__all__ = ["SOURCE", "InstructPix2Pix"]

SOURCE = "source"


class InstructPix2Pix(EDM):
    """Denoising of edited pictures, shown the picture before the edit and told the instruction.

    Batches hold the edited picture "x", the picture before it, "source", and what the text encoders read, e.g. "instruction"
    (``{_target_: diffx.text.T5, reads: instruction}``). The network needs the map ``"source"`` with the channels of the (latent) data;
    it is concatenated clean.

    In training, of each sample one of three things is hidden with probability ``hidden`` each: the text, the picture, or both. So the two
    guidance scales of sampling contrast estimates that the network was trained for.

    Args:
        denoiser: network with preconditioning.
        hidden: share of the samples that do not see the text alone, the picture alone, both; at most 1/3.
        picture_guidance: scale by which the picture is kept where `sample` is given none.
        options: see `EDM`; ``hidden`` stands for its ``drop``.

    Raises:
        ValueError: ``hidden`` out of range, a network without the map, batches without "source".
    """

    source = SOURCE

    def __init__(self, denoiser: Denoiser, *, hidden: float = 0.05, picture_guidance: float = 1.5, **options: Any) -> None:
        if not 0 <= hidden <= 1 / 3:
            raise ValueError(f"hidden is the share of three kinds of samples each, in [0, 1/3]; got {hidden}")
        super().__init__(denoiser=denoiser, drop={"*": 2 * hidden, SOURCE: 2 * hidden}, **options)
        if not denoiser.takes(SOURCE):
            raise ValueError(f"the network is shown the picture to edit; build it with maps={{{SOURCE!r}: {self.latent_channels}}}")
        self.hidden, self.picture_guidance = hidden, picture_guidance

    @property
    def latent_channels(self) -> int:
        """Channels of what the network works on."""
        return self.codec.shape(self.shape)[0]

    @property
    def low_shape(self) -> tuple[int, ...]:
        """Shape of the picture to edit: that of the samples."""
        return self.shape

    def condition(self, batch: Batch) -> Cond:
        """As in `Gaussian`, with the picture to edit."""
        if SOURCE not in batch:
            raise ValueError(f"pictures before their edit are missing: a batch holds {sorted(batch)}, but no {SOURCE!r}")
        cond = super().condition(batch)
        return replace(cond, maps={**cond.maps, SOURCE: batch[SOURCE]})

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`, with the picture to edit encoded."""
        x, cond = super().inputs(batch)
        return x, self._encoded(cond)

    def hide(self, cond: Cond) -> Cond:
        """One draw per sample decides what is hidden: the text, both, the picture, or nothing."""
        place = handed(rng.rand((len(cond),)), self.device)
        text, picture = place >= 2 * self.hidden, (place < self.hidden) | (place >= 3 * self.hidden)
        return replace(cond, keep={**cond.keep, **dict.fromkeys(cond.names, text), SOURCE: picture})

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 7.5, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None,
               picture_guidance: float | None = None) -> Tensor:  # fmt: skip
        """As in `Gaussian`: edits of the pictures ``cond.maps["source"]`` (n, *shape) in [-1, 1].

        ``guidance`` is the scale of the text, ``picture_guidance`` that of the picture (see `diffx.guidance.PictureAndText`); a guide in
        place of the first replaces both.

        Raises:
            ValueError: no pictures to edit.
        """
        if SOURCE not in cond.maps:
            raise ValueError(f"there is nothing to edit: give Cond(maps={{{SOURCE!r}: (n, *{self.shape})}})")
        if isinstance(guidance, (int, float)):
            guidance = PictureAndText(float(guidance), self.picture_guidance if picture_guidance is None else picture_guidance, SOURCE)
        return super().sample(
            n, self._encoded(cond.to(self.device)), guidance=guidance, sampler=sampler, seed=seed, shape=shape, chunk=chunk
        )

    def _encoded(self, cond: Cond) -> Cond:
        return replace(cond, maps={**cond.maps, SOURCE: self.codec.encode(cond.maps[SOURCE])})
