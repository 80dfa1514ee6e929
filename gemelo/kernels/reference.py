"""Reference products over quantised matrices: slow, obvious, the oracle for every other kernel.

`linear` expands a few rows at a time to float32 and multiplies; `embedding` expands the rows it is
asked for. Both take every block format and stay for ever: a faster kernel is right when it agrees
with these. Expanding piece by piece keeps the peak at one chunk beside the result, where expanding
the matrix first would need four bytes for every weight.

    logits = linear(hidden, packed_head)              # (B, T, H) -> (B, T, V)
    rows = embedding(ids, packed_table, torch.bfloat16)

Legend: R rows (outputs), C columns (inputs).
"""

import torch
from torch import Tensor
from torch.nn import functional

from gemelo.errors import InputError
from gemelo.kernels.quants import Packed, unpack, unpacked_chunks


def linear(x: Tensor, weight: Packed) -> Tensor:
    """x (..., C) times weight (R, C) transposed: (..., R) in x's dtype, computed in float32."""
    rows, columns = weight.shape
    if x.shape[-1:] != (columns,):
        raise InputError(
            f"an input of shape {tuple(x.shape)} does not fit a weight of {rows} x {columns}"
        )
    inputs = x.float()
    out = x.new_zeros(*x.shape[:-1], rows)
    for part, values in unpacked_chunks(weight):
        out[..., part] = functional.linear(inputs, values)
    return out


def embedding(ids: Tensor, weight: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    rows = chosen_rows(weight, ids.reshape(-1))
    return unpack(rows, dtype).view(*ids.shape, weight.shape[1])


def chosen_rows(weight: Packed, index: Tensor) -> Packed:
    """A copy of the rows that integers `index` (N,) name; InputError if one lies outside."""
    if index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"ids must be integers, not {index.dtype}")
    try:
        return Packed(weight.blocks.index_select(0, index), weight.format)
    except IndexError:
        raise InputError(f"a row outside a matrix of {weight.shape[0]} rows") from None
