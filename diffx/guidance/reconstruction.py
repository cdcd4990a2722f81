"""Holding a part of the data, or a measurement of it, while the rest is drawn; without any training for it.

These are functions from `Denoise` to `Denoise`, so every sampler, objective and guide works under them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..tensors import expand

__all__ = ["reconstruction_guided", "replaced"]


def replaced(denoise: Denoise, known: Tensor, mask: Tensor, noise: Callable[[], Tensor]) -> Denoise:
    """Show the denoiser the known part, freshly noised to the level of the state, and answer with it.

    By itself this is the replacement method, which is known to let the drawn part go its own way (Ho et al. 2022, arXiv:2204.03458,
    section 3.1).

    Args:
        denoise: the denoiser, its condition bound.
        known: (B, *) clean data, anything where it is not known.
        mask: bool, broadcastable to (B, *), True = known.
        noise: gives fresh unit noise (B, *) for every call.
    """

    def held(x: Tensor, sigma: Tensor) -> Tensor:
        shown = torch.where(mask, known + expand(sigma, known) * noise(), x)
        return torch.where(mask, known, denoise(shown, sigma))

    return held


def reconstruction_guided(
    denoise: Denoise, observed: Tensor, measure: Callable[[Tensor], Tensor], weight: float = 5.0, *, normalise: bool = False
) -> Denoise:
    """Draw the estimate towards data that would have been measured as it was (Ho et al. 2022, arXiv:2204.03458, eq. 7).

    The answer is::

        x0 - weight / 2 * d |observed - measure(x0(x))|^2 / dx

    In the variance-preserving frame of the paper the factor is ``weight * alpha / 2`` and the derivative one with respect to
    ``z = alpha x``: the same number. The derivative goes through the network, so a call costs about three of the network's. The estimate is
    not clipped here.

    Args:
        denoise: the denoiser, its condition bound.
        observed: (B, *) what was measured.
        measure: differentiable map from data (B, *) to the shape of ``observed``: picks known frames, shrinks pictures.
        weight: 0 is off, values above 1 work better than 1 in the paper.
        normalise: take the mean square over a sample's measured values instead of the sum, so that a weight means the same at all sizes.

    Raises:
        ValueError: called with tensors of inference mode, which have no derivatives.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled() or x.is_inference():
            raise ValueError("reconstruction guidance takes derivatives; sample under torch.no_grad() instead of torch.inference_mode()")
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            x0 = denoise(state, sigma)
            error = (observed - measure(x0)).square().flatten(1)
            (slope,) = torch.autograd.grad((error.mean(1) if normalise else error.sum(1)).sum(), state)
        return x0.detach() - weight / 2 * slope

    return guided
