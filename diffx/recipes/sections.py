"""The sections of an experiment, and the short names that may stand in two of them instead of a ``_target_``."""

from __future__ import annotations

__all__ = ["BUILT", "CALLBACKS", "LOGGERS", "RESERVED", "SECTIONS", "STRATEGIES", "TRAINER"]

SECTIONS = {
    "description": "one line for --list",
    "defaults": "experiments to start from, merged left to right, this file last",
    "module": "the technique",
    "data": "the DataModule",
    "callbacks": "name -> callback; null removes one",
    "trainer": "arguments of lightning.Trainer",
    "logger": "name -> logger; null removes one",
    "seed": "of initial weights; also of module and data where they take one",
    "compile": "true, or arguments of torch.compile: compiles the trained networks",
    "activation_checkpointing": "true: the trained networks compute their blocks again in the backward pass, for less memory",
    "small": "what small=true changes, to try an experiment in seconds",
    "claim": "what a finished run must reach",
    "experiment": "the name, in the configuration of a run folder",
    "runs": "folder of all run folders",
    "run": "run to continue: its id or its folder",
    "resume": "auto, last, never, or a checkpoint",
}
BUILT = ("module", "data", "callbacks", "logger", "trainer")  # sections in which a `_target_` makes an object
TRAINER = "lightning.Trainer"
RESERVED = {
    "default_root_dir": "the run folder is used",
    "callbacks": "use the section 'callbacks'",
    "logger": "use the section 'logger'",
    "enable_checkpointing": "use callbacks.checkpoints",
}
CALLBACKS = {
    "bands": "diffx.callbacks.NoiseBands",
    "checkpoints": "diffx.callbacks.Checkpoints",
    "ema": "diffx.callbacks.EMA",
    "guard": "diffx.callbacks.Guard",
    "preemption": "diffx.callbacks.Preemption",
    "progress": "diffx.callbacks.progress",
    "samples": "diffx.callbacks.SampleLogger",
    "throughput": "diffx.callbacks.Throughput",
}
STRATEGIES = {"fsdp": "diffx.FSDP"}  # Lightning's own strategy of this name is the older FSDP
LOGGERS = {
    "csv": "lightning.pytorch.loggers.CSVLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
    "tensorboard": "lightning.pytorch.loggers.TensorBoardLogger",
    "wandb": "lightning.pytorch.loggers.WandbLogger",
}
