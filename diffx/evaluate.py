"""Draw samples, measure them against the data, judge the experiment's claim.

``python -m diffx.evaluate run=runs/digits/edm/ID`` writes a JSON and a grid of the samples into the run folder and prints figures and
verdict. `evaluate` does the same for a module in memory. Everything that decides a figure stands in the JSON: sample count, seed, sampler,
guidance, weights, features, the sizes of the sets compared, and what real data scores under the same measure.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .recipes import recipe_of
from .recipes.errors import RecipeError
from .sample import _check_sampler, sampler_for

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from .conditions import Cond
    from .metrics import Claim, Features
    from .module import DiffusionModule
    from .recipes.compose import Config
    from .samplers import Sampler

__all__ = ["evaluate", "main", "requests"]

USAGE = """usage: python -m diffx.evaluate run=FOLDER | checkpoint=FILE | experiment=NAME [key=value ...] [--strict]

what is measured
  run=         run folder, or its id together with experiment=: newest good checkpoint, data and claim
  checkpoint=  a checkpoint or a run folder; data and claim are those of its run folder, or of experiment=
  experiment=  alone: the newest run of this experiment
  runs=        folder of all run folders (default: runs)
  weights=     ema, ema:NAME or raw (default: ema)

how samples are drawn
  n=           how many (default: what the claim says, else 1000)
  guidance=    1 is off (default: 1)
  sampler=     name, e.g. Heun, or {_target_: ..., ...} (default: the module's own)
  steps=       of the sampler
  seed=        sample i is drawn from seed + i (default: 0)
  chunk=       samples drawn at once (default: 250)
  device=      auto, cpu, cuda, cuda:1, ... (default: auto)
  trust=       true: let the checkpoint build classes of any package; only for files whose origin you know

what they are compared with
  items=       training items used, at most (default: 10000)
  features=    a TorchScript file, or {path: FILE, name: fid, size: ..., options: {...}}. This RUNS THE CODE IN THE FILE.
               A distance is called fid only if you name the file so: name it so only if it is the Inception network of FID.

  out=         folder for report and grid (default: evaluate/ in the run folder)
  --strict     exit with 1 unless the claim is met
  --list       list the experiments
"""


def evaluate(
    module: DiffusionModule,
    data: L.LightningDataModule,
    *,
    n: int | None = None,
    seed: int = 0,
    guidance: Any = 1.0,
    sampler: Sampler | None = None,
    claim: Mapping[str, Any] | None = None,
    features: Features | None = None,
    chunk: int = 250,
    items: int = 10_000,
    folder: str | Path | None = None,
    name: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw samples from a module and measure them against its data.

    Args:
        module: anything with `DiffusionModule`'s ``sample`` and ``condition``; which weights it holds is the caller's affair.
        data: a LightningDataModule; its training items are the reference, its validation items the held-out ones.
        n: number of samples; the claim's by default, else 1000.
        seed: sample ``i`` is a function of ``seed + i``. The figures' own random choices are always the same.
        guidance: as in ``module.sample``.
        sampler: replaces the module's own.
        claim: the ``claim`` section of an experiment.
        features: a further extractor; what compares features is computed on it besides pixels, under its name.
        chunk: samples drawn at once.
        items: largest number of training and of held-out items used; more are thinned out at random, always the same way.
        folder: where ``<name>.json`` and ``<name>.png`` go; None writes nothing.
        name: of those files; says count, guidance, sampler and seed by default.
        about: facts to put first in the report, e.g. the checkpoint.

    Returns:
        The report that is written as JSON. ``report["kept"]`` is True, False, or None where there is no claim or no verdict on all of it.

    Raises:
        ValueError: an unreadable claim, n < 1, no training items, samples that are not finite.
    """
    from .metrics.real import real_items
    from .metrics.report import write

    promise, n = _promised(claim or {}, features, n, data)
    train, held_out = real_items(data, items)
    cond, labels = requests(module, held_out or train, n, chunk)
    clock = [time.process_time()]
    samples = module.sample(n, cond, guidance=guidance, sampler=sampler, seed=seed, chunk=chunk).float().cpu()
    clock.append(time.process_time())
    figures, skipped = _measured(samples, labels, data, train, held_out or {}, features)
    clock.append(time.process_time())
    verdict = promise.verdict(figures, n, skipped)
    report = {
        **(about or {}),
        **{"samples": n, "seed": seed, "guidance": recipe_of(guidance), "sampler": recipe_of(sampler or getattr(module, "sampler", None))},
        **_compared(data, train, held_out or {}, features),
        **{"figures": figures, "skipped": skipped, "claim": dict(claim or {}), "verdict": verdict, "kept": promise.kept(verdict)},
        "cpu_seconds": {"samples": round(clock[1] - clock[0], 2), "figures": round(clock[2] - clock[1], 2)},
        "versions": _versions(),
    }
    return report if folder is None else {**report, "files": write(report, samples, labels, Path(folder), name)}


def requests(module: DiffusionModule, real: Mapping[str, Any], n: int, chunk: int = 250) -> tuple[Cond, Tensor | None]:
    """Conditions for ``n`` samples, taken from real items in turn, with the classes balanced where the items are labelled.

    Every kind of condition is asked for as in training: ``module.condition`` sees batches of real items, ``chunk`` at once.

    Returns:
        (conditions, labels (n,)); the labels are None when the items have none or the module is given no condition.
    """
    import torch

    from .metrics.real import asked_rows, take

    rows, label = asked_rows(real, n), real.get("label")
    device = getattr(module, "device", "cpu")
    parts = []
    for some in rows.split(chunk):
        batch = {key: column.to(device) if isinstance(column, torch.Tensor) else column for key, column in take(real, some).items()}
        parts.append(module.condition(batch).to("cpu"))
    cond = reduce(lambda left, right: left.cat(right), parts)
    return cond, label[rows] if label is not None and len(cond) else None


def _promised(claim: Mapping[str, Any], features: Features | None, n: int | None, data: Any) -> tuple[Claim, int]:
    """The claim, read, and how many samples to draw for it."""
    from .metrics import Claim, figure_names
    from .metrics.own import own_figures

    own = [name for figure in own_figures(data, {}) for name in figure.names]
    promise = Claim.parse(claim, {*figure_names(), *figure_names(features), "fid", *own})
    n = (promise.samples or 1000) if n is None else n
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return promise, n


def _measured(
    samples: Tensor, labels: Tensor | None, data: Any, train: Mapping[str, Any], real: Mapping[str, Any], features: Features | None
) -> Any:
    """All figures on pixels, those of the data's own judge, and those that compare features on ``features``; see `metrics.measure`."""
    from .metrics import FIGURES, Evidence, measure
    from .metrics.own import own_figures
    from .metrics.real import asked_rows, take

    evidence = Evidence(samples, train["x"], labels, train.get("label"), real.get("x"), real.get("label"))
    prompts = real or train
    figures, skipped = measure(evidence, (*FIGURES, *own_figures(data, take(prompts, asked_rows(prompts, len(samples))))))
    if features is None:
        return figures, skipped
    more, lacking = measure(replace(evidence, features=features), [figure for figure in FIGURES if figure.on_features])
    return {**figures, **more}, {**skipped, **lacking}


def _compared(data: Any, train: Mapping[str, Any], real: Mapping[str, Any], features: Features | None) -> dict[str, Any]:
    """What samples were compared with, and by what; a features file by its hash."""
    sizes = {"name": type(data).__name__, "train": len(train["x"]), "held_out": len(real.get("x", ())), "shape": list(train["x"].shape[1:])}
    named = [] if features is None else [{key: str(getattr(features, key)) for key in ("name", "path", "sha256") if hasattr(features, key)}]
    return {"data": sizes, "features": ["pixels", *named]}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from .recipes.runs import environment

    return {**environment([])["versions"], "scikit-learn": version("scikit-learn")}


# Verb -------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What may be given as ``key=value``; see `USAGE`."""

    run: str | None = None
    checkpoint: str | None = None
    experiment: str | None = None
    runs: str = "runs"
    n: int | None = None
    seed: int = 0
    guidance: float = 1.0
    sampler: str | dict | None = None
    steps: int | None = None
    weights: str = "ema"
    chunk: int = 250
    items: int = 10_000
    features: str | dict | None = None
    device: str = "auto"
    trust: bool = False
    out: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The entrance of ``python -m diffx.evaluate``; see `USAGE`."""
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> int:
    line = cli.parse(argv, USAGE, flags=("list", "strict"))
    options = cli.options(line, Options)
    _check(options)
    weights, folder, config = _place(options, line.folders)

    import torch

    from .metrics.report import table
    from .recipes.build import build
    from .recipes.load import load, locate

    file = locate(weights)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    module = load(file, options.weights, device=device, trust=options.trust)
    report = evaluate(
        module,
        build(config.tree["data"], at="data"),
        n=options.n,
        seed=options.seed,
        guidance=options.guidance,
        sampler=sampler_for(module, options.sampler, options.steps),
        claim=config.tree.get("claim"),
        features=_features(options.features, device),
        chunk=options.chunk,
        items=options.items,
        folder=options.out or folder / "evaluate",
        about={
            "experiment": config.name,
            "checkpoint": str(file),
            "weights": options.weights,
            "images_seen": module.images_seen,
            "command": shlex.join(["python", "-m", "diffx.evaluate", *argv]),
        },
    )
    print(table(report))
    return 1 if "strict" in line.flags and report["kept"] is not True else 0


def _check(options: Options) -> None:
    problems = [f"{key} must be at least 1, got {value}" for key in ("n", "steps", "chunk", "items")
                if (value := getattr(options, key)) is not None and value < 1]  # fmt: skip
    problems += _check_sampler(options.sampler)
    if options.run is not None and options.checkpoint is not None:
        problems.append("give run=... or checkpoint=..., not both")
    if options.run is options.checkpoint is options.experiment is None:
        problems.append("nothing to evaluate: give run=FOLDER, checkpoint=FILE, or experiment=NAME for its newest run")
    if problems:
        raise RecipeError(*problems)


def _place(options: Options, folders: Sequence[str]) -> tuple[Path, Path, Config]:
    """Where the weights lie, where results go, and the experiment with data and claim."""
    from .recipes.check import check
    from .recipes.compose import compose
    from .recipes.runs import latest_run

    if options.checkpoint is not None:
        weights = Path(options.checkpoint)
        if not weights.exists():
            raise RecipeError(f"checkpoint={weights}: there is no such file")
        around = [weights.resolve(), *weights.resolve().parents[:2]]
        folder = next((place for place in around if (place / "config.yaml").is_file()), around[0 if weights.is_dir() else 1])
    else:
        root = Path(options.runs) / (options.experiment or "")
        folder = latest_run(root) if options.run is None else Path(options.run) if Path(options.run).is_dir() else root / options.run
        if not folder.is_dir():
            raise RecipeError(f"run={options.run}: there is no such folder, nor {folder}; give a path, or experiment=NAME and the run's id")
        weights = folder
    written = folder / "config.yaml"
    if options.checkpoint is not None and options.experiment is not None:
        written = Path(options.experiment)
    elif not written.is_file():
        raise RecipeError(f"there is no config.yaml in {folder}; name the experiment that has data and claim: experiment=NAME")
    config = compose(str(written), folders=folders)
    check(config)
    return weights, folder, config


def _features(given: str | Mapping[str, Any] | None, device: str) -> Features | None:
    from .metrics import TorchScript

    if given is None:
        return None
    arguments = {"path": given, "name": Path(given).stem} if isinstance(given, str) else dict(given)
    if unknown := set(arguments) - {"path", "name", "size", "low", "high", "options"} or {"path"} - set(arguments):
        raise RecipeError(f"features takes path, name, size, low, high and options, and needs path; look at {sorted(unknown)}")
    if arguments.get("name") == "fid" and isinstance(given, str):
        arguments["name"] = "features"  # a file's own name does not make it the network that defines FID
    return TorchScript(**arguments, device=device)


if __name__ == "__main__":
    raise SystemExit(main())
