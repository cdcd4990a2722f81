"""Super-resolution that forgives its input: a stage of a cascade (Ho et al. 2022, arXiv:2106.15282; Saharia et al. 2022, Imagen)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from .. import rng
from ..conditions import Cond
from ..denoiser import Denoiser
from ..guidance import Guide
from ..module import Batch
from ..resizing import enlarge, factors_of, shrink
from ..samplers import Sampler
from ..tensors import expand
from .edm import EDM

__all__ = ["LEVEL", "LOW_RES", "ORIGINAL", "SuperResolution", "augmented"]

Shrink: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]
LOW_RES, LEVEL, ORIGINAL = "low_res", "augmentation", "original"


class SuperResolution(EDM):
    """Denoising of large pictures, clips or sound that is shown a small one, itself a little noisy.

    The small picture is the large one shrunk (antialiased bicubic), enlarged again to the full size and mixed with noise:
    ``z = sqrt(1 - s^2) up + s n``. The share of noise s is drawn per sample in training and told to the network (noise-conditioning
    augmentation). In sampling a little noise covers what the stage below does wrong. The network needs the map ``"low_res"`` with the
    channels of the data and the vector ``"augmentation"`` of length 1. Guidance contrasts all other conditions with their absence: picture
    and level are always seen.

    Of clips ``(C, T, H, W)`` the frame rate may be raised as well, or alone (Imagen Video, arXiv:2210.02303): the small clip has every n-th
    frame, each is shown n times, and the network needs the map ``"original"`` of one channel, which is 1 where it stands and 0 where it is
    repeated. Of sound ``(C, L)`` the rate is raised: what is shown holds only the lower frequencies.

    A network that sees no positions may be trained on windows of the pictures: the small picture is made of the whole one first, then both
    are cut at the same place, so nothing at a window's border looks other than inside a picture. It samples whole pictures, or draws them
    in tiles (`diffx.guidance.Tiled`).

    Args:
        denoiser: network with preconditioning.
        factor: sides of the large picture over those of the small one, or the rate of sound over the lower one; of clips, one number for
            height and width, or three for frames, height and width.
        noise: range of s in training, standard deviations in [0, 1]: 0 is the clean small picture, 1 nothing but noise. ``(0, 0)`` trains
            without augmentation.
        level: s in sampling unless another is given.
        window: side, or height and width, of the windows that are seen in training and validation, or length of sound, drawn anew for every
            sample; None = whole samples.
        shrink: (pictures, factors) -> small pictures of exactly their size divided by the factors, in [-1, 1]: how the small picture of
            training is made; antialiased bicubic by default. `diffx.degradations.Blind` makes it as bad as found pictures are.
        options: see `EDM`.

    Raises:
        ValueError: a factor that changes nothing or does not divide the sides or the window, a window larger than the pictures, levels
            out of range, a network that is not told what it needs.
    """

    source = LOW_RES

    def __init__(
        self, denoiser: Denoiser, *, shape: Sequence[int], factor: int | Sequence[int] = 4, noise: Sequence[float] = (0.0, 1.0),
        level: float = 0.1, window: int | Sequence[int] | None = None, shrink: Shrink = shrink, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(denoiser=denoiser, shape=shape, **options)
        factors = factors_of(factor, len(self.shape) - 1)
        if max(factors) < 2 or any(side % by for side, by in zip(self.shape[1:], factors, strict=True)):
            raise ValueError(f"factor must be at least 2 and divide the sides {self.shape[1:]}, got {factor}")
        if len(noise) != 2 or not 0 <= noise[0] <= noise[1] <= 1 or not 0 <= level <= 1:
            raise ValueError(f"noise must be (lowest, highest) and level one share of noise in [0, 1], got {tuple(noise)} and {level}")
        marks = (ORIGINAL,) if len(factors) == 3 and factors[0] > 1 else ()
        if missing := [name for name in (LOW_RES, *marks, LEVEL) if not denoiser.takes(name)]:
            maps = {LOW_RES: self.shape[0], **dict.fromkeys(marks, 1)}
            raise ValueError(f"super-resolution tells the network {missing}; build it with maps={maps} and vectors={{{LEVEL!r}: 1}}")
        self.factors, self.marks, self.noise, self.level = factors, marks, (float(noise[0]), float(noise[1])), level
        sides = self.shape[1:][-2:]
        self.window = None if window is None else (window,) * len(sides) if isinstance(window, int) else tuple(window)
        self.shrink = shrink
        cuts = zip(self.window or sides, sides, factors[-len(sides) :], strict=True)
        if any(cut % by or not 0 < cut <= side for cut, side, by in cuts):
            raise ValueError(f"window must be divisible by the factor {factor} and no larger than {sides}, got {window}")

    @property
    def low_shape(self) -> tuple[int, ...]:
        """Shape of the small picture of one sample."""
        return (self.shape[0], *self._low(self.shape[1:]))

    def _low(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(side // by for side, by in zip(size, self.factors, strict=True))

    def condition(self, batch: Batch) -> Cond:
        """As in `Gaussian`, with the small picture: the batch's own ``"low_res"``, else its pictures shrunk."""
        small = batch[LOW_RES] if LOW_RES in batch else self.shrink(batch["x"], self.factors)
        cond = super().condition(batch)
        return replace(cond, maps={**cond.maps, LOW_RES: small})

    def inputs(self, batch: Batch) -> tuple[Tensor, Cond]:
        """As in `EDM`, cut to windows, with the small picture enlarged and noisy."""
        x, cond = super().inputs(batch)
        if self.window is not None:
            x, cond = self._cut(x, cond, self.window)
        low, high = self.noise
        level = low + (high - low) * rng.rand((len(x),), device=x.device)
        cond = augmented(self.enlarged(cond, x.shape), level, torch.randn_like(x))
        return x, replace(cond, vectors={**cond.vectors, LEVEL: level[:, None]})

    def _cut(self, x: Tensor, cond: Cond, window: tuple[int, ...]) -> tuple[Tensor, Cond]:
        """One window of every sample, and the same of its maps, whichever of the two sizes they have."""
        axes = len(window)
        sides, factors = x.shape[-axes:], self.factors[-axes:]
        corners = [
            (rng.rand((len(x),)) * ((side - cut) // by + 1)).long() * by for side, cut, by in zip(sides, window, factors, strict=True)
        ]
        spots = list(zip(*(corner.tolist() for corner in corners), strict=True))

        def cut(t: Tensor) -> Tensor:
            per = (1,) * axes if t.shape[-axes:] == sides else factors  # pixels of x to one of t
            spans = [[slice(begin // by, (begin + cut) // by) for begin, cut, by in zip(spot, window, per, strict=True)] for spot in spots]
            return torch.stack([row[(..., *span)] for row, span in zip(t, spans, strict=True)])

        return cut(x), replace(cond, maps={name: cut(value) for name, value in cond.maps.items()})

    def enlarged(self, cond: Cond, shape: Sequence[int]) -> Cond:
        """The conditions with the small picture at the size of samples ``(B, *shape)``; one that has that size already stays.

        Raises:
            ValueError: the small picture is missing or has neither size.
        """
        if LOW_RES not in cond.maps:
            raise ValueError(f"super-resolution needs small pictures: give Cond(maps={{{LOW_RES!r}: (n, *{self.low_shape})}})")
        small, size = cond.maps[LOW_RES], tuple(shape[2:])
        if tuple(small.shape[2:]) not in (size, self._low(size)):
            raise ValueError(f"{LOW_RES!r} must have the size {self._low(size)} or {size}, got {tuple(small.shape[2:])}")
        maps = {**cond.maps, LOW_RES: enlarge(small, size)}
        for name in self.marks:
            original = torch.arange(size[0], device=small.device) % self.factors[0] == 0
            maps[name] = original.to(small.dtype).view(1, 1, -1, 1, 1).expand(len(small), 1, *size)
        return replace(cond, maps=maps)

    def sample(self, n: int, cond: Cond = Cond(), *, guidance: float | Tensor | Guide = 1.0, sampler: Sampler | None = None,
               seed: int | None = None, shape: Sequence[int] | None = None, chunk: int | None = None,
               level: float | None = None) -> Tensor:  # fmt: skip
        """As in `Gaussian`, from small pictures ``cond.maps["low_res"]`` in [-1, 1].

        ``level`` is the share of noise mixed into them, in [0, 1]; the module's own by default.

        Raises:
            ValueError: see `enlarged`; a level outside [0, 1].
        """
        share = self.level if level is None else level
        if not 0 <= share <= 1:
            raise ValueError(f"level is the share of noise in the small pictures, in [0, 1]; got {share}")
        cond, guide = self.guided(n, cond, guidance)
        walk = sampler or self.sampler

        def draw(size: tuple[int, ...], cond: Cond, generators: Any) -> Tensor:
            cond = self.enlarged(cond, size)
            shares = torch.full((size[0],), share, device=self.device)
            cond = augmented(cond, shares, rng.randn(size, generators, device=self.device))
            noise = rng.randn(size, generators, device=self.device)
            return walk(guide(cast(Denoiser, _Told(self.denoiser, share)), cond), noise, generator=generators)

        return self.sampled(n, cond, draw, seed=seed, shape=shape, chunk=chunk)

    def restorations(self, x: Tensor, cond: Cond, *, sampler: Sampler | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Large pictures ``(B, *shape)`` from the small ones of ``cond``: ``"own"``, drawn, and ``"naive"``, enlarged without a network.

        From these `diffx.metrics.evaluate` computes ``psnr``, ``psnr_gain``, ``frechet_ratio`` and ``restored_accuracy``.
        """
        own = self.sample(len(x), cond, sampler=sampler, seed=seed, shape=x.shape[1:])
        return {"own": own, "naive": self.enlarged(cond, x.shape).maps[LOW_RES]}


def augmented(cond: Cond, level: Tensor, noise: Tensor) -> Cond:
    """Mix ``noise`` (B, C, H, W) into the enlarged small picture: its share, in standard deviations, is ``level`` (B,) in [0, 1]."""
    up = cond.maps[LOW_RES]
    share = expand(level, up)
    return replace(cond, maps={**cond.maps, LOW_RES: (1 - share**2).sqrt() * up + share * noise})


class _Told:
    """Stands for a denoiser whose network is told the level in every branch of guidance, which hides vectors."""

    def __init__(self, denoiser: Denoiser, level: float) -> None:
        self.denoiser, self.level = denoiser, level

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = Cond()) -> Tensor:
        return self.denoiser.assemble(x, sigma, self.raw(x, sigma, cond)[0])

    def raw(self, x: Tensor, sigma: Tensor, cond: Cond = Cond(), **inputs: Any) -> tuple[Tensor, Any]:
        level = x.new_full((len(x), 1), self.level)
        return self.denoiser.raw(x, sigma, replace(cond, vectors={**cond.vectors, LEVEL: level}), **inputs)
