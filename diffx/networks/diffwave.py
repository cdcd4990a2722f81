"""DiffWave: gated convolutions of growing dilation over the waveform itself (Kong et al. 2020, arXiv:2009.09761).

Distinctive choices
- The rate never changes: receptive field comes from dilation, which doubles from layer to layer and starts afresh every ``cycle`` layers.
- Every layer gives half of its output to the next and half to the result; the latter are summed.
- A vocoder is told a log-mel spectrogram as the token source ``"mel"``, one token a column, which two transposed convolutions stretch to
  the rate of the samples; without it the network is unconditional, or told a class.
- A fresh network returns exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Cond
from ..recipes import recorded
from .border import NO_COND, Conditions, check_sizes, concat_maps
from .embedders import LabelEmbedding, VectorEmbedding, with_conditions
from .layers import zero
from .units import Unit

__all__ = ["DiffWave"]

EMB = 512
WAVES = 64


class Stretch(nn.Module):
    """A spectrogram ``(B, D, T)`` at the rate of the samples, ``(B, D, T prod(factors))``: learned kernels over 3 bands and two columns."""

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.ConvTranspose2d(1, 1, (3, 2 * factor), stride=(1, factor), padding=(1, factor // 2)) for factor in factors
        )

    def forward(self, mel: Tensor) -> Tensor:
        x = mel[:, None]
        for step in self.steps:
            x = F.leaky_relu(step(x), 0.4)
        return x[:, 0]


class GatedLayer(Unit):
    """One dilated convolution, gated, whose output is shared between the next layer and the result (figure 2a).

    Args:
        width: channels C.
        dilation: samples between the taps.
        bands: channels of the stretched spectrogram; 0 = none.
    """

    def __init__(self, width: int, dilation: int, bands: int) -> None:
        super().__init__()
        self.step = nn.Linear(EMB, width)
        self.dilated = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.told = nn.Conv1d(bands, 2 * width, 1) if bands else None
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor, emb: Tensor, mel: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features ``(B, C, L)`` to the next ones and the share in the result."""
        h = self.dilated(x + self.step(emb)[:, :, None])
        if self.told is not None and mel is not None:
            h = h + self.told(mel)
        gate, value = h.chunk(2, 1)
        residual, skip = self.out(gate.sigmoid() * value.tanh()).chunk(2, 1)
        return (x + residual) * 0.5**0.5, skip


