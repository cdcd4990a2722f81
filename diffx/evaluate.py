"""Draw samples, measure them against the data, judge the experiment's claim.

``python -m diffx.evaluate run=runs/digits/edm/ID`` writes a JSON and a grid of the samples into the run folder and prints figures and
verdict. `diffx.metrics.evaluate` does the same for a module in memory.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .cluster import share
from .recipes.errors import RecipeError
from .sample import check_sampler

if TYPE_CHECKING:
    from .metrics import Features
    from .recipes.compose import Config

__all__ = ["main"]

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
  cache=       folder where features of real items wait for the next evaluation (default: .features in runs=)

  out=         folder for report and grid (default: evaluate/ in the run folder)
  --strict     exit with 1 unless the claim is met
  --list       list the experiments

Samples lie in the folder, chunk by chunk, until the report is written: the same command goes on where it was interrupted. Started by
torchrun or srun, each process draws its share of them, and the one that finishes last measures.
"""


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
    cache: str | None = None
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

    from .asked import sampler_for
    from .metrics.drawn import Unfinished
    from .metrics.evaluation import evaluate
    from .metrics.report import table
    from .recipes.build import build
    from .recipes.load import load, locate

    rank, size, local = share()
    file = locate(weights)
    device = cli.device(options.device, local)
    module = load(file, options.weights, device=device, trust=options.trust)
    measured = partial(
        evaluate,
        module,
        build(config.tree["data"], at="data"),
        n=options.n,
        seed=options.seed,
        guidance=options.guidance,
        sampler=sampler_for(module, options.sampler, options.steps),
        claim=config.tree.get("claim"),
        features=_features(options.features, device),
        cache=options.cache or Path(options.runs) / ".features",
        chunk=options.chunk,
        items=options.items,
        folder=options.out or folder / "evaluate",
        share=(rank, size),
        about={
            "experiment": config.name,
            "checkpoint": str(file),
            "weights": options.weights,
            "images_seen": module.images_seen,
            "command": shlex.join(["python", "-m", "diffx.evaluate", *argv]),
        },
    )
    try:
        report = measured()
    except Unfinished as others:
        print(f"rank {rank} of {size} is done: {others}")
        return 0
    print(table(report))
    return 1 if "strict" in line.flags and report["kept"] is not True else 0


def _check(options: Options) -> None:
    problems = [f"{key} must be at least 1, got {value}" for key in ("n", "steps", "chunk", "items")
                if (value := getattr(options, key)) is not None and value < 1]  # fmt: skip
    problems += check_sampler(options.sampler)
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
    from .metrics.figures import PUBLISHED

    if given is None:
        return None
    arguments = {"path": given, "name": Path(given).stem} if isinstance(given, str) else dict(given)
    if unknown := set(arguments) - {"path", "name", "size", "low", "high", "options"} or {"path"} - set(arguments):
        raise RecipeError(f"features takes path, name, size, low, high and options, and needs path; look at {sorted(unknown)}")
    if arguments.get("name") in PUBLISHED and isinstance(given, str):
        arguments["name"] = "features"  # a file's own name does not make it the network that defines FID or FVD
    return TorchScript(**arguments, device=device)


if __name__ == "__main__":
    raise SystemExit(main())
