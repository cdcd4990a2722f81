"""Train an experiment: ``python -m diffx.fit experiment=digits/edm trainer.max_steps=100``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli, cluster
from .recipes.errors import RecipeError

if TYPE_CHECKING:
    from .recipes.compose import Config

__all__ = ["main"]

USAGE = """
python -m diffx.fit experiment=NAME [key=value ...] [flags]     train an experiment
python -m diffx.fit run=FOLDER [key=value ...]                  continue a run

keys
  a.b=c  +a.b=c  ~a.b    change, add, delete; values are YAML: 1e-3, [1, 2], true, null
  small=true             the experiment shrunk to seconds, to see whether it runs
  seed=0                 of initial weights, data order and noise
  run=ID|FOLDER          continue in this run folder
  resume=auto            auto: from the run folder's newest good checkpoint, if any; last: the newest run;
                         never: start at step 0; or the path of a checkpoint
  runs=FOLDER            where run folders are made (runs/)
  compile=true           torch.compile for the trained networks
  activation_checkpointing=true    less memory for a third more computation
flags
  --list                 all experiments
  --print[=resolved]     the composed experiment, before or after interpolation
  --check                build everything, count parameters, train nothing
  --experiments-dir DIR  a folder of experiments, searched first; so is each one in DIFFX_EXPERIMENTS

examples
  python -m diffx.fit experiment=digits/edm small=true
  python -m diffx.fit experiment=digits/edm module.denoiser.net.width=64 trainer.max_steps=4000 ~callbacks.samples
  python -m diffx.fit experiment=my/own.yaml data.root=pictures +trainer.limit_val_batches=4
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; gives back the exit code: 0, 2 for a mistake in the configuration, 128 + n after signal n, 1 for anything else.

    A job that was saved and requeued ends with 0.
    """
    return cli.entrance(_main, argv)


def _main(argv: Sequence[str]) -> int:
    line = cli.parse(argv, USAGE, flags=("list", "print", "check"))
    config = cli.experiment(_continued(line))
    return _train(config, argv, _launch(config), only_check="check" in line.flags)


def _launch(config: Config) -> dict[str, int]:
    """What SLURM says of nodes and devices, checked against the experiment; nothing outside SLURM."""
    step = cluster.step()
    if step is None:
        return {}
    sizes = cluster.check_trainer(step, config.tree.get("trainer"))
    cluster.check_rendezvous(step)
    step.export()
    return sizes


def _continued(line: cli.Line) -> cli.Line:
    """``run=FOLDER`` alone trains what the folder's ``config.yaml`` says."""
    run = line.value("run")
    if line.experiment or run is None:
        return line
    stored = Path(run, "config.yaml")
    if not stored.is_file():
        raise RecipeError(f"run={run}: there is no {stored}; give the run's folder, or experiment=NAME with it")
    return cli.Line(str(stored), line.keys, line.flags, line.folders)


def _train(config: Config, argv: Sequence[str], launch: dict[str, int], only_check: bool) -> int:
    from .recipes import runs
    from .recipes.assemble import assemble
    from .recipes.check import check

    _calm_lightning()
    check(config, imported=True)
    if only_check:
        _report(assemble(config))
        return 0
    folder = runs.choose(config)
    with runs.locked(folder):
        return _run(config, argv, launch, folder)


def _run(config: Config, argv: Sequence[str], launch: dict[str, int], folder: Path) -> int:
    from .callbacks.preemption import Preempted
    from .recipes import runs
    from .recipes.assemble import assemble, trainer_of

    start = runs.resume_from(config, folder)
    parts = assemble(config, start)
    trainer = trainer_of(config, parts, folder, launch)
    if runs.is_rank_zero():
        runs.describe(folder, config, argv)
        _say(f"run folder {_short(folder)}" + (f": continues from {_short(start)}" if start else ": starts at step 0"))
    finished = False
    try:
        with runs.announced(folder):
            trainer.fit(parts.module, parts.data, ckpt_path=start, weights_only=True)
        finished = trainer.state.status == "finished"
        return 0
    except Preempted as stop:
        if runs.is_rank_zero():
            _say(str(stop))
        return stop.exit_code
    finally:
        if runs.is_rank_zero():
            _farewell(config, folder, finished)


def _calm_lightning() -> None:
    """Leave out Lightning's notices about hardware, products and its own deprecated calls: `fit` says what a user needs to know."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|Total length of `list` across ranks is zero).*")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # `cluster.step` looks closer


def _report(parts: Any) -> None:
    """What ``--check`` prints."""
    _say(f"{type(parts.module).__name__} on {type(parts.data).__name__}: everything builds")
    for name, child in parts.module.named_children():
        count = sum(p.numel() for p in child.parameters())
        free = sum(p.numel() for p in child.parameters() if p.requires_grad)
        if count:
            _say(f"  {name:20} {count:>13,} parameters, {free:,} of them with gradients")


def _farewell(config: Config, folder: Path, finished: bool) -> None:
    """Say where things lie, and which command continues."""
    for name in ("checkpoints", "samples"):
        if (folder / name).is_dir():
            _say(f"{name:12} {_short(folder / name)}")
    if not any(folder.glob("checkpoints/*.ckpt")):
        return
    command = ["python", "-m", "diffx.fit", f"run={_short(folder)}", "resume=last"]
    _say(f"{'to train on:' if finished else 'to resume:':12} {shlex.join(command)}" + (" trainer.max_steps=..." if finished else ""))


def _short(path: Path | None) -> str:
    return os.path.relpath(path) if path and Path(path).is_relative_to(Path.cwd()) else str(path)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
