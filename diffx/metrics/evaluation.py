"""Evaluation: draw samples from a module, measure them against its data, judge a claim.

Everything that decides a figure stands in the report: sample count, seed, sampler, guidance, weights, features, the sizes of the sets
compared, and what real data scores under the same measure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..recipes import recipe_of
from ..recipes.runs import environment
from .claim import Claim
from .drawn import SampleParts, requests
from .embedded import draws_embeddings, embedded, embedding_figure
from .features import Features, extract
from .figures import FIGURES, PUBLISHED, Evidence, Figure, figure_names, measure
from .own import own_features, own_figures
from .real import asked_rows, real_items, take
from .remembered import remembered
from .report import write
from .restored import restored_figures

if TYPE_CHECKING:
    import lightning as L

    from ..module import DiffusionModule
    from ..samplers import Sampler

__all__ = ["evaluate", "requests"]


def evaluate(
    module: DiffusionModule, data: L.LightningDataModule, *, n: int | None = None, seed: int = 0, guidance: Any = 1.0,
    sampler: Sampler | None = None, claim: Mapping[str, Any] | None = None, features: Features | None = None, chunk: int = 250,
    items: int = 10_000, folder: str | Path | None = None, share: tuple[int, int] = (0, 1), name: str | None = None,
    about: Mapping[str, Any] | None = None, cache: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Draw samples from a module and measure them against its data.

    Args:
        module: anything with `DiffusionModule`'s ``sample`` and ``request`` or ``condition``; its weights are the caller's affair.
        data: a LightningDataModule; its training items are the reference, its validation items the held-out ones.
        n: number of samples; the claim's by default, else 1000.
        seed: sample ``i`` is a function of ``seed + i``. The figures' own random choices are always the same.
        guidance: as in ``module.sample``.
        sampler: replaces the module's own; also on the way back of modules that restore (see `restored_figures`).
        claim: the ``claim`` section of an experiment.
        features: a further extractor; what compares features is computed on it besides pixels (or what `own_features` says of the data),
            under its name.
        chunk: samples drawn at once.
        items: largest number of training and of held-out items used; more are thinned out at random, always the same way.
        folder: where ``<name>.json`` and ``<name>.png`` go, and until then the samples, ``chunk`` to a file: an evaluation that was
            interrupted goes on when it is called again. None writes nothing.
        share: (rank, number of processes) where several draw samples into one ``folder``; the one that finds all there measures them.
        name: of those files; says count, guidance, sampler and seed by default.
        about: facts to put first in the report, e.g. the checkpoint.
        cache: folder that keeps what ``features`` gives of real items for the next evaluation, see `remembered`.

    Returns:
        The report that is written as JSON. ``report["kept"]`` is True, False, or None where there is no claim or no verdict on all of it.

    Raises:
        ValueError: an unreadable claim, n < 1, no training items, samples that are not finite; several processes without a folder.
        Unfinished: samples that other processes draw are still missing.
    """
    if share[1] > 1 and folder is None:
        raise ValueError(f"{share[1]} processes need a folder to put their samples together")
    native = own_features(data)
    promise, n = _promised(claim or {}, [native, features], n, (*_judges(module, data, {}), *restored_figures(module, {})))
    train, held_out = (embedded(module, found or {}) for found in real_items(data, items))
    real, folder = held_out or train, None if folder is None else Path(folder)
    parts = SampleParts(module, real, n, guidance=guidance, sampler=sampler, seed=seed, chunk=chunk, folder=folder)
    clock = [time.process_time()]
    samples, labels = parts.draw(*share), parts.labels
    clock.append(time.process_time())
    more = (*_judges(module, data, take(real, asked_rows(real, n))), *restored_figures(module, held_out, sampler, chunk, native))
    figures, skipped = _measured(samples, labels, data, train, held_out, [native, features], more, cache)
    verdict = promise.verdict(figures, n, skipped)
    report = {
        **(about or {}),
        **{"samples": n, "seed": seed, "guidance": recipe_of(guidance), "sampler": recipe_of(sampler or getattr(module, "sampler", None))},
        **_compared(data, train, held_out, [native, features]),
        **{"figures": figures, "skipped": skipped, "claim": dict(claim or {}), "verdict": verdict, "kept": promise.kept(verdict)},
        "cpu_seconds": {"samples": round(clock[1] - clock[0], 2), "figures": round(time.process_time() - clock[1], 2)},
        "versions": _versions(),
    }
    if folder is None:
        return report
    written = write(report, samples, labels, folder, name)
    parts.remove()
    return {**report, "files": written}


def _promised(claim: Mapping[str, Any], features: Sequence[Features | None], n: int | None, own: Iterable[Figure]) -> tuple[Claim, int]:
    """The claim, read, and how many samples to draw for it; ``own`` are the figures of data and module beside those that suit all."""
    names = [name for figure in own for name in figure.names]
    promise = Claim.parse(claim, {*figure_names(), *PUBLISHED, *names, *(name for some in features for name in figure_names(some))})
    n = (promise.samples or 1000) if n is None else n
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return promise, n


def _judges(module: Any, data: Any, asked: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of the data's own judge, or where embeddings are drawn those of them, for samples told of the items ``asked``."""
    return (embedding_figure(asked),) if draws_embeddings(module) else own_figures(data, asked)


def _measured(
    samples: Tensor, labels: Tensor | None, data: Any, train: Mapping[str, Any], real: Mapping[str, Any],
    features: Sequence[Features | None], own: Iterable[Figure], cache: str | Path | None,
) -> Any:  # fmt: skip
    """All figures on pixels, those of data and module, and those that compare features on ``features``; see `metrics.measure`.

    The first of ``features`` are the data's own: where it has such, pixels are not looked at.
    """
    seen = extract if cache is None else remembered(cache)
    evidence = Evidence(samples, train["x"], labels, train.get("label"), real.get("x"), real.get("label"), real_features=seen)
    common = FIGURES if features[0] is None else ()
    figures, skipped = measure(evidence, (*common, *own))
    if features[0] is not None:
        skipped |= dict.fromkeys(figure_names(), f"bare values of {type(data).__name__} are not compared")
    for some in filter(None, features):
        more, lacking = measure(replace(evidence, features=some), [figure for figure in FIGURES if figure.on_features])
        figures, skipped = {**figures, **more}, {**skipped, **lacking}
    return figures, skipped


def _compared(data: Any, train: Mapping[str, Any], real: Mapping[str, Any], features: Sequence[Features | None]) -> dict[str, Any]:
    """What samples were compared with, and by what; a features file by its hash."""
    sizes = {"name": type(data).__name__, "train": len(train["x"]), "held_out": len(real.get("x", ())), "shape": list(train["x"].shape[1:])}
    named = [{key: str(getattr(some, key)) for key in ("name", "path", "sha256") if hasattr(some, key)} for some in features if some]
    return {"data": sizes, "features": [*(["pixels"] if features[0] is None else []), *named]}


def _versions() -> dict[str, str]:
    return {**environment([])["versions"], "scikit-learn": version("scikit-learn")}
