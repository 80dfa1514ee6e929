"""Quantised block formats (Q8_0, Q4_0, the K-quants ...): how blocks hold numbers, both ways.

`unpack` and `pack` are exact to the bit against the format's definition, and work chunk by chunk
inside the cache: in NumPy, which is readable (`kernels.unpackers` has a reader for every format),
or natively with all threads, which gives the same bits. Other runtimes expand or repack at load;
here a `Packed` keeps the bytes as they are (`kernels.packed`).

    packed = pack(generator.standard_normal((4096, 640)), FORMATS["q8_0"])
    weight = unpack(packed.prefix(rows=1024))        # (1024, 640) float32

Legend: R rows, C columns, N blocks of a chunk; a trailing number is bytes or elements inside a
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemelo.errors import InputError, UnsupportedError
from gemelo.kernels import native
from gemelo.kernels.packed import FORMATS as FORMATS
from gemelo.kernels.packed import FORMATS_BY_ID as FORMATS_BY_ID
from gemelo.kernels.packed import Bytes as Bytes
from gemelo.kernels.packed import Floats as Floats
from gemelo.kernels.packed import Format as Format
from gemelo.kernels.packed import Packed as Packed
from gemelo.kernels.packed import matrix_shape, own_dims
from gemelo.kernels.unpackers import UNPACKERS

if TYPE_CHECKING:
    from gemelo.kernels import _native

CHUNK_ELEMENTS = 1 << 19  # float32 elements expanded at once: 2 MiB, so that they stay in the cache


def unpack(packed: Packed) -> Floats:
    """The tensor as float32, of `packed.shape`: every element exactly what the format defines."""
    out = np.empty((packed.rows, packed.columns), np.float32)
    for _ in unpacked_chunks(packed, out):
        pass
    return out.reshape(packed.shape)


def unpacked_chunks(packed: Packed, out: Floats | None = None) -> Iterator[tuple[slice, Floats]]:
    """Expand a few rows at a time: yields (slice of rows, their values (., C) float32).

    Values land in `out` (R, C) where given, which is contiguous, else in one buffer that the next
    step overwrites.
    """
    rows, columns = packed.rows, packed.columns
    if not rows * columns:
        return
    step = _rows_at_once(packed.format, rows, columns, in_place=out is not None)
    assert out is None or (out.shape == (rows, columns) and out.flags.c_contiguous)
    scratch = np.empty((step, columns), np.float32) if out is None else out
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        values = scratch[: part.stop - start] if out is None else out[part]
        _expand(packed.blocks[part], packed.format, values)
        yield part, values


def pack(values: NDArray[np.floating[Any]], format: Format) -> Packed:
    """Quantise a float array of any shape, giving the very bytes that llama.cpp's quantiser gives;
    to half precision and bfloat16 it rounds to the nearest, ties to even, and NaN stays NaN.

    Raises InputError where a value is not finite or too large for a block format's half-precision
    scale, and UnsupportedError for formats that are only read.
    """
    _check_packed(format)
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"pack takes floats, not {values.dtype}")
    rows, columns = matrix_shape(values.shape)
    matrix = values.reshape(rows, columns)
    blocks = np.empty((rows, format.row_bytes(columns)), np.uint8)
    if blocks.size:
        in_place = matrix.dtype == np.float32 and matrix.flags.c_contiguous
        step = _rows_at_once(format, rows, columns, in_place)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            _shrink(matrix[part], format, blocks[part])
    return Packed(blocks, format, own_dims(values.shape))


def converted(packed: Packed, format: Format) -> Packed:
    """A tensor in another format, chunk by chunk; itself if it has that format. Raises as `pack`
    does."""
    if packed.format == format:
        return packed
    _check_packed(format)
    blocks = np.empty((packed.rows, format.row_bytes(packed.columns)), np.uint8)
    for part, values in unpacked_chunks(packed):
        _shrink(values, format, blocks[part])
    return Packed(blocks, format, packed.dims)


def _rows_at_once(format: Format, rows: int, columns: int, in_place: bool) -> int:
    """As many as stay in the cache; natively all of them, if nothing lies between."""
    if in_place and _native_format(format) is not None:
        return rows
    return min(rows, max(1, CHUNK_ELEMENTS // columns))


def _check_packed(format: Format) -> None:
    if format.name not in PACKERS:
        raise UnsupportedError(
            f"cannot quantise to {format.name}; choose one of {', '.join(PACKERS)}"
        )


def _expand(blocks: Bytes, format: Format, out: Floats) -> None:
    """Rows of blocks to numbers (., C), contiguous."""
    kind = _native_format(format)
    if kind is not None:
        (rows, columns), weight = out.shape, Packed(blocks, format)
        native.extension.unpack(
            weight.address, weight.stride, kind, rows, columns, Packed.of(out).address
        )
        return
    with np.errstate(all="ignore"):  # scales may be infinite or no numbers
        UNPACKERS[format.name](
            blocks.reshape(-1, format.block_bytes), out.reshape(-1, format.block)
        )


def _shrink(values: NDArray[np.floating[Any]], format: Format, out: Bytes) -> None:
    """Numbers (., C) to rows of blocks, contiguous."""
    with np.errstate(all="ignore"):
        numbers = np.ascontiguousarray(values, np.float32)
        kind = _native_format(format)
        if kind is None:
            PACKERS[format.name](
                numbers.reshape(-1, format.block), out.reshape(-1, format.block_bytes)
            )
            return
    (rows, columns), source, target = numbers.shape, Packed.of(numbers), Packed(out, format)
    if not native.extension.pack(source.address, rows, columns, kind, target.address):
        raise _no_scale_holds(format.name)


def _native_format(format: Format) -> _native.Format | None:
    """What the extension calls a format that it reads, and writes if `pack` does; None where
    NumPy has to."""
    if native.module is None:
        return None
    known: _native.Format | None = native.module.Format.__members__.get(format.name.upper())
    return known


# The writers take values (N, block) float32 and fill blocks (N, block_bytes).


def _pack_f32(values: Floats, blocks: Bytes) -> None:
    blocks.view(np.float32)[...] = values


def _pack_f16(values: Floats, blocks: Bytes) -> None:
    blocks.view(np.float16)[...] = values


def _pack_bf16(values: Floats, blocks: Bytes) -> None:
    """The upper halves of float32, rounded as integers; whatever is no number is one NaN."""
    bits = values.view(np.uint32)
    rounded = bits + (0x7FFF + (bits >> 16 & 1))
    rounded >>= 16
    rounded[np.isnan(values)] = 0x7FC0
    blocks.view(np.uint16)[...] = rounded


def _pack_q8_0(values: Floats, blocks: Bytes) -> None:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    blocks[:, :2] = _stored_scale(scale, "q8_0")
    scaled = values * _inverse(scale)
    quants = np.trunc(scaled)
    scaled -= quants
    quants += np.trunc(scaled * 2)  # C's roundf: halves away from zero
    blocks[:, 2:] = quants.astype(np.int8).view(np.uint8)


def _pack_q4_0(values: Floats, blocks: Bytes) -> None:
    high, low = values.max(axis=1, keepdims=True), values.min(axis=1, keepdims=True)
    peak = np.where(high > -low, high, low)  # the value of largest magnitude, with its sign
    tied = np.flatnonzero(high == -low)  # then the earlier one in the block counts
    first = np.abs(values[tied]).argmax(axis=1)
    peak[tied, 0] = values[tied, first]
    scale = peak / np.float32(-8)
    blocks[:, :2] = _stored_scale(scale, "q4_0")
    scaled = values * _inverse(scale)
    scaled += np.float32(8.5)
    quants = np.trunc(scaled, out=scaled).clip(0, 15).astype(np.uint8)
    blocks[:, 2:] = quants[:, :16] | quants[:, 16:] << 4


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where that is infinite (an empty block, or one below the normal numbers)."""
    inverse = np.reciprocal(scale)
    inverse[np.isinf(inverse)] = 0
    return inverse


def _stored_scale(scale: Floats, name: str) -> Bytes:
    """The (N, 1) scale as two bytes of half precision."""
    half = scale.astype(np.float16)
    if not np.isfinite(half).all():
        raise _no_scale_holds(name)
    return half.view(np.uint8)


def _no_scale_holds(name: str) -> InputError:
    return InputError(f"cannot quantise to {name}: a value is infinite, not a number or above 8e6")


PACKERS: dict[str, Callable[[Floats, Bytes], None]] = {
    "f32": _pack_f32,
    "f16": _pack_f16,
    "bf16": _pack_bf16,
    "q8_0": _pack_q8_0,
    "q4_0": _pack_q4_0,
}
