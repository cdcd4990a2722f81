"""MaskGIT: hidden tokens are predicted from the others and found in parallel (Chang et al. 2022, arXiv:2202.04200)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..guidance import Rising, guided_logits
from ..masking import CosineRatio, Logits, MaskLaw, ParallelDecoding, feathered, random_mask, touched
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

    trained = averaged = ("net", "text")

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
        if self.text is not None:
            self.text.attach(net)

    def condition(self, batch: Batch) -> Cond:
        """Class label, sources of text and vectors by name, as far as the data has and the network takes them."""
        return self.conditions_of(batch, self.net)

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

    def logits(self, cond: Cond, guidance: float | Rising = 1.0) -> Logits:
        """The network under guidance: ``untold + scale (told - untold)`` on the logits; the scale may rise as tokens become known.

        Raises:
            ValueError: see `check_guidance`.
        """
        self.check_guidance(guidance, cond)
        if not isinstance(guidance, Rising):
            return guided_logits(self.net, cond, guidance)
        return guided_logits(self.net, cond, lambda ids: guidance.at((ids != self.mask).flatten(1).float().mean(1)))

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Rising = 1.0, sampler: ParallelDecoding | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `DiffusionModule.sample`; all tokens are hidden at the start."""
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            hidden = torch.full(size, self.mask, device=self.device)
            return walk(self.logits(cond, guidance), hidden, self.mask, generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def edit(self, x: Tensor, mask: Tensor, cond: Cond = Cond(), *, ring: int = 1, feather: int = 0, guidance: float | Rising = 1.0,
             sampler: ParallelDecoding | None = None, seed: int = 0) -> Tensor:  # fmt: skip
        """Paint part of pictures anew: inpainting, with `shifted` outpainting, with another class in ``cond`` a change of class.

        Args:
            x: pictures ``(B, *shape)`` in [-1, 1].
            mask: ``(B, 1, H, W)``, 1 = regenerate, 0 = keep.
            cond: what the new pictures show, batch B or empty.
            ring: tokens around the mask that are found anew, too; of them only the feathered part shows.
            feather: pixels around the mask over which new and old are blended; 0 leaves every pixel outside the mask as it was.
            guidance: as in `sample`.
            sampler: as in `sample`.
            seed: picture ``i`` is a function of ``x[i]`` and ``seed + i``.

        Raises:
            ValueError: a mask of another size or outside [0, 1].
        """
        if tuple(mask.shape) != (len(x), 1, *x.shape[2:]) or not 0 <= float(mask.min()) <= float(mask.max()) <= 1:
            raise ValueError(f"mask must be (B, 1, H, W) = {(len(x), 1, *x.shape[2:])} in [0, 1], 1 = regenerate; got {tuple(mask.shape)} "
                             f"in [{float(mask.min()):g}, {float(mask.max()):g}]")  # fmt: skip
        walk, x, mask = sampler or self.sampler, x.to(self.device), mask.to(self.device, x.dtype)
        with self.drawing():
            ids = self.codec.encode(x)
            hidden = ids.masked_fill(touched(mask, ids.shape[1:], ring), self.mask)
            found = walk(self.logits(cond.to(self.device), guidance), hidden, self.mask, rng.sample_generators(seed, len(x)))
            return x.lerp(self.codec.decode(found).clamp(-1, 1), feathered(mask, feather))

    def progress(self, n: int, cond: Cond = Cond(), *, guidance: float | Rising = 1.0, sampler: ParallelDecoding | None = None,
                 seed: int = 0) -> Iterator[Tensor]:  # fmt: skip
        """What is known after each round: pictures ``(n, *shape)``, hidden tokens drawn as code 0. The last are those of `sample`."""
        walk = sampler or self.sampler
        cond = cond.to(self.device)
        with self.drawing():
            hidden = torch.full((n, *self.codec.shape(self.shape)), self.mask, device=self.device)
            for ids in walk.rounds(self.logits(cond, guidance), hidden, self.mask, rng.sample_generators(seed, n)):
                yield self.codec.decode(ids.masked_fill(ids == self.mask, 0)).clamp(-1, 1)
