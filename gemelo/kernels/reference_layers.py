"""Reference layers: products, RMSNorm, AltUp's router, GELU and attention of a program, in NumPy.

What the steps of `reference_program` are made of, each as its formula, in float32.

    Norm(weight, 1.0, 1e-6)(x);  Matrix(packed).product(x)
    attention(q, k, v, visible(queries, until, keys, window=512), scale)

N tokens, T queries, S keys, H heads, K key/value heads, d head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemelo.kernels import reference
from gemelo.kernels.quants import Floats, Packed

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight (rows, columns), or its rows at `index` (N,)."""

    weight: Packed
    index: Integers | None = None

    def product(self, x: Floats) -> Floats:
        """x (N, columns) times it transposed: (N, rows)."""
        return reference.linear(x, self._chosen())

    def rows_of(self, ids: Integers) -> Floats:
        """Rows (N, columns) that ids (N,) name."""
        return reference.embedding(ids, self._chosen())

    def _chosen(self) -> Packed:
        return self.weight if self.index is None else reference.chosen_rows(self.weight, self.index)


class Norm(NamedTuple):
    """RMSNorm: x / rms(x) * (offset + weight), or without a weight."""

    weight: Floats | None
    offset: float
    eps: float

    def __call__(self, x: Floats) -> Floats:
        """x (..., W) -> (..., W)."""
        normed: Floats = x / np.sqrt(
            np.square(x).mean(-1, keepdims=True, dtype=np.float32) + self.eps
        )
        return normed if self.weight is None else normed * (self.weight + np.float32(self.offset))


class AltUp(NamedTuple):
    """A layer's coefficients, float32: router (S, D), predictions (S * S, S), corrections (S, S),
    scale (D,), for S streams."""

    router_norm: Norm
    modality_router: Floats
    prediction_coefs: Floats
    correction_coefs: Floats
    correct_output_scale: Floats

    def modalities(self, x: Floats) -> Floats:
        """What kind of token each is, in [-1, 1]: (N, D) -> (N, S)."""
        routed = self.router_norm(x) * np.float32(1 / x.shape[-1])
        seen: Floats = np.tanh(routed @ self.modality_router.T)
        return seen


def gelu(x: Floats) -> Floats:
    """GELU in its tanh form (arXiv 1606.08415)."""
    cubic = x + np.float32(0.044715) * x * x * x
    inner: Floats = np.tanh(np.float32((2 / np.pi) ** 0.5) * cubic)
    return np.float32(0.5) * x * (1 + inner)


def visible(queries: Integers, until: Integers, keys: Integers, window: int) -> NDArray[np.bool_]:
    """Which keys (S,) each query (T,) sees, (T, S): `models.masks.attention_mask` of one row."""
    query, key = queries[:, None], keys[None]
    seen = (key >= 0) & (key <= until[:, None])
    if window:
        seen &= key > query - window
    return seen | (query < 0)


def attention(q: Floats, k: Floats, v: Floats, seen: NDArray[np.bool_], scale: float) -> Floats:
    """q (T, H, d) over k, v (S, K, d) where `seen` (T, S): (T, H, d); H / K consecutive query heads
    share a key head."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)  # (S, H, d)
    scores = np.einsum("thd,shd->hts", q, k) * np.float32(scale)
    scores = np.where(seen, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Floats = np.einsum("hts,shd->thd", weights, v)
    return mixed
