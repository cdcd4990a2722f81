"""Training of networks that do not fit on one device: every rank keeps a part of each weight, of its gradient and of its averages.

`FSDP` is Lightning's ModelParallelStrategy with one axis, for torch's ``fully_shard`` (FSDP2): a network is sharded block by block, the
weights of a block are gathered when it is entered and dropped when it is left. What it gives is what DDP gives, up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from . import files
from .dtensors import gathered, is_sharded, placed
from .networks.units import units
from .parts import Parts

if TYPE_CHECKING:
    from lightning import Trainer

__all__ = ["FSDP", "check_strategy", "shard"]


class FSDP(ModelParallelStrategy):
    """Fully sharded data parallelism: ``Trainer(strategy=FSDP(), devices=8)``, in experiments ``trainer.strategy=fsdp``.

    Checkpoints of either form are read by any strategy on any number of ranks, and by ``diffx.load``.

    Args:
        checkpoints: ``"whole"``: one file, as every other strategy writes it; rank 0 gathers one tensor after the other into its main
            memory. ``"sharded"``: a folder to which each rank writes its own part, on a file system that all ranks see; nobody holds more.
        options: ``process_group_backend`` and ``timeout`` of `lightning.pytorch.strategies.ModelParallelStrategy`.

    Raises:
        ValueError: an unknown form of checkpoints.
    """

    def __init__(self, checkpoints: Literal["whole", "sharded"] = "whole", **options: Any) -> None:
        if checkpoints not in ("whole", "sharded"):
            raise ValueError(f"checkpoints are 'whole' or 'sharded', got {checkpoints!r}")
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=checkpoints == "sharded", **options)

    def setup_environment(self) -> None:
        """All ranks stand on one axis."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Refuse parameters that were left whole: nobody would average their gradients."""
        assert self.lightning_module is not None
        if not any(is_sharded(p) for p in self.lightning_module.parameters()):
            raise TypeError(f"nothing of {type(self.lightning_module).__name__} is sharded; FSDP trains a DiffusionModule, or a module "
                            "whose configure_model calls diffx.sharding.shard")  # fmt: skip
        super().setup(trainer)

    # Checkpoints: a nested state whose tensors are sharded or whole. Only writing and reading tell the two forms apart.

    @property
    def lightning_restore_optimizer(self) -> bool:
        """`load_optimizer_state_dict` does it."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's own state, sharded as it is."""
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The optimizer's own state, sharded as it is."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write in the form that was chosen; all ranks must call it.

        Raises:
            OSError: it cannot be written.
        """
        if self._save_distributed_checkpoint:
            from . import folders

            folders.save(checkpoint, filepath)
        else:
            state = gathered(checkpoint, keep=self.is_global_zero)
            Strategy.save_checkpoint(self, state, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read either form; each rank reads its own part of what is sharded in a folder.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is damaged.
        """
        files.verify(checkpoint_path)
        if Path(checkpoint_path).is_dir():
            from . import folders

            return folders.read(checkpoint_path, self.device_mesh["data_parallel"])
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only is not False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Weights to where they belong, this rank's part of each."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: placed(value, own[name]) if name in own else value for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The same for what the optimizer keeps of each weight."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {index: {name: placed(value, parameters[index]) if _fits(value, parameters[index]) else value
                             for name, value in held.items()} for index, held in saved["state"].items()}  # fmt: skip
            optimizer.load_state_dict({**saved, "state": state})


def _fits(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def check_strategy(strategy: Any, module: Parts) -> None:
    """Refuse strategies that cannot train a module.

    Raises:
        TypeError: one of Lightning's own that shard.
        ValueError: DDP that would wait for gradients which some steps do not have.
    """
    options = getattr(strategy, "_ddp_kwargs", None)
    if module.takes_turns and options is not None and not options.get("find_unused_parameters"):
        raise ValueError(f"parts of {type(module).__name__} that are not trained in a step have no gradients, which plain DDP waits for; "
                         "use trainer.strategy=ddp_find_unused_parameters_true")  # fmt: skip
    if isinstance(strategy, (ModelParallelStrategy, FSDPStrategy)) and not isinstance(strategy, FSDP):
        raise TypeError(f"Lightning's {type(strategy).__name__} writes optimizer states and averages that no other strategy can read; "
                        "use diffx.FSDP() instead, in experiments trainer.strategy=fsdp")  # fmt: skip


def shard(module: Parts, mesh: Any, device: torch.device | str) -> None:
    """Shard the trained networks of a module, and frozen ones as large as they, block by block. A second call changes nothing.

    All ranks go on with the weights of rank 0, as under DDP.

    Args:
        module: what is trained.
        mesh: one-dimensional mesh of ranks.
        device: of this rank.

    Raises:
        ValueError: a trained parameter lies outside of the networks, or in several of the blocks.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if any(is_sharded(p) for p in module.parameters()):
        return
    networks = module.networks(*module.trained, *module.large)
    _check_owners(module, networks)
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # autocast decides; noise levels stay in float32
    for network in networks:
        # What stands outside the blocks is dropped after each call, too: else it would not see averages that are swapped in later. Where
        # nothing is trained it stays, so that gradients find it on their way from any layer's output to the input.
        drops = any(p.requires_grad for p in network.parameters())
        for unit in units(network):
            fully_shard(_agree(unit.to(device)), mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        fully_shard(_agree(network.to(device)), mesh=mesh, reshard_after_forward=drops, mp_policy=policy)
    _agree(module.to(device))


def _check_owners(module: Parts, networks: list[nn.Module]) -> None:
    owners: Counter[int] = Counter()
    for network in networks:
        inside = list(units(network))
        within = {id(p) for unit in inside for p in unit.parameters()}
        for unit in inside:
            owners.update({id(p) for p in unit.parameters()})
        owners.update({id(p) for p in network.parameters()} - within)
    names = {id(p): name for name, p in module.named_parameters()}
    if shared := [names[key] for key, count in owners.items() if count > 1]:
        raise ValueError(f"{shared[0]} and {len(shared) - 1} other parameters belong to several blocks or networks at once, as layers that "
                         "experts share; FSDP cannot shard those: train with DDP")  # fmt: skip
    if left := [name for name, p in module.trained_parameters().items() if id(p) not in owners]:
        raise ValueError(f"{left[0]} is trained but lies in no network that is entered by a call, so FSDP cannot shard it; train with "
                         "DDP")  # fmt: skip


@torch.no_grad()
def _agree(part: nn.Module) -> nn.Module:
    for tensor in (*part.parameters(), *part.buffers()):
        if not is_sharded(tensor):
            torch.distributed.broadcast(tensor.data, 0)
    return part
