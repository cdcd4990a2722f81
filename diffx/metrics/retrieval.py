"""Caption retrieval: among ten real pictures, is the one whose caption was asked for the nearest to the sample?"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng
from .features import Pixels, extract
from .figures import Evidence, Figure, Unsuited

__all__ = ["retrieval_figure"]


def retrieval_figure(pictures: Tensor, ways: int = 10) -> Figure:
    """``retrieval``: share of samples whose own real picture is the nearest of ``ways`` with different captions (Euclidean, on pixels).

    The other pictures are drawn for each sample from those asked for; chance is 1 / ways. Detail "shuffled" is the same share when each
    sample is judged by another one's caption.

    Args:
        pictures: (N, *) in [-1, 1], the real picture whose caption each sample was asked to show, in the order of the samples.
        ways: how many pictures a sample is compared with, 2 or more.
    """

    def compute(evidence: Evidence) -> dict[str, dict[str, object]]:
        real, own = extract(Pixels(), pictures).unique(dim=0, return_inverse=True)
        if len(real) < ways:
            raise Unsuited(f"retrieval among {ways} needs as many different pictures, got {len(real)}")
        samples = extract(Pixels(), evidence.samples)
        keys = torch.rand(len(samples), len(real), generator=rng.generator(evidence.seed, "retrieval"))
        order = rng.permutation(len(samples), evidence.seed, "shuffled prompts")

        def share(given: Tensor, wanted: Tensor) -> float:
            others = keys.scatter(1, wanted[:, None], 2.0).topk(ways).indices  # its own comes first, the others at random
            nearest = (real[others] - given[:, None]).square().sum(-1).argmin(1)
            return (nearest == 0).double().mean().item()

        return {"retrieval": {"value": share(samples, own), "shuffled": share(samples, own[order])}}

    return Figure(("retrieval",), compute)
