"""Figures: what is measured on a set of samples, each a small function of the evidence, none tied to one data set.

A figure says which evidence it needs; where that is missing (no labels, no held-out items, too many pixels) it is skipped with the reason.
To add a figure, append a `Figure` to the list given to `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .. import rng
from .features import Features, Pixels, extract
from .frechet import frechet, gathered
from .judge import ClassJudge
from .kid import kid
from .nearest import median_interval, nearest
from .precision_recall import precision_recall

__all__ = ["FIGURES", "PUBLISHED", "Evidence", "Figure", "Unsuited", "figure_names", "measure"]

JUDGE_PIXELS = 4096  # beyond this many numbers an item, a classifier on bare pixels says nothing
FLOOR_DRAWS = 5
PUBLISHED = ("fid", "fvd")  # features by whose name the Frechet distance on them is known
Results: TypeAlias = dict[str, dict[str, Any]]


class Unsuited(ValueError):
    """Raised by a figure on evidence that it can say nothing about; `measure` notes the reason and goes on."""


@dataclass(eq=False)
class Evidence:
    """What figures are computed from; absent parts are None.

    Args:
        samples: (N, *) generated, in [-1, 1].
        train: (M, *) the items trained on, all of them or a subset.
        labels: (N,) the class that each sample was asked to show.
        train_labels: (M,) the class of each training item.
        held_out: (H, *) items that were not trained on.
        held_out_labels: (H,) their classes.
        features: what `frechet`, `kid`, precision and recall compare; distances to the nearest item are always on pixels.
        seed: of every random choice inside a figure.
        real_features: how features of real items are had; `remembered` keeps them on disk.
    """

    samples: Tensor
    train: Tensor
    labels: Tensor | None = None
    train_labels: Tensor | None = None
    held_out: Tensor | None = None
    held_out_labels: Tensor | None = None
    features: Features = field(default_factory=Pixels)
    seed: int = 0
    real_features: Callable[[Features, Tensor], Tensor] = extract

    @cached_property
    def sample_features(self) -> Tensor:
        """(N, D) features of the samples."""
        return extract(self.features, self.samples)

    @cached_property
    def train_features(self) -> Tensor:
        """(M, D) features of the training items."""
        return self.real_features(self.features, self.train)

    @cached_property
    def held_out_features(self) -> Tensor | None:
        """(H, D) features of the held-out items."""
        return None if self.held_out is None else self.real_features(self.features, self.held_out)

    def name(self, figure: str) -> str:
        """A figure's name on these features: bare on pixels, else with theirs; ``fid`` is `frechet` on features named "fid"."""
        return _named(figure, self.features)


@dataclass(frozen=True)
class Figure:
    """One or several numbers that are computed together.

    Args:
        names: what it measures (before `Evidence.name` adds the features).
        needs: the parts of `Evidence` it cannot do without.
        compute: evidence -> name -> {"value": number, further plain details}. A key "bound" is a bound that the figure itself demands.
            It raises `Unsuited` where the evidence does not suffice.
        on_features: it compares ``Evidence.features``, so that it can be computed once more on others; its names then carry theirs.
    """

    names: tuple[str, ...]
    compute: Callable[[Evidence], Results]
    needs: tuple[str, ...] = ()
    on_features: bool = False


def judged(evidence: Evidence) -> Results:
    """``accuracy``: share of samples to which a judge gives the class asked for. ``judge``: its own accuracy on real items it has not seen.

    The judge is trained on the training items; it never sees the held-out ones nor a sample.
    """
    if evidence.train[0].numel() > JUDGE_PIXELS:
        raise Unsuited(f"the judge looks at pixels and takes at most {JUDGE_PIXELS} numbers an item, got {evidence.train[0].numel()}")
    assert evidence.labels is not None and evidence.train_labels is not None
    judge = ClassJudge(seed=evidence.seed).fit(evidence.train.clamp(-1, 1), evidence.train_labels)
    cross = judge.cross_accuracy(evidence.train.clamp(-1, 1), evidence.train_labels)
    own = {"value": cross, "on": f"{len(evidence.train)} training items, 5-fold cross-validation", "trained_on": judge.trained_on}
    if evidence.held_out is not None and evidence.held_out_labels is not None:
        unseen = judge.accuracy(evidence.held_out.clamp(-1, 1), evidence.held_out_labels)
        own |= {"value": unseen, "on": f"{len(evidence.held_out)} held-out items", "cross_validated": cross}
    return {"accuracy": {"value": judge.accuracy(evidence.samples.clamp(-1, 1), evidence.labels)}, "judge": own}


def frechet_to_train(evidence: Evidence) -> Results:
    """``frechet`` of samples to the training items, with what real items score: as many as there are samples, and the held-out ones."""
    _at_least(2, evidence)
    reference = gathered(evidence.train_features)
    n, m = len(evidence.samples), len(evidence.train)
    draws = [torch.randint(m, (n,), generator=rng.generator(evidence.seed, "floor", i)) for i in range(FLOOR_DRAWS)]
    floors = [frechet(evidence.train_features[draw], reference) for draw in draws]
    figure = {
        "value": frechet(evidence.sample_features, reference),
        "floor": sum(floors) / FLOOR_DRAWS,
        "floor_is": f"mean over {FLOOR_DRAWS} draws of {n} training items with replacement against all {m}",
    }
    if evidence.held_out_features is not None and len(evidence.held_out_features) > 1:
        figure["held_out"] = frechet(evidence.held_out_features, reference)
        figure["held_out_is"] = f"{len(evidence.held_out_features)} held-out items against all {m}"
    return {"frechet": figure}