@recorded
class DiffWave(nn.Module):
    """Dilated convolutions over sound. It was made for eps at ``Timesteps`` 0 .. T - 1; the step embedding takes fractions of them.

    Args:
        channels: channels of x.
        out_channels: channels of the output; None = ``channels``.
        width: channels of the layers.
        layers: number of layers.
        cycle: layers after which the dilation, 1, 2, 4, ..., starts again.
        classes: number of classes, 0 = no label. Label ``classes`` is the null label.
        vectors: name -> length of vectors that join the step embedding.
        tokens: source -> width of a spectrogram, one token a column; at most one source.
        maps: name -> channels of signals that are concatenated to x, in this order; they have its length and lie in [-1, 1].
        stretch: factors whose product is the number of samples a column of the spectrogram stands for.

    Raises:
        ValueError: more than one source of tokens, numbers below 1, names used twice.
    """

    def __init__(
        self,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 64,
        layers: int = 30,
        cycle: int = 10,
        classes: int = 0,
        vectors: Mapping[str, int] | None = None,
        tokens: Mapping[str, int] | None = None,
        maps: Mapping[str, int] | None = None,
        stretch: Sequence[int] = (16, 16),
    ) -> None:
        super().__init__()
        if len(tokens or {}) > 1 or min(width, layers, cycle, *stretch) < 1:
            raise ValueError(
                f"DiffWave takes one source of tokens and positive numbers, got {sorted(tokens or {})}, width={width}, layers={layers}, "
                f"cycle={cycle} and stretch={tuple(stretch)}"
            )
        self.channels, self.out_channels = channels, out_channels or channels
        self.conditions = Conditions(classes, dict(vectors or {}), dict(tokens or {}), dict(maps or {}))
        self.hop = math.prod(stretch)
        self.divisor = self.hop if tokens else 1
        self.stem = nn.Conv1d(channels + sum(self.conditions.maps.values()), width, 1)
        self.first, self.second = nn.Linear(2 * WAVES, EMB), nn.Linear(EMB, EMB)
        self.label = LabelEmbedding(classes, EMB) if classes else None
        self.vectors = nn.ModuleList(VectorEmbedding(name, length, EMB) for name, length in self.conditions.vectors.items())
        self.stretch = Stretch(stretch) if tokens else None
        bands = next(iter(self.conditions.tokens.values()), 0)
        self.layers = nn.ModuleList(GatedLayer(width, 2 ** (i % cycle), bands) for i in range(layers))
        self.skip = nn.Conv1d(width, width, 1)
        self.head = nn.Conv1d(width, self.out_channels, 1)
        self.initialise()

    @classmethod
    def vocoder(cls, width: int = 64, **options: Any) -> DiffWave:
        """The published vocoder: 80 mel bands, 256 samples a column; widths 64 (base) and 128 (large)."""
        return cls(**{"width": width, "tokens": {"mel": 80}, **options})

    @classmethod
    def unconditional(cls, **options: Any) -> DiffWave:
        """The published network for short clips without a spectrogram: 36 layers of 256 channels, dilations up to 2,048."""
        return cls(**{"width": 256, "layers": 36, "cycle": 12, **options})

    @property
    def reach(self) -> int:
        """Samples to each side on which an output depends."""
        return sum(layer.dilated.dilation[0] for layer in self.layers.children())  # type: ignore[union-attr,index,misc]

    @torch.no_grad()
    def initialise(self) -> None:
        """Kaiming's normal law for convolutions, the head zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
        zero(self.head)

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Map scaled sound ``(B, channels, L)`` at noise coordinates ``(B,)`` to ``(B, out_channels, L)``.

        Raises:
            ValueError: conditions the network does not know, or a spectrogram that does not cover the sound.
        """
        cond = NO_COND if cond is None else cond
        check_sizes(x, noise, self.channels, (self.divisor,))
        self.conditions.check(x, cond)
        dtype = self.stem.weight.dtype
        emb, mel = self.embed(noise, cond), self._mel(x, cond, dtype)
        h = F.relu(self.stem(concat_maps(x.to(dtype), cond, tuple(self.conditions.maps))))
        total = torch.zeros_like(h)
        for layer in self.layers.children():
            h, skip = layer(h, emb, mel)
            total = total + skip
        return self.head(F.relu(self.skip(total * len(self.layers) ** -0.5)))

    def embed(self, noise: Tensor, cond: Cond) -> Tensor:
        """The embedding ``(B, 512)`` of noise (sines and cosines of ``t 10^(4 j / 63)``), label and vectors."""
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        powers = torch.arange(WAVES, device=noise.device, dtype=noise.dtype) * (4 / (WAVES - 1))
        angle = noise[:, None] * 10**powers
        waves = torch.cat([angle.sin(), angle.cos()], 1).to(self.first.weight.dtype)
        emb = F.silu(self.second(F.silu(self.first(waves))))
        return with_conditions(emb, cond, self.label, self.vectors)

    def _mel(self, x: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor | None:
        """The spectrogram at the rate of the samples; zero before it is stretched where it is hidden or masked."""
        if self.stretch is None:
            return None
        ((name, bands),) = self.conditions.tokens.items()
        columns = x.shape[-1] // self.hop
        if name not in cond.tokens:
            mel = x.new_zeros(len(x), bands, columns, dtype=dtype)
        else:
            states = cond.tokens[name].to(dtype)
            if states.shape[1] != columns:
                raise ValueError(
                    f"sound of {x.shape[-1]} samples needs a spectrogram of {columns} columns ({self.hop} samples each), "
                    f"got {states.shape[1]}"
                )
            mel = torch.where((cond.mask(name) & cond.visible(name)[:, None])[:, :, None], states, 0.0).transpose(1, 2)
        return self.stretch(mel)
