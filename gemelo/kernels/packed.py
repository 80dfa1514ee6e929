"""Packed tensors: the bytes of a weight as a file has them, and the format that says what they are.

A quantised row is a run of blocks; a block holds 32 or 256 elements as small integers with one or
two scales; plain floats are blocks of one. A `Packed` keeps those bytes, usually as a view of a
memory map, so loading converts nothing and a narrower sub-model is a prefix of rows or of blocks,
without a copy. It is the weight type from file to kernel: half-precision matrices and vectors
included, whose numbers NumPy has no type for or nobody needs as float32.

    packed = Packed(blocks, FORMATS["q4_k"])           # (R, row_bytes) uint8
    packed.shape, packed.prefix(rows=1024).nbytes

Legend: R rows, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """One element layout: `block` elements of a row lie together in `block_bytes` bytes."""

    name: str
    ggml_id: int
    block: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; `columns` must be whole blocks, else InputError."""
        if columns < 0 or columns % self.block:
            smaller = "" if self.block <= 32 or columns % 32 else "q8_0 (blocks of 32), "
            raise InputError(
                f"{columns} columns cannot be {self.name}, whose rows are whole blocks of "
                f"{self.block}; choose {smaller}bf16 or f32, or native: as the file has them"
            )
        return columns // self.block * self.block_bytes


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 0, 1, 4),
        Format("f16", 1, 1, 2),
        Format("bf16", 30, 1, 2),
        Format("q4_0", 2, 32, 18),
        Format("q4_1", 3, 32, 20),
        Format("q5_0", 6, 32, 22),
        Format("q5_1", 7, 32, 24),
        Format("q8_0", 8, 32, 34),
        Format("q2_k", 10, 256, 84),
        Format("q3_k", 11, 256, 110),
        Format("q4_k", 12, 256, 144),
        Format("q5_k", 13, 256, 176),
        Format("q6_k", 14, 256, 210),
        Format("iq4_nl", 20, 32, 18),
    )
}
FORMATS_BY_ID: dict[int, Format] = {f.ggml_id: f for f in FORMATS.values()}


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor kept in a block format: `blocks` is (R, row_bytes) uint8 with unit inner stride.

    The outer stride may be longer than a row (a prefix view), and the memory may be a map. `dims`
    is the tensor's own shape where it is not the matrix (R, C): its last dimension is C, and R the
    product of the others (1 of a vector or of a single number, whose shape is ()).
    """

    blocks: Bytes
    format: Format
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        blocks, block_bytes = self.blocks, self.format.block_bytes
        if blocks.dtype != np.uint8 or blocks.ndim != 2:
            raise InputError(
                f"blocks must be a (rows, row_bytes) uint8 array, "
                f"not {blocks.ndim}-dimensional {blocks.dtype}"
            )
        rows, row_bytes = blocks.shape
        apart, step = blocks.strides
        if row_bytes % block_bytes or (blocks.size and (step != 1 or (rows > 1 and apart < 0))):
            raise InputError(
                f"rows of {row_bytes} bytes (strides {apart}, {step}) are not "
                f"{self.format.name} blocks of {block_bytes} bytes, one behind the other"
            )
        if self.dims is not None and matrix_shape(self.dims) != (rows, self.columns):
            raise InputError(
                f"a tensor of shape {self.dims} is not a matrix of {rows} x {self.columns}"
            )

    @classmethod
    def of(cls, values: Floats) -> Packed:
        """A float32 array of any shape as f32, a view if it is contiguous; InputError for other
        types of numbers, which `quants.pack` takes."""
        if values.dtype != np.float32:
            raise InputError(f"blocks of f32 are made of float32 numbers, not of {values.dtype}")
        matrix = np.ascontiguousarray(values).reshape(matrix_shape(values.shape))
        return cls(matrix.view(np.uint8), FORMATS["f32"], own_dims(values.shape))

    @property
    def rows(self) -> int:
        """R, of the matrix."""
        return len(self.blocks)

    @property
    def columns(self) -> int:
        """C, of the matrix."""
        return int(self.blocks.shape[1]) // self.format.block_bytes * self.format.block

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's own shape, in elements; (R, C) of a matrix."""
        return (self.rows, self.columns) if self.dims is None else self.dims

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that this view covers."""
        return self.blocks.size

    @property
    def address(self) -> int:
        """Of the first byte; good for as long as `blocks` is held."""
        return int(self.blocks.__array_interface__["data"][0])

    @property
    def stride(self) -> int:
        """Bytes from row to row."""
        return self.blocks.strides[0]

    def prefix(self, rows: int | None = None, columns: int | None = None) -> Packed:
        """The leading rows and columns of a matrix as a view; InputError for part of a block, for
        too many, and for what is no matrix."""
        if len(self.shape) != 2:
            raise InputError(f"a tensor of shape {self.shape} is no matrix to take rows of")
        rows = self.rows if rows is None else rows
        columns = self.columns if columns is None else columns
        if not (0 <= rows <= self.rows and columns <= self.columns):
            raise InputError(
                f"a prefix of {rows} x {columns} does not fit in {self.rows} x {self.columns}"
            )
        return Packed(self.blocks[:rows, : self.format.row_bytes(columns)], self.format)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(R, C) of a tensor of any shape: its last dimension, and the product of the others."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def own_dims(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """`Packed.dims` of a tensor of that shape: None for a matrix."""
    return None if len(shape) == 2 else shape
