"""`FirstStage`: what trains a codec that other techniques work behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..conditions import Cond
from ..module import Batch, DiffusionModule, freeze

__all__ = ["FirstStage"]


class FirstStage(DiffusionModule):
    """Trains its codec to give pictures back. A subclass writes `loss`, `reconstruct` and `latents`.

    The trained codec is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique.

    Args:
        codec: the codec to train; it is unfrozen.
        perceptual: ``(x, y) -> (B,)`` distance that joins the loss; a module is frozen.
        perceptual_weight: its weight.
        options: see `DiffusionModule`, except ``text`` and ``drop``, which have no meaning here; ``shape`` is that of a picture.

    Raises:
        ValueError: a negative weight; a shape that the codec does not take.
    """

    trained = averaged = ("codec",)

    def __init__(
        self, codec: nn.Module, *, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None, perceptual_weight: float = 1.0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(codec=codec, text=None, drop=0.0, **options)  # type: ignore[arg-type]
        if perceptual_weight < 0:
            raise ValueError(f"perceptual_weight must be >= 0, got {perceptual_weight}")
        self.codec.shape(self.shape)
        codec.requires_grad_(True)
        self.perceptual = freeze(perceptual) if isinstance(perceptual, nn.Module) else perceptual
        self.perceptual_weight = perceptual_weight

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through their latents and back, clamped to [-1, 1]."""

    @abstractmethod
    def latents(self, size: tuple[int, ...], generators: Any) -> Tensor:
        """Latents (B, *) that the codec can draw by itself, independently at every place."""

    def pictures(self, batch: Batch) -> Tensor:
        """The pictures of a batch.

        Raises:
            ValueError: it holds latents instead.
        """
        if "x" not in batch:
            raise ValueError(f'a codec trains on pictures, batch["x"]; got {sorted(batch)}')
        return batch["x"]

    def perceived(self, parts: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Parts of a loss with the perceptual distance of ``y`` to ``x`` in ``"loss"`` and by its name, where there is one."""
        if self.perceptual is None:
            return dict(parts)
        distance = self.perceptual(x, y)
        return {**parts, "perceptual": distance, "loss": parts["loss"] + self.perceptual_weight * distance}

    def condition(self, batch: Batch) -> Cond:
        """No conditions."""
        return Cond()

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: Any = 1.0, sampler: Any = None, seed: int | None = None,
               shape: Sequence[int] | None = None, chunk: int | None = None) -> Tensor:  # fmt: skip
        """Decode `latents`: it shows how far from the data they lie, hence what is left to a model of them.

        For the quality of the codec see `reconstruct`.

        Raises:
            ValueError: conditions, guidance or a sampler, of which it knows none.
        """
        if len(cond) or guidance != 1 or sampler is not None:
            raise ValueError(
                f"a codec samples without conditions, guidance and sampler; got conditions {[*cond.names, *cond.maps]}, "
                f"guidance = {guidance}, sampler = {sampler}"
            )
        return self.sampled(n, cond, lambda size, _, generators: self.latents(size, generators), seed=seed, shape=shape, chunk=chunk)
