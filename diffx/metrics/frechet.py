"""Frechet distance between two sets of features, and the moments it is made of.

Both sets are summarised by mean and covariance; the distance is that between the two Gaussians with these moments (Dowson & Landau 1982;
Heusel et al. 2017 use it on Inception features and call it FID). It sees two moments and nothing else: a picture-less Gaussian fitted to
the data passes, which is why a claim never rests on this figure alone. Its upward bias shrinks like one over the sample count: compare
equal counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .features import rows

__all__ = ["Moments", "frechet", "gathered"]


class Moments:
    """Mean and covariance of (N, D) features, gathered in one pass and in float64.

    Shards may be gathered anywhere and merged: the result equals that of the whole set up to rounding (Chan, Golub & LeVeque 1979, the
    pairwise update).

    Args:
        features: optional first batch (N, D).
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # (D,), empty until there is an item
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # (D, D) sum of outer products of deviations from the mean
        if features is not None:
            self.update(features)

    def update(self, features: Tensor) -> Moments:
        """Add a batch (N, D) of features and return self.

        Raises:
            ValueError: not (N, D), not finite, or another D than before.
        """
        features = rows(features)
        batch = Moments()
        batch.count = len(features)
        batch.mean = features.mean(0)
        deviation = features - batch.mean
        batch.scatter = deviation.T @ deviation
        return self.merge(batch)

    def merge(self, *others: Moments) -> Moments:
        """Add the moments of other shards, any of which may be empty, and return self.

        Raises:
            ValueError: the shards have features of different width.
        """
        for other in others:
            if not other.count:
                continue
            if not self.count:
                self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
                continue
            if self.mean.shape != other.mean.shape:
                raise ValueError(f"moments of {len(self.mean)} and of {len(other.mean)} features cannot be merged")
            total = self.count + other.count
            gap = other.mean - self.mean
            self.scatter += other.scatter + torch.outer(gap, gap) * (self.count * other.count / total)
            self.mean += gap * (other.count / total)
            self.count = total
        return self

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Moments:
        """Gather a stream of (N, D) batches."""
        moments = cls()
        for batch in batches:
            moments.update(batch)
        return moments

    @property
    def covariance(self) -> Tensor:
        """(D, D) unbiased covariance.

        Raises:
            ValueError: fewer than two items were gathered.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 items, got {self.count}")
        return self.scatter / (self.count - 1)


def gathered(features: Tensor) -> Tensor | Moments:
    """What to keep of a set (N, D) that others are compared with: its moments, or where N < D the rows, which are fewer numbers."""
    return features if len(features) < features.shape[1] else Moments(features)


def frechet(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Squared Frechet distance ``|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` of two feature sets (N, D) or their `Moments`.

    The last trace is the sum of the singular values of ``A^1/2 B^1/2``: only symmetric eigenproblems and one SVD, so covariances of any
    rank are fine and the result is symmetric, real and not negative. Where a set of fewer than D features is given itself, with rows X
    about their mean, it is the sum of the roots of the eigenvalues of ``X B X^T / (N - 1)``, which is a small matrix. Where both are,
    it is that of the singular values of ``X Y^T`` over ``((N - 1) (M - 1))^1/2``, and no covariance is made. Units: squared feature
    units, summed over D.

    Raises:
        ValueError: the sets have features of different width or fewer than two items.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor) and max(len(a), len(b)) < a.shape[-1]:
        return _between_rows(rows(a), rows(b))
    one, two = (s if isinstance(s, Moments) else Moments(s) for s in (a, b))
    left, right = one.covariance, two.covariance
    _check_width(len(left), len(right))
    overlap = _overlap((a, one, right), (b, two, left))
    distance = (one.mean - two.mean).square().sum() + left.trace() + right.trace() - 2 * overlap
    return max(distance.item(), 0.0)


def _between_rows(a: Tensor, b: Tensor) -> float:
    _check_width(a.shape[1], b.shape[1])
    for given in (a, b):
        if len(given) < 2:
            raise ValueError(f"a covariance needs at least 2 items, got {len(given)}")
    means = (a.mean(0), b.mean(0))
    left, right = ((given - mean) / (len(given) - 1) ** 0.5 for given, mean in zip((a, b), means, strict=True))
    overlap = torch.linalg.svdvals(left @ right.T).sum()
    distance = (means[0] - means[1]).square().sum() + left.square().sum() + right.square().sum() - 2 * overlap
    return max(distance.item(), 0.0)


def _check_width(left: int, right: int) -> None:
    if left != right:
        raise ValueError(f"the two sets must have features of one width, got {left} and {right}")


def _overlap(*sides: tuple[Tensor | Moments, Moments, Tensor]) -> Tensor:
    """Trace of the geometric mean of the covariances; each side is (what was given, its moments, the other's covariance)."""
    for given, own, other in sides:
        if isinstance(given, Tensor) and own.count < len(other):
            deviation = rows(given) - own.mean
            return _roots(torch.linalg.eigvalsh(deviation @ other @ deviation.T / (own.count - 1))).sum()
    roots = []
    for _, _, covariance in sides:
        values, vectors = torch.linalg.eigh(covariance)
        roots.append((vectors * _roots(values)) @ vectors.T)
    return torch.linalg.svdvals(roots[0] @ roots[1]).sum()


def _roots(values: Tensor) -> Tensor:
    """Roots of rising eigenvalues; those at the level of rounding count as zero, since the root would lift 1e-16 to 1e-8."""
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, values, 0.0).sqrt()
