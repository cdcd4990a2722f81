"""Paella: tokens are found among random ones (Rampas et al. 2022, arXiv:2211.07292)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng
from ..conditions import Cond
from ..guidance import guided_logits
from ..module import Batch, DiffusionModule
from ..renoising import LeveledLogits, Renoising, spoilt
from ..tokenizers import Tokenizer, check_ids

__all__ = ["Paella"]

LEAST = 1e-3  # share of random codes: the smallest that is trained on


class Paella(DiffusionModule):
    """Trains a network to name all tokens of a picture of which some are random codes, and draws pictures by `diffx.renoising.Renoising`.

    Args:
        net: ``(ids (B, h, w), share (B,), cond) -> logits (B, h, w, codes)`` with the attribute ``codes``, such as
            `diffx.networks.TokenUNet`.
        codec: tokenizer with the same codebook, see `diffx.tokenizers`.
        smoothing: label smoothing of the cross-entropy, in [0, 1).
        clean: weight of a token that is not random when nothing else is, in [0, 1]. It rises to 1 with the share of random ones.
        sampler: used by `sample` unless another is given; 12 rounds by default.
        options: see `DiffusionModule`.

    Raises:
        ValueError: codebooks of different size, a smoothing or weight out of range.
    """

    trained = averaged = ("net", "text")

    def __init__(
        self, net: nn.Module, *, codec: Tokenizer, smoothing: float = 0.1, clean: float = 0.3, sampler: Renoising | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(codec=codec, **options)
        codes = int(net.codes)  # type: ignore[arg-type]
        if codes != codec.codebook_size:
            raise ValueError(f"the network knows {codes} codes, the codebook of the tokenizer has {codec.codebook_size}; make them equal")
        if not 0 <= smoothing < 1 or not 0 <= clean <= 1:
            raise ValueError(f"smoothing must lie in [0, 1) and clean in [0, 1], got {smoothing} and {clean}")
        self.net, self.codes, self.smoothing, self.clean = net, codes, smoothing, clean
        self.sampler: Any = sampler or Renoising()
        if self.text is not None:
            self.text.attach(net)

    def condition(self, batch: Batch) -> Cond:
        """Class label, sources of text and vectors by name, as far as the data has and the network takes them."""
        return self.conditions_of(batch, self.net)

    def loss(self, batch: Batch, u: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted cross-entropy ``"loss"`` ``(B,)`` in nats over all tokens, and the share of the random ones named right.

        At u a token is random with probability u (at least 0.001). Its weight is ``1 - (1 - random) (1 - u) (1 - clean)``.
        """
        ids, cond = self.inputs(batch)
        check_ids(ids, self.codes)
        share = (self.positions(len(ids)) if u is None else u).clamp_min(LEAST)
        noisy, hit = spoilt(ids, self._codes(ids), share)
        logits = self.net(noisy, share, cond).float()
        entropy = F.cross_entropy(logits.movedim(-1, 1), ids, reduction="none", label_smoothing=self.smoothing).flatten(1)
        hit = hit.flatten(1).to(entropy)
        weight = 1 - (1 - hit) * (1 - share[:, None]) * (1 - self.clean)
        right = (logits.detach().argmax(-1) == ids).flatten(1)
        return {"loss": (weight * entropy).sum(1) / weight.sum(1), "right": (right * hit).sum(1) / hit.sum(1).clamp_min(1)}

    def logits(self, cond: Cond, guidance: float = 1.0) -> LeveledLogits:
        """The network under guidance: ``untold + scale (told - untold)`` on the logits.

        Raises:
            ValueError: see `check_guidance`.
        """
        self.check_guidance(guidance, cond)
        return guided_logits(self.net, cond, guidance)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float = 1.0, sampler: Renoising | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """As in `DiffusionModule.sample`; all tokens are random at the start."""
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            codes = self._codes(torch.empty(size, device=self.device), generators)
            return walk(self.logits(cond, guidance), codes, codes, generator=generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def vary(self, x: Tensor, cond: Cond = Cond(), *, share: float = 0.5, guidance: float = 1.0, sampler: Renoising | None = None,
             seed: int = 0) -> Tensor:  # fmt: skip
        """Pictures like ``x`` ``(B, *shape)``: a share of their tokens becomes random, and the walk begins there.

        Args:
            x: in [-1, 1].
            cond: conditions of the new pictures, batch B or empty.
            share: of the tokens, in (0, 1]; the more, the less is left of x.
            guidance: as in `sample`.
            sampler: as in `sample`.
            seed: picture ``i`` is a function of ``x[i]`` and ``seed + i``.

        Raises:
            ValueError: a share out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        walk, generators = sampler or self.sampler, rng.sample_generators(seed, len(x))
        with self.drawing():
            ids = self.codec.encode(x.to(self.device))
            codes = self._codes(ids, generators)
            start, _ = spoilt(ids, codes, torch.full((len(x),), share, device=self.device), generators)
            return self.codec.decode(walk(self.logits(cond.to(self.device), guidance), start, codes, share, generators)).clamp(-1, 1)

    def progress(self, n: int, cond: Cond = Cond(), *, guidance: float = 1.0, sampler: Renoising | None = None,
                 seed: int = 0) -> Iterator[Tensor]:  # fmt: skip
        """What is drawn in each round: pictures ``(n, *shape)``. The last are those of `sample`."""
        walk, generators = sampler or self.sampler, rng.sample_generators(seed, n)
        with self.drawing():
            codes = self._codes(torch.empty(n, *self.codec.shape(self.shape), device=self.device), generators)
            for ids in walk.rounds(self.logits(cond.to(self.device), guidance), codes, codes, generator=generators):
                yield self.codec.decode(ids).clamp(-1, 1)

    def _codes(self, like: Tensor, generator: rng.Generators = None) -> Tensor:
        """Random codes (B, *), all alike often."""
        u = rng.rand(tuple(like.shape), generator, device=like.device)
        return (u * self.codes).long().clamp_max(self.codes - 1)
