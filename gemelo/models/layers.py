"""Transformer layers of both decoders: linear maps, RMSNorm, RoPE, grouped-query attention, GeGLU.

`Linear` is the one seam: nested widths, quantised weights, adapters and dtype all pass through
its forward, and no model file knows any of them. Keys and values travel from layer to layer, not
through the cache: `Attention.keys` makes them (and stores them, if there is a cache), its forward
attends over whatever it is handed, its own or a donor's. Positions are data: an `AttentionContext`
holds the rotary angles and masks that follow from the positions of a step's tokens, made once for
all layers.

    ctx = AttentionContext.of(config, positions, cache, x.dtype)
    y = attention(x, ctx, attention.keys(x, ctx))

B rows, T tokens, S keys, H query heads, K key/value heads, D width, F feed-forward width, d head
width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig
from gemelo.models.masks import attention_mask
from gemelo.models.product import product

# The child of a fork has none of torch's threads, and torch's OpenMP waits for them for good. The
# native products, which matter, make threads of their own there (kernels/csrc/runtime/pool.cpp).
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Module(nn.Module):
    """A module whose forward gives one tensor, which type checkers read of a call."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            """`forward`, and the hooks around it."""


class KV(NamedTuple):
    """Keys (after norm and rotation) and values, both (B, K, S, d)."""

    k: Tensor
    v: Tensor


class Rope(NamedTuple):
    """Cosines and sines of a step's angles, both (B, 1, T, d / 2) in the activation dtype."""

    cos: Tensor
    sin: Tensor


class StepInputs(NamedTuple):
    """What a step brings beside ids, where pictures or sounds are among its tokens.

    inputs_embeds (B, T, D) are used instead of the ids' own; attend_until (B, T) is the last
    position that each token sees, which for those of a picture lies ahead; None for their own.
    """

    inputs_embeds: Tensor
    attend_until: Tensor | None = None


class Cache(Protocol):
    """What a decoder asks of a KV cache; `gemelo.engine.kv.KVCache` is the one there is."""

    def place(self, positions: Tensor) -> dict[str, Tensor]:
        """Reserve slots for a step's tokens (B, T); the positions each kind of layer will see."""

    def write(self, layer: int, new: KV) -> KV:
        """Store the step's keys and values of one layer; everything that layer sees."""


class Linear(Module):
    """y = x W^T, of which the leading rows or columns of W may be used alone.

    `rows` keeps the first outputs, `columns` says that x holds only the first inputs: a nested
    feed-forward (MatFormer, arXiv 2310.07707) is this matrix with fewer of either, as a view.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)

    def forward(self, x: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
        """x (..., columns) -> (..., rows); both default to the whole matrix."""
        return product(x, self.weight[:rows, :columns])


class Embedding(Module):
    """Token rows on the way in and, tied, the head on the way out."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that rows come out in, which is the model's activation dtype."""
        return self.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> rows (B, T, D), unscaled."""
        return F.embedding(ids, self.weight)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> scores over the vocabulary (..., V): the tied head."""
        return product(x, self.weight)