def kernel_distance(evidence: Evidence) -> Results:
    """``kid`` of samples to the training items; held-out items give the value of real ones, about 0."""
    _at_least(2, evidence)
    size = min(500, len(evidence.samples), len(evidence.train))
    value, spread = kid(evidence.sample_features, evidence.train_features, size=size, seed=evidence.seed)
    figure = {"value": value, "subset_std": spread, "subsets": 50, "subset_size": size}
    if evidence.held_out_features is not None and len(evidence.held_out_features) > 1:
        figure["held_out"], _ = kid(evidence.held_out_features, evidence.train_features, size=size, seed=evidence.seed)
    return {"kid": figure}


def support(evidence: Evidence) -> Results:
    """``precision`` and ``recall`` of samples against the training items, k = 3 and 5, with what the held-out items score."""
    _at_least(6, evidence)
    results: Results = {"precision": {}, "recall": {}}
    for key, k in (("value", 3), ("k5", 5)):
        pair = precision_recall(evidence.sample_features, evidence.train_features, k=k)
        for name, value in zip(results, pair, strict=True):
            results[name][key] = value
    if evidence.held_out_features is not None and len(evidence.held_out_features) > 3:
        pair = precision_recall(evidence.held_out_features, evidence.train_features, k=3)
        for name, value in zip(results, pair, strict=True):
            results[name]["held_out"] = value
    return results


def nearest_train(evidence: Evidence) -> Results:
    """``nearest``: median distance (pixels, Euclidean) of a sample to its nearest training item: large for blur and noise, 0 for copies.

    With held-out items it has a yardstick, their own median, and ``nearest_floor`` is the same number with a bound of its own: not below
    that median's 95 % interval, for then the samples sit closer to the training items than new real items do. ``copies`` is the share of
    samples nearer to a training item than any held-out item is.
    """
    pixels = Pixels()
    train = extract(pixels, evidence.train)
    distances, _ = nearest(extract(pixels, evidence.samples), train)
    figure: dict[str, Any] = {"value": distances.quantile(0.5).item(), "to": f"{len(train)} training items"}
    if evidence.held_out is None:
        return {"nearest": figure}
    real, _ = nearest(extract(pixels, evidence.held_out), train)
    low, high = median_interval(real, seed=evidence.seed)
    figure |= {"held_out": real.quantile(0.5).item(), "held_out_interval": [low, high]}
    figure["copies"] = (distances < real.min()).double().mean().item()
    return {"nearest": figure, "nearest_floor": {"value": figure["value"], "bound": f">= {low:.4f}", "held_out": figure["held_out"]}}


FIGURES: tuple[Figure, ...] = (
    Figure(("accuracy", "judge"), judged, needs=("labels", "train_labels")),
    Figure(("frechet",), frechet_to_train, on_features=True),
    Figure(("kid",), kernel_distance, on_features=True),
    Figure(("precision", "recall"), support, on_features=True),
    Figure(("nearest", "nearest_floor"), nearest_train),
)


def measure(evidence: Evidence, figures: Iterable[Figure] = FIGURES) -> tuple[Results, dict[str, str]]:
    """Compute every figure that the evidence allows.

    Returns:
        (name -> {"value", details}, name -> why it was skipped).

    Raises:
        ValueError: samples that are not finite, or not shaped like the training items.
    """
    if evidence.samples.shape[1:] != evidence.train.shape[1:]:
        shapes = [tuple(t.shape[1:]) for t in (evidence.samples, evidence.train)]
        raise ValueError(f"samples must be shaped like the training items, got {shapes[0]} and {shapes[1]}")
    if bad := (~evidence.samples.flatten(1).isfinite().all(1)).sum().item():
        raise ValueError(f"{bad} of {len(evidence.samples)} samples are not finite: the weights or the sampler have diverged")
    results: Results = {}
    skipped: dict[str, str] = {}
    for figure in figures:
        missing = [name for name in figure.needs if getattr(evidence, name) is None]
        try:
            found = {} if missing else figure.compute(evidence)
            reason = f"there are no {' and no '.join(missing)}" if missing else "there are no held-out items"
        except Unsuited as unsuited:
            found, reason = {}, str(unsuited)
        for name in figure.names:
            label = evidence.name(name) if figure.on_features else name
            if name in found:
                results[label] = found[name]
            else:
                skipped[label] = reason
    return results, skipped


def figure_names(features: Features | None = None) -> list[str]:
    """Names of all `FIGURES`, or of those that are computed again on ``features``."""
    if features is None:
        return [name for figure in FIGURES for name in figure.names]
    return [_named(name, features) for figure in FIGURES if figure.on_features for name in figure.names]


def _named(figure: str, features: Features) -> str:
    if features.name in PUBLISHED and figure == "frechet":
        return features.name
    return figure if isinstance(features, Pixels) else f"{figure}_{features.name}"


def _at_least(count: int, evidence: Evidence) -> None:
    if (found := min(len(evidence.samples), len(evidence.train))) < count:
        raise Unsuited(f"needs at least {count} samples and training items, got {found}")
