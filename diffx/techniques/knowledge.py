"""Knowledge enhancement: key words that the network attends to, objects that the loss looks at (ERNIE-ViLG 2.0, arXiv:2210.15257)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..distances import Distance
from ..guidance import Guide, KeyWordBoost
from ..module import Batch
from ..rng import noised
from ..text import KeyWords
from .edm import EDM

__all__ = ["KnowledgeEnhanced"]

FATES = {"appended": 1, "replaced": 2}


class KnowledgeEnhanced(EDM):
    """`EDM` that is told which words of a caption and which regions of a picture matter.

    | what | where | off |
    |---|---|---|
    | attention to key words | ``key_words`` finds them, ``boost`` raises the attention | ``boost=None`` |
    | marks before key words | ``key_words`` with a marker | no marker (the default) |
    | loss on objects | ``distance``: `diffx.distances.ObjectRegions` | ``distance=None`` (the default) |
    | captions that tell what they left out | the data: `diffx.data.Annotated` | other data |

    Key words are those of the batch's "spans" where it has them, else what ``key_words`` finds in "text"; they concern the encoders that
    read "text".

    Args:
        denoiser: network with preconditioning; its network attends to tokens.
        key_words: finds and marks them; None leaves spans as the data gives them and finds none.
        boost: what happens in the attention, None = nothing.
        boosted: "both" in training and sampling, or in "train" only.
        distance: the error of an estimate; the mean square by default.
        options: see `EDM`.

    Raises:
        ValueError: an unknown ``boosted``, or a boost for a network that attends to no tokens.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        key_words: KeyWords | None = KeyWords(),
        boost: KeyWordBoost | None = KeyWordBoost(),
        boosted: Literal["both", "train"] = "both",
        distance: Distance | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, distance=distance, **options)
        if boosted not in ("both", "train"):
            raise ValueError(f"boosted must be 'both' or 'train', got {boosted!r}")
        conditions = getattr(denoiser.net, "conditions", None)
        if boost is not None and conditions is not None and not conditions.tokens:
            raise ValueError("the attention to key words is to be raised, but the network attends to no tokens; build it with "
                             "tokens={text: width}, or set boost = None")  # fmt: skip
        self.key_words, self.boost, self.boosted = key_words, boost, boosted

    def condition(self, batch: Batch) -> Cond:
        """As in `EDM`, with the key words as spans."""
        if self.key_words is None or "text" not in batch:
            return super().condition(batch)
        texts, spans = [], []
        for text, given in zip(batch["text"], batch.get("spans") or [None] * len(batch["text"]), strict=True):
            words = [] if text is None else self.key_words.find(text, given)
            told, words = (None, []) if text is None else self.key_words.mark(text, words, training=self.training)
            texts.append(told)
            spans.append(words)
        return super().condition({**batch, "text": texts, "spans": spans})

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """As in `EDM`; where captions were rewritten, also the shares "appended" and "replaced", each ``(B,)``."""
        x, cond = self.inputs(batch)
        sigma = self.schedule.sigma(self.positions(len(x)) if u is None else u)
        denoiser = self.denoiser if self.boost is None else self.boost(self.denoiser)
        errors = self.errors(denoiser(noised(x, sigma), sigma, cond), x, sigma, batch)
        fates = {name: (batch["rewritten"] == fate).float() for name, fate in FATES.items()} if "rewritten" in batch else {}
        return {**errors, **fates}

    def guided(self, n: int, cond: Cond, guidance: Any) -> tuple[Cond, Guide]:
        """As in `Gaussian`, with more attention to key words under every guide."""
        cond, guide = super().guided(n, cond, guidance)
        if self.boost is None or self.boosted == "train":
            return cond, guide
        boost = self.boost
        return cond, lambda denoiser, cond: guide(boost(denoiser), cond)  # type: ignore[arg-type]
