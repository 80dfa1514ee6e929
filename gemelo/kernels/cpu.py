"""The native products: block formats computed on directly, with whatever the processor has.

Matrices stay as the file has them and are multiplied without being expanded: few tokens by integer
dot products that give a token the same numbers alone as among sixteen, many tokens on panels of
expanded rows (docs/kernels.md). What is called here has to be native (`takes`); `products` picks.

    y = cpu.linear(x, packed)                    # (..., C) -> (..., R); the reference's signature

Legend: R rows, C columns.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemelo.errors import InputError
from gemelo.kernels import native
from gemelo.kernels.quants import Format, Packed

if TYPE_CHECKING:
    from gemelo.kernels._native import Matrix

DTYPES = (torch.float32, torch.bfloat16)


class Layout(Enum):
    """How a matrix lies: as in the file, or as one of the copies of `kernels.repacked`. Names are
    the extension's."""

    ROWS, PANELS, STRIPS = auto(), auto(), auto()


# The formats that the extension multiplies, by our names.
_FORMATS = {
    name.lower(): format
    for name, format in (
        {} if native.extension is None else native.extension.Format.__members__
    ).items()
}
FORMATS = frozenset(_FORMATS)


def takes(x: Tensor, weight: Packed, dtype: torch.dtype) -> bool:
    """Whether `linear` of x, or `embedding` of ids x, runs natively with numbers of `dtype`."""
    return (
        native.module is not None
        and weight.format.name in FORMATS
        and x.device.type == "cpu"
        and dtype in DTYPES
        and type(x) is Tensor  # others may have no memory
    )


def linear(x: Tensor, weight: Packed, index: Tensor | None = None) -> Tensor:
    """x (..., C) times weight (R, C) transposed: (..., R) in x's dtype, or only the rows that
    `index` (N) names: (..., N)."""
    rows, columns = weight.shape
    if x.shape[-1:] != (columns,):
        raise InputError(
            f"an input of shape {tuple(x.shape)} does not fit a weight of {rows} x {columns}"
        )
    if index is not None:
        if index.dim() != 1:
            raise InputError(f"an index of shape {tuple(index.shape)}; expected one dimension")
        index = _checked(index, rows)
        rows = len(index)
    out = x.new_empty(*x.shape[:-1], rows)
    tokens = out.numel() // rows if rows else 0
    if not tokens or not columns:
        return out.zero_()
    inputs = x if x.is_contiguous() else x.contiguous()
    bf16 = x.dtype == torch.bfloat16
    native.extension.product(
        inputs.data_ptr(), columns, bf16, tokens, matrix(weight, index), out.data_ptr(), rows, bf16
    )
    return out


def embedding(ids: Tensor, weight: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    rows, columns = weight.shape
    index = _checked(ids, rows)
    out = torch.empty(*ids.shape, columns, dtype=dtype)
    native.extension.gather(
        index.data_ptr(), index.numel(), matrix(weight),
        out.data_ptr(), columns, dtype == torch.bfloat16,
    )  # fmt: skip
    return out


def argmax(scores: Tensor) -> int:
    """Where the largest of scores (V,) on the CPU is, the first if there are several.

    All threads look, each where it wrote, if a native step made the scores.
    """
    if native.module is None or scores.dtype != torch.float32 or not scores.is_contiguous():
        return int(scores.numpy().argmax())  # ten times as fast as torch's
    return native.extension.argmax(scores.data_ptr(), scores.numel())


def matrix(weight: Packed, index: Tensor | None = None) -> Matrix:
    """What the kernels call a matrix: `weight`, or its rows at `index` (N,) int64, by address."""
    blocks = weight.blocks
    return matrix_at(blocks.data_ptr(), blocks.stride(0), weight.format, weight.shape, index)


def matrix_at(
    address: int,
    stride: int,
    format: Format,
    shape: tuple[int, int],
    index: Tensor | None = None,
    layout: Layout = Layout.ROWS,
) -> Matrix:
    """The same of blocks at an address; `stride` bytes as in kernels/csrc/gemm/formats.h."""
    rows, place = (shape[0], 0) if index is None else (len(index), index.data_ptr())
    lies = native.extension.Layout[layout.name]
    return native.extension.Matrix(
        address, stride, _FORMATS[format.name], rows, shape[1], place, lies
    )


def panel_bytes(format: Format, columns: int) -> int:
    """Bytes of sixteen rows, interleaved; 0 for a format that has no panels."""
    return native.extension.panel_bytes(_FORMATS[format.name], columns)


def _checked(index: Tensor, rows: int) -> Tensor:
    """Row numbers as the kernels read them; InputError if one lies outside the matrix."""
    if index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"ids must be integers, not {index.dtype}")
    index = index.to(torch.int64).contiguous()
    if index.numel():
        low, high = (int(end) for end in torch.aminmax(index))
        if low < 0 or high >= rows:
            raise InputError(f"row {low if low < 0 else high} of a matrix of {rows} rows")
    return index
