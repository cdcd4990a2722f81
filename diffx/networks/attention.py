"""Attention of all networks, and the hook by which editing methods look into it and change it.

Without a controller every layer is one call of ``scaled_dot_product_attention``. Inside ``with attention_control(controller):`` the
layers that the controller wants take the explicit softmax road, and the controller sees and may replace scores and probabilities. The
controller is local to the context (thread, task), read once at the top of a network's forward and handed down as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Context, Norm

__all__ = [
    "AttentionController", "CrossAttention", "SelfAttention", "Site", "TokenAttention", "active_controller", "attend", "attention_control",
    "count_heads",
]  # fmt: skip


class Site(NamedTuple):
    """Where in a network an attention is computed.

    Attributes:
        layer: dotted name of the layer in its network.
        kind: ``"self"``, ``"cross"``, ``"joint"`` (data and text tokens in one sequence), or ``"time"`` (over the frames of a clip, one row
            of the batch for each place in the picture).
        grid: size of the feature map that the queries come from, e.g. ``(h, w)``; rows first.
        n_prefix: queries in front of the grid (register or class tokens).
        key_slices: what the keys are: ``"grid"``, ``"null"`` (the learned null token), ``"latents"`` (RIN's) or a token source -> slice of
            the key axis.
        noise: (B,) noise coordinate as the network received it, ``c_noise(sigma)``.
    """

    layer: str
    kind: Literal["self", "cross", "joint", "time"]
    grid: tuple[int, ...]
    n_prefix: int
    key_slices: Mapping[str, slice]
    noise: Tensor


class AttentionController:
    """Base of all controllers: wants every layer and changes nothing. Hooks return new tensors and never write into what they are given."""

    def wants(self, site: Site) -> bool:
        """Whether this layer should go through the hooks; the others keep the fused attention."""
        return True

    def scores(self, scores: Tensor, site: Site) -> Tensor:
        """Change the scaled and masked logits ``(B, heads, queries, keys)`` (at least float32, masked keys are -inf) before the softmax."""
        return scores

    def probs(self, probs: Tensor, site: Site) -> Tensor:
        """Change the attention probabilities ``(B, heads, queries, keys)``."""
        return probs


C = TypeVar("C", bound=AttentionController)
_controller: ContextVar[AttentionController | None] = ContextVar("attention_controller", default=None)


@contextmanager
def attention_control(controller: C) -> Iterator[C]:
    """Let ``controller`` see the attention of every network called inside the block, in this thread only; the inner of two blocks wins."""
    token = _controller.set(controller)
    try:
        yield controller
    finally:
        _controller.reset(token)


def active_controller() -> AttentionController | None:
    """The controller of the current context; networks read it once per forward."""
    return _controller.get()


def attend(
    q: Tensor, k: Tensor, v: Tensor, site: Site, *, mask: Tensor | None = None, bias: Tensor | None = None,
    control: AttentionController | None = None,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention ``softmax(q k^T / sqrt(d) + bias) v``.

    Args:
        q: (B, heads, queries, d).
        k: (B, heads, keys, d).
        v: (B, heads, keys, d).
        site: where this happens, for the controller.
        mask: bool, broadcastable to (B, heads, queries, keys), True = may be attended; every query needs at least one key.
        bias: broadcastable alike, added to the scores.
        control: the controller, or None.

    Returns:
        (B, heads, queries, d).
    """
    if control is None or not control.wants(site):
        added = mask if bias is None else bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probs = control.probs(control.scores(scores, site).softmax(-1), site)
    return probs.to(v.dtype) @ v


def count_heads(channels: int, head_dim: int = 64, heads: int | None = None) -> int:
    """Number of heads: ``heads`` if given, else one per ``head_dim`` channels; maps narrower than one head get a single head.

    Raises:
        ValueError: the channels do not divide.
    """
    if heads is None and channels <= head_dim:
        return 1
    if channels % (heads or head_dim):
        what = f"head_dim={head_dim}" if heads is None else f"heads={heads}"
        raise ValueError(f"{what} does not divide the {channels} channels of an attention layer; choose a divisor, or another width")
    return heads or channels // head_dim


class SelfAttention(nn.Module):
    """Every position of a feature map attends to all positions of its sample; GroupNorm before, residual around.

    Args:
        channels: channels C of the map ``(B, C, *grid)``.
        heads: number of heads.
        eps: of the GroupNorm.
        skip_scale: factor on the sum with the residual.
    """

    layer = ""  # dotted name, set by the network

    def __init__(self, channels: int, heads: int, *, eps: float = 1e-5, skip_scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.skip_scale = heads, skip_scale
        self.norm = Norm(channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        grid = tuple(x.shape[2:])
        tokens = rearrange(self.norm(x), "b c ... -> b (...) c")
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind()
        site = Site(self.layer, "self", grid, 0, {"grid": slice(0, tokens.shape[1])}, context.noise)
        tokens = self.out(rearrange(attend(q, k, v, site, control=context.control), "b h n d -> b n (h d)"))
        return residual(x, tokens, self.skip_scale)


class TokenAttention(nn.Module):
    """Every query attends to the token sources and to one learned null token; what `CrossAttention` is on sequences, without residual.

    The null token defines the answer where all tokens are masked, hidden or absent. Keys and values come from LayerNorm and a linear map
    of each source's own width; the sources stand behind each other on the key axis, null first.

    Args:
        channels: channels C of the queries.
        heads: number of heads.
        sources: token source -> width of its states.
        norm: for the caller to apply, to the queries or behind the residual.
    """

    layer = ""  # dotted name, set by the network

    def __init__(self, channels: int, heads: int, sources: Mapping[str, int], norm: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.query = nn.Linear(channels, channels)
        self.kv = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * channels)) for name, width in sources.items()}
        )
        self.null = nn.Parameter(torch.randn(2 * channels) * channels**-0.5)
        self.out = nn.Linear(channels, channels)

    def read(self, tokens: Tensor, context: Context, grid: tuple[int, ...], n_prefix: int = 0) -> Tensor:
        """What the queries ``tokens`` (B, N, C), ``n_prefix`` and one for each position of ``grid``, read from the sources: (B, N, C)."""
        q = rearrange(self.query(tokens), "b n (h d) -> b h n d", h=self.heads)
        rows, slices = [self.null.to(q.dtype).expand(len(q), 1, -1)], {"null": slice(0, 1)}
        keys = 1
        for name, states in context.tokens.items():
            slices[name] = slice(keys, keys + states.shape[1])
            keys += states.shape[1]
            rows.append(self.kv[name](states))
        k, v = rearrange(torch.cat(rows, 1), "b n (two h d) -> two b h n d", two=2, h=self.heads).unbind()
        site = Site(self.layer, "cross", grid, n_prefix, slices, context.noise)
        mask = None if context.mask is None else context.mask[:, None, None]
        return self.out(rearrange(attend(q, k, v, site, mask=mask, control=context.control), "b h n d -> b n (h d)"))


class CrossAttention(TokenAttention):
    """Every position of a feature map attends to the tokens, see `TokenAttention`; GroupNorm before, residual around.

    Args:
        channels: channels C of the map ``(B, C, *grid)``.
        heads, sources: see `TokenAttention`.
        eps: of the GroupNorm.
        skip_scale: factor on the sum with the residual.
    """

    def __init__(self, channels: int, heads: int, sources: Mapping[str, int], *, eps: float = 1e-5, skip_scale: float = 1.0) -> None:
        super().__init__(channels, heads, sources, Norm(channels, eps))
        self.skip_scale = skip_scale

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = self.read(rearrange(self.norm(x), "b c ... -> b (...) c"), context, tuple(x.shape[2:]))
        return residual(x, tokens, self.skip_scale)


def residual(x: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Add tokens ``(B, N, C)`` to the map ``(B, C, *grid)`` that they belong to, and scale the sum."""
    total = x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])
    return total if scale == 1 else total * scale
