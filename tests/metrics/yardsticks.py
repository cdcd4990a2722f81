"""Real digits and generators that never moved a network: what the figures are calibrated on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from diffx import rng


@dataclass
class Split:
    train: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def split_digits(seed: int) -> Split:
    """1,500 training and 297 unseen digits, (N, 1, 8, 8) in [-1, 1]."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target).long()
    order = rng.permutation(len(x), seed, "test split")
    seen, unseen = order[:1500], order[1500:]
    return Split(x[seen], labels[seen], x[unseen], labels[unseen])


def class_gaussian(split: Split, labels: Tensor, seed: int = 0) -> Tensor:
    """Samples of one Gaussian per class, fitted to the training digits: no picture in it, not clipped."""
    x = split.train.flatten(1).double()
    samples = torch.empty(len(labels), x.shape[1], dtype=torch.float64)
    for c in labels.unique():
        own = x[split.labels == c]
        root = torch.linalg.cholesky(own.T.cov() + 1e-9 * torch.eye(x.shape[1]))
        noise = torch.randn(int((labels == c).sum()), x.shape[1], generator=rng.generator(seed, int(c)), dtype=torch.float64)
        samples[labels == c] = own.mean(0) + noise @ root.T
    return samples.float().view(-1, 1, 8, 8)


def class_means(split: Split, labels: Tensor) -> Tensor:
    """The mean training digit of each class."""
    return torch.stack([split.train[split.labels == c].mean(0) for c in range(10)])[labels]
