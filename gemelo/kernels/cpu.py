"""The native products: block formats computed on directly, with whatever the processor has.

Matrices stay as the file has them and are multiplied without being expanded: few tokens by integer
dot products that give a token the same numbers alone as among sixteen, many tokens on panels of
expanded rows (docs/kernels.md). What is called here has to be native (`takes`); `products` picks.

    y = cpu.linear(x, packed)                    # (..., C) -> (..., R); the reference's signature

Legend: R rows, C columns.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.kernels import native
from gemelo.kernels.packed import Floats, Format, Packed
from gemelo.kernels.reference import checked_index, checked_input

if TYPE_CHECKING:
    from gemelo.kernels._native import Matrix

Index = NDArray[np.int64]


class Layout(Enum):
    """How a matrix lies: as in the file, or as one of the copies of `kernels.repacked`; or as in
    the file, to be summed like the panels that it becomes. Names are the extension's."""

    ROWS, PANELS, STRIPS, ROWS_AS_PANELS = auto(), auto(), auto(), auto()


# The formats that the extension multiplies, by our names.
_FORMATS = {
    name.lower(): format
    for name, format in (
        {} if native.extension is None else native.extension.Format.__members__
    ).items()
}
FORMATS = frozenset(_FORMATS)


def takes(weight: Packed) -> bool:
    """Whether `linear` by a weight, or `embedding` of its rows, runs natively."""
    return native.module is not None and weight.format.name in FORMATS


def linear(x: Floats, weight: Packed, index: Index | None = None) -> Floats:
    """x (..., C) times weight (R, C) transposed: (..., R), or only the rows that `index` (N) names:
    (..., N)."""
    inputs = np.ascontiguousarray(checked_input(x, weight))
    rows, columns = weight.rows, weight.columns
    if index is not None:
        if index.ndim != 1:
            raise InputError(f"an index of shape {index.shape}; expected one dimension")
        index = checked_index(index, rows)
        rows = len(index)
    tokens = math.prod(x.shape[:-1])
    if not tokens or not rows or not columns:
        return np.zeros((*x.shape[:-1], rows), np.float32)
    out = np.empty((*x.shape[:-1], rows), np.float32)
    native.extension.product(
        address_of(inputs),
        columns,
        False,
        tokens,
        matrix(weight, index),
        address_of(out),
        rows,
        False,
    )
    return out


def embedding(ids: NDArray[np.integer[Any]], weight: Packed) -> Floats:
    """The rows of weight (R, C) that integer ids (...) name: (..., C)."""
    columns = weight.columns
    index = checked_index(ids, weight.rows)
    out = np.empty((*ids.shape, columns), np.float32)
    native.extension.gather(
        address_of(index), index.size, matrix(weight), address_of(out), columns, False
    )
    return out


def argmax(scores: Floats, maxima: Floats | None = None) -> int:
    """Where the largest of scores (V,) is, the first if there are several.

    With the maxima of every 64 scores only these and one block are read; without, all threads look,
    each where it wrote, if a native step made the scores.
    """
    if native.module is None or scores.dtype != np.float32 or not scores.flags.c_contiguous:
        return int(scores.argmax())
    beside = 0 if maxima is None else address_of(maxima)
    return native.extension.argmax(address_of(scores), scores.size, beside)


def address_of(array: NDArray[Any]) -> int:
    """Of an array's first byte; good for as long as the array is held."""
    return int(array.__array_interface__["data"][0])


def matrix(weight: Packed, index: Index | None = None) -> Matrix:
    """What the kernels call a matrix: `weight`, or its rows at `index` (N,) int64, by address."""
    shape = weight.rows, weight.columns
    return matrix_at(weight.address, weight.stride, weight.format, shape, index)


def matrix_at(
    address: int,
    stride: int,
    format: Format,
    shape: tuple[int, int],
    index: Index | None = None,
    layout: Layout = Layout.ROWS,
) -> Matrix:
    """The same of blocks at an address; `stride` bytes as in kernels/csrc/gemm/formats.h."""
    rows, place = (shape[0], 0) if index is None else (len(index), address_of(index))
    lies = native.extension.Layout[layout.name]
    return native.extension.Matrix(
        address, stride, _FORMATS[format.name], rows, shape[1], place, lies
    )


def panel_bytes(format: Format, columns: int) -> int:
    """Bytes of sixteen rows, interleaved; 0 for a format that has no panels."""
    return native.extension.panel_bytes(_FORMATS[format.name], columns)
