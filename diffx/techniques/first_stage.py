"""`FirstStage`: what trains a codec that other techniques work behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..module import Batch, DiffusionModule, freeze
from ..resizing import enlarge, shrink
from ..tensors import felt_by, mean_flat

__all__ = ["FirstStage", "balance"]


class FirstStage(DiffusionModule):
    """Trains its codec to give pictures back. A subclass writes `loss`, `reconstruct` and `latents`.

    The trained codec is the part ``codec``: ``diffx.load(path, part="codec")`` gives it to any other technique.

    Args:
        codec: the codec to train; it is unfrozen.
        perceptual: ``(x, y) -> (B,)`` distance that joins the loss; a module is frozen.
        perceptual_weight: its weight.
        critic: tells data from reconstructions, ``(B, C, *) -> logits (B, *)`` such as `diffx.networks.PatchCritic`: it is trained along by
            the hinge loss, and the codec to be taken for data (Esser et al. 2021, VQGAN, arXiv:2012.09841).
        adversarial_weight: how strongly the critic pulls at a reconstruction, in multiples of the pull of everything else (`balance`).
        adversarial_from: optimizer steps before it pulls; the critic learns from the first.
        options: see `DiffusionModule`, except ``text`` and ``drop``, which have no meaning here; ``shape`` is that of a picture.

    Raises:
        ValueError: a negative weight or step; a shape that the codec does not take.
    """

    trained = ("codec", "critic")
    averaged = ("codec",)

    def __init__(
        self, codec: nn.Module, *, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None, perceptual_weight: float = 1.0,
        critic: nn.Module | None = None, adversarial_weight: float = 0.5, adversarial_from: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(codec=codec, text=None, drop=0.0, **options)  # type: ignore[arg-type]
        if min(perceptual_weight, adversarial_weight, adversarial_from) < 0:
            raise ValueError(
                f"weights and steps must be >= 0, got perceptual_weight {perceptual_weight}, adversarial_weight {adversarial_weight} and "
                f"adversarial_from {adversarial_from}"
            )
        self.codec.shape(self.shape)
        codec.requires_grad_(True)
        self.perceptual = freeze(perceptual) if isinstance(perceptual, nn.Module) else perceptual
        self.perceptual_weight = perceptual_weight
        self.critic, self.adversarial_weight, self.adversarial_from = critic, adversarial_weight, adversarial_from

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures ``(B, C, H, W)`` through their latents and back, clamped to [-1, 1]."""

    def restorations(self, x: Tensor, cond: Cond = Cond(), *, sampler: Any = None) -> dict[str, Tensor]:
        """Pictures ``(B, C, H, W)`` through their latents and back: ``"own"``; shrunk to the latents' grid and enlarged: ``"naive"``.

        From these `diffx.metrics.evaluate` computes ``psnr``, ``psnr_gain``, ``frechet_ratio`` and ``restored_accuracy``.
        """
        sides = x.shape[2:]
        grid = self.codec.shape(tuple(x.shape[1:]))[-len(sides) :]
        factors = [side // cells for side, cells in zip(sides, grid, strict=True)]
        return {"own": self.reconstruct(x), "naive": enlarge(shrink(x, factors), sides)}

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

    def judged(self, parts: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Parts of a loss, with what else judges the reconstruction ``y`` of ``x``, by name and in ``"loss"``.

        ``"perceptual"``: the distance, where there is one. In training with a critic: ``"telling"``, the critic's own loss, in which the
        reconstruction is a constant, and ``"fooling"``, the codec's, in which the critic is.
        """
        found = dict(parts)
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(x, y)
            found["loss"] = found["loss"] + self.perceptual_weight * found["perceptual"]
        if self.critic is None or not (self.training and torch.is_grad_enabled()):
            return found
        if self._trainer is None or self.global_step >= self.adversarial_from:
            critic = self.critic
            found["fooling"] = felt_by(y, lambda held: -mean_flat(critic(held)))
            weight = self.adversarial_weight * balance(found["loss"], found["fooling"], y)
            found["loss"] = found["loss"] + weight * found["fooling"]
        found["telling"] = 0.5 * mean_flat(F.relu(1 - self.critic(x))) + 0.5 * mean_flat(F.relu(1 + self.critic(y.detach())))
        found["loss"] = found["loss"] + found["telling"]
        return found

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


def balance(loss: Tensor, other: Tensor, y: Tensor) -> Tensor:
    """Norm of the gradient of ``loss`` at ``y`` over that of ``other``, ``()``, at most 10,000 and a constant.

    A reconstruction is pulled equally strongly by both when the other is multiplied by this. VQGAN compares the gradients at the decoder's
    last weights (arXiv:2012.09841, eq. 7); here the reconstruction itself takes their place, which every decoder has.
    """
    own, others = (torch.autograd.grad(part.sum(), y, retain_graph=True)[0].norm() for part in (loss, other))
    return (own / (others + 1e-4)).clamp_max(1e4).detach()
