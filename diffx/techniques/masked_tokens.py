"""MaskGIT: hidden tokens are predicted from the others and found in parallel (Chang et al. 2022, arXiv:2202.04200)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..guidance import guided_logits
from ..masking import CosineRatio, Logits, MaskLaw, ParallelDecoding, random_mask
from ..module import Batch, DiffusionModule
from ..tokenizers import Tokenizer, check_ids

__all__ = ["MaskedTokens"]


class MaskedTokens(DiffusionModule):
    """Trains a network to name the tokens that are hidden, and draws pictures by `diffx.masking.ParallelDecoding`.

    Args:
        net: ``(ids (B, h, w), cond) -> logits (B, h, w, codes)`` with the attributes ``codes`` and ``mask``, the id of a hidden token,
            such as `diffx.networks.TokenTransformer`.
        codec: tokenizer with the same codebook, see `diffx.tokenizers`.
        ratio: law of the share that is hidden in training; its argument is the position on the schedule, uniform in (0, 1).
        smoothing: label smoothing of the cross-entropy, in [0, 1).
        sampler: used by `sample` unless another is given; 8 rounds by default.
        options: see `DiffusionModule`.

    Raises:
        ValueError: codebooks of different size, a mask id inside the codebook, a smoothing out of range.
    """

    trained = averaged = ("net",)

    def __init__(
        self,
        net: nn.Module,
        *,
        codec: Tokenizer,
        ratio: MaskLaw = CosineRatio(),
        smoothing: float = 0.1,
        sampler: ParallelDecoding | None = None,
        **options: Any,
    ) -> None:
        super().__init__(codec=codec, **options)
        codes, mask = int(net.codes), int(net.mask)  # type: ignore[arg-type]
        if codes != codec.codebook_size:
            raise ValueError(f"the network knows {codes} codes, the codebook of the tokenizer has {codec.codebook_size}; make them equal")
        if 0 <= mask < codes:
            raise ValueError(f"the mask's id must lie outside the codebook [0, {codes}), got {mask}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
        self.net = net
        self.codes, self.mask = codes, mask
        self.ratio, self.smoothing = ratio, smoothing
        self.sampler: Any = sampler or ParallelDecoding()

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Cross-entropy ``"loss"`` ``(B,)`` in nats, averaged over the hidden tokens of each sample, and the share named right.

        At u the share ``ratio(u)`` is hidden: all tokens at 0, one at 1.
        """
        ids, cond = self.inputs(batch)
        check_ids(ids, self.codes)
        u = self.positions(len(ids)) if u is None else u
        n = torch.full((len(ids),), ids[0].numel(), device=ids.device)
        hidden = random_mask(self.ratio(u, n), tuple(ids.shape[1:]))
        logits = self.net(ids.masked_fill(hidden, self.mask), cond)[hidden].float()  # only these: logits over large codebooks are heavy
        target, row = ids[hidden], hidden.flatten(1).nonzero()[:, 0]
        entropy = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        right = (logits.detach().argmax(-1) == target).to(entropy)
        count = hidden.flatten(1).sum(1)

        def per_sample(value: Tensor) -> Tensor:
            return torch.zeros_like(count, dtype=value.dtype).index_add(0, row, value) / count

        return {"loss": per_sample(entropy), "right": per_sample(right)}

    def logits(self, cond: Cond, guidance: float | Tensor = 1.0) -> Logits:
        """The network under guidance: ``uncond + scale (cond - uncond)`` on the logits.

        Raises:
            ValueError: see `check_guidance`.
        """
        self.check_guidance(guidance, cond)
        return guided_logits(self.net, cond, guidance)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float = 1.0, sampler: ParallelDecoding | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `DiffusionModule.sample`; all tokens are hidden at the start."""
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            hidden = torch.full(size, self.mask, device=self.device)
            return walk(self.logits(cond, guidance), hidden, self.mask, generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def progress(self, n: int, cond: Cond = Cond(), *, guidance: float = 1.0, sampler: ParallelDecoding | None = None,
                 seed: int = 0) -> Iterator[Tensor]:  # fmt: skip
        """What is known after each round: pictures ``(n, *shape)``, hidden tokens drawn as code 0. The last are those of `sample`."""
        walk = sampler or self.sampler
        cond = cond.to(self.device)
        with self.drawing():
            hidden = torch.full((n, *self.codec.shape(self.shape)), self.mask, device=self.device)
            for ids in walk.rounds(self.logits(cond, guidance), hidden, self.mask, rng.sample_generators(seed, n)):
                yield self.codec.decode(ids.masked_fill(ids == self.mask, 0)).clamp(-1, 1)