class RMSNorm(Module):
    """x / rms(x) * (offset + w), in float32 and rounded once (arXiv 1910.07467).

    Gemma 3 stores w around zero, so its offset is 1. The product is taken before the cast back;
    Llama casts first, and the two differ in bfloat16.
    """

    def __init__(self, width: int, eps: float, offset: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x, self.eps) * (self.offset + self.weight.float())).to(x.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, in float32."""
    y = x.float()
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)


def rotary(positions: Tensor, frequencies: Sequence[float], dtype: torch.dtype) -> Rope:
    """Angles of positions (B, T), for the frequencies of a head's d / 2 pairs.

    Angles are float32 whatever the dtype; only their cosines and sines are rounded
    (RoFormer, arXiv 2104.09864).
    """
    turns = torch.tensor(frequencies, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * turns  # (B, 1, T, d / 2)
    return Rope(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the pairs (p, p + d/2) of every head of x (B, H, T, d) by the step's angles."""
    low, high = x.chunk(2, dim=-1)
    turned = (low * rope.cos - high * rope.sin, high * rope.cos + low * rope.sin)
    return torch.cat(turned, dim=-1)


def attend(q: Tensor, kv: KV, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention of q (B, H, T, d) over kv (B, K, S, d) -> (B, T, H * d).

    mask is bool (B, 1, T, S); H / K consecutive query heads share a key head.
    """
    y = F.scaled_dot_product_attention(
        q, kv.k, kv.v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != kv.k.shape[1]
    )
    return y.transpose(1, 2).flatten(2)


def eager_attend(q: Tensor, kv: KV, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`attend` written down: the same, and its probabilities (B, H, T, S)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in kv)  # (B, H, S, d)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (probabilities @ v).transpose(1, 2).flatten(2), probabilities


class AttentionContext(NamedTuple):
    """The tokens of a step as its layers see them: how to turn them, and what they may look at."""

    ropes: dict[LayerType, Rope]
    masks: dict[LayerType, Tensor]  # (B, 1, T, S)
    cache: Cache | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        positions: Tensor,
        cache: Cache | None,
        dtype: torch.dtype,
        attend_until: Tensor | None = None,
    ) -> AttentionContext:
        """Angles and masks of positions (B, T); places the tokens in the cache if there is one.

        Sliding layers turn fast and unscaled; full layers turn slowly, scaled in the larger models.
        """
        keys = dict.fromkeys(LAYER_TYPES, positions) if cache is None else cache.place(positions)
        turns = {kind: config.rope(kind).frequencies(config.head_dim) for kind in LAYER_TYPES}
        ropes = {k: rotary(positions, turns[k], dtype) for k in LAYER_TYPES}
        masks = {
            k: attention_mask(positions, keys[k], config.window(k), attend_until)
            for k in LAYER_TYPES
        }
        return cls(ropes, masks, cache)

    def last(self, count: int) -> AttentionContext:
        """The last `count` tokens of the step; what they may look at stays."""
        ropes = {k: Rope(last(r.cos, count), last(r.sin, count)) for k, r in self.ropes.items()}
        return AttentionContext(
            ropes, {k: last(m, count) for k, m in self.masks.items()}, self.cache
        )


def last(x: Tensor, count: int) -> Tensor:
    """The last `count` tokens of x (..., T, width), as a view."""
    return x.narrow(-2, x.shape[-2] - count, count)


class Attention(Module):
    """Grouped-query attention with normalised queries and keys (Gemma 3 report, section 2)."""

    attention_interface: Callable[[Tensor, KV, Tensor, float], Tensor] = staticmethod(attend)

    def __init__(self, config: ModelConfig, layer: int, v_norm: nn.Module) -> None:
        """A layer that borrows its keys and values has no maps to make them."""
        super().__init__()
        facts, norm_offset = config.layer(layer), config.norm_offset
        self.layer, self.layer_type = layer, facts.type
        self.head_dim = config.head_dim
        # Cosines and sines of queries and of keys would be multiplied by it.
        self.scale = config.attention_scale * facts.rope.attention_scaling**2
        width, d = config.hidden_size, config.head_dim
        self.q_proj = Linear(width, config.num_attention_heads * d)
        self.q_norm = RMSNorm(d, config.rms_norm_eps, norm_offset)
        self.o_proj = Linear(config.num_attention_heads * d, width)
        if facts.owns_keys:
            self.k_proj = Linear(width, config.num_key_value_heads * d)
            self.k_norm = RMSNorm(d, config.rms_norm_eps, norm_offset)
            self.v_proj = Linear(width, config.num_key_value_heads * d)
            self.v_norm = v_norm

    def keys(self, x: Tensor, ctx: AttentionContext) -> KV:
        """Keys and values of x (B, T, D), and those the cache holds before them: (B, K, S, d)."""
        k = rotate(self.k_norm(self.heads(self.k_proj(x))), ctx.ropes[self.layer_type])
        kv = KV(k, self.v_norm(self.heads(self.v_proj(x))))
        return kv if ctx.cache is None else ctx.cache.write(self.layer, kv)

    def forward(self, x: Tensor, ctx: AttentionContext, kv: KV) -> Tensor:
        """x (B, T, D) -> (B, T, D), over keys and values of this layer or of its donor."""
        q = rotate(
            self.q_norm(self.heads(self.q_proj(x))), ctx.ropes[self.layer_type]
        )  # (B, H, T, d)
        mask = ctx.masks[self.layer_type]
        return self.o_proj(self.attention_interface(q, kv, mask, self.scale))

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, n * d) -> (B, n, T, d)."""
        return x.view(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim).transpose(1, 2)


class MLP(Module):
    """down(gelu(gate(x)) * up(x)), GELU in its tanh form (GeGLU, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, ffn = config.hidden_size, config.layer(layer).intermediate_size
        self.gate_proj = Linear(width, ffn)
        self.up_proj = Linear(width, ffn)
        self.down_proj = Linear(ffn, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        gate = F.gelu(self.gate_proj(x), approximate="tanh")  # (B, T, F)
        return self.down_proj(gate * self.up_proj(x))


def rounded(value: float, like: Tensor) -> Tensor:
    """A constant in the activation dtype, as the reference rounds it before it multiplies."""
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def softcap(scores: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(scores / cap), smoothly within +-cap; the scores themselves without a cap."""
    return scores if cap is None else cap * torch.tanh(scores / cap)
