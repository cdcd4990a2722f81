"""A checked experiment to the objects that `diffx.fit` trains with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build import build
from .check import takes
from .compose import Config
from .errors import RecipeError
from .load import read
from .sections import CALLBACKS, LOGGERS, STRATEGIES

__all__ = ["Parts", "assemble", "seeded", "trainer_of"]

TRAINER_DEFAULTS = {"max_epochs": -1, "check_val_every_n_epoch": None, "use_distributed_sampler": False}  # steps count, our samplers shard
LOADERS = {"diffx.load", "diffx.recipes.load.load"}


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    module: Any
    data: Any
    callbacks: list[Any]


def assemble(config: Config, start: Path | None = None) -> Parts:
    """Build module, data and callbacks; initial weights are a function of ``seed``, alike on every rank.

    Args:
        config: the experiment.
        start: the checkpoint that the run continues from. Its recipe stands in for parts that were loaded from files now gone, such as a
            teacher: their weights are in the checkpoint.

    Raises:
        RecipeError: a constructor refuses its arguments; begins with the key path.
    """
    from .. import rng

    rng.seed_default(config.tree.get("seed", 0), "weights")
    recipe = seeded(config, "module")
    module = build(recipe if start is None else _survivors(recipe, read(start, tensors=False)[1]["diffx"]["recipe"]), at="module")
    data = build(seeded(config, "data"), at="data")
    callbacks = [build({"_target_": CALLBACKS.get(name), **part}, at=f"callbacks.{name}")
                 for name, part in _present(config.tree.get("callbacks"))]  # fmt: skip
    if config.tree.get("activation_checkpointing", False):
        _forget_activations(module)
    compile_nets(module, config.tree.get("compile", False))
    return Parts(module, data, callbacks)


def _survivors(recipe: Any, stored: Any) -> Any:
    """The recipe with ``diffx.load`` of a file that is gone replaced by what the checkpoint says of that part."""
    if not isinstance(recipe, Mapping) or not isinstance(stored, Mapping):
        return recipe
    if recipe.get("_target_") in LOADERS and not Path(str(recipe.get("path"))).exists():
        return stored
    return {key: _survivors(value, stored.get(key)) for key, value in recipe.items()}


def seeded(config: Config, section: str) -> dict[str, Any]:
    """The section's recipe, with the experiment's ``seed`` where the part takes one and was given none."""
    recipe = config.tree[section]
    if "seed" in config.tree and "seed" not in recipe and takes(recipe["_target_"], "seed"):
        return {**recipe, "seed": config.tree["seed"]}
    return recipe


def trainer_of(config: Config, parts: Parts, folder: Path, launch: Mapping[str, Any] | None = None) -> Any:
    """The Trainer of a run folder, with its loggers.

    Args:
        config: the experiment.
        parts: what it was built to.
        folder: of the run.
        launch: ``num_nodes`` and ``devices`` where SLURM has started the ranks (see `diffx.cluster`).

    Raises:
        RecipeError: a logger or the Trainer refuses its arguments.
    """
    from lightning.pytorch.callbacks import Checkpoint

    loggers = [_logger(name, part, folder) for name, part in _present(config.tree.get("logger"))]
    options = {
        **TRAINER_DEFAULTS,
        **build(config.tree.get("trainer") or {}, at="trainer"),
        **(launch or {}),
        "default_root_dir": str(folder),
        "callbacks": parts.callbacks,
        "logger": loggers or False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in parts.callbacks),
    }
    if (strategy := options.get("strategy")) in STRATEGIES:
        options["strategy"] = build({"_target_": STRATEGIES[strategy]}, at="trainer.strategy")
    if launch:
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        # by itself SLURMEnvironment would save inside a signal handler, which can deadlock: `Preemption` saves and requeues
        given = options.get("plugins") or []
        options["plugins"] = [*(given if isinstance(given, list) else [given]), SLURMEnvironment(auto_requeue=False)]
    return build({"_target_": "lightning.Trainer", **options}, at="trainer")


def _forget_activations(module: Any) -> None:
    try:
        module.checkpoint_activations()
    except ValueError as error:
        raise RecipeError(f"activation_checkpointing: {error}") from error


def compile_nets(module: Any, how: bool | Mapping[str, Any]) -> None:
    """Compile, in place, the network of every trained part; never the LightningModule, whose hooks would recompile all the time."""
    if how is False or how is None:
        return
    for name in getattr(module, "trained", ("denoiser",)):
        part = getattr(module, name, None)
        net = getattr(part, "net", None)
        if net is not None:
            net.compile(**(how if isinstance(how, Mapping) else {}))


def _present(section: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in (section or {}).items() if part is not None]


def _logger(name: str, part: Mapping[str, Any], folder: Path) -> Any:
    """A logger by name writes below the run folder; TensorBoard continues one curve over restarts."""
    places = {"tensorboard": {"name": "tb", "version": ""}, "csv": {"name": "csv"}}
    default = {} if "_target_" in part else {"_target_": LOGGERS[name], "save_dir": str(folder), **places.get(name, {})}
    return build({**default, **part}, at=f"logger.{name}")
