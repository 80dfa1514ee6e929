"""Reference products over quantised matrices: slow, obvious, the oracle for every other kernel.

`linear` expands a few rows at a time to float32 and multiplies; `embedding` expands the rows it is
asked for. Both take every block format and stay for ever: a faster kernel is right when it agrees
with these. Expanding piece by piece keeps the peak at one chunk beside the result, where expanding
the matrix first would need four bytes for every weight.

    logits = linear(hidden, packed_head)              # (B, T, H) -> (B, T, V)
    rows = embedding(ids, packed_table)               # (B, T) -> (B, T, H)

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.kernels.packed import Floats, Packed
from gemelo.kernels.quants import unpack, unpacked_chunks


def linear(x: Floats, weight: Packed) -> Floats:
    """x (..., C) times weight (R, C) transposed: (..., R), computed in float32."""
    inputs = checked_input(x, weight)
    out = np.zeros((*x.shape[:-1], weight.rows), np.float32)
    with np.errstate(all="ignore"):  # broken weights show as broken sums
        for part, values in unpacked_chunks(weight):
            out[..., part] = inputs @ values.T
    return out


def embedding(ids: NDArray[np.integer[Any]], weight: Packed) -> Floats:
    """The rows of weight (R, C) that integer ids (...) name: (..., C)."""
    return unpack(chosen_rows(weight, ids.reshape(-1))).reshape(*ids.shape, weight.columns)


def chosen_rows(weight: Packed, index: NDArray[np.integer[Any]]) -> Packed:
    """A copy of the rows that integers `index` (N,) name; InputError if one lies outside."""
    return Packed(weight.blocks[checked_index(index, weight.rows)], weight.format)


def checked_input(x: Floats, weight: Packed) -> Floats:
    """x itself; InputError if it has other columns than the weight, or is not float32."""
    if x.dtype != np.float32:
        raise InputError(f"products take float32 numbers, not {x.dtype}")
    if x.shape[-1:] != (weight.columns,):
        raise InputError(
            f"an input of shape {x.shape} does not fit a weight of {weight.rows} x {weight.columns}"
        )
    return x


def checked_index(index: NDArray[np.integer[Any]], rows: int) -> NDArray[np.int64]:
    """Row numbers as int64, contiguous; InputError if one lies outside a matrix of `rows`."""
    if index.dtype.kind not in "iu":
        raise InputError(f"ids must be integers, not {index.dtype}")
    numbers = np.ascontiguousarray(index, np.int64).reshape(index.shape)
    if numbers.size:
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= rows:
            raise InputError(f"row {low if low < 0 else high} of a matrix of {rows} rows")
    return numbers
