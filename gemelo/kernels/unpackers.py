"""Block readers: what the bytes of every block format (Q4_0, the K-quants ...) mean, as numbers.

Every reader takes blocks (N, block_bytes) uint8 and writes out (N, block) float32, exactly what the
format defines. Integers are put together as bytes in contiguous planes, converted once and scaled
in place: a byte pass costs a quarter of a float pass, and arithmetic on short strided runs costs
more than copying them out first. Scales may be infinite or no numbers, and so may what comes of
them; `quants` keeps NumPy from warning of that.

    UNPACKERS["q4_0"](blocks, out)

Legend: N blocks of a chunk; a trailing number is bytes or elements inside a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gemelo.kernels.packed import Bytes, Floats


def _half(blocks: Bytes, start: int, stop: int) -> Floats:
    """The half-precision numbers stored at bytes [start, stop) of every block, as float32."""
    return blocks[:, start:stop].view(np.float16).astype(np.float32)


def _unpack_f32(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view(np.float32)


def _unpack_f16(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view(np.float16)


def _unpack_bf16(blocks: Bytes, out: Floats) -> None:
    bits = out.view(np.uint32)
    bits[...] = blocks.view(np.uint16)
    bits <<= 16


def _nibbles(quants: Bytes) -> Bytes:
    """(N, 16) bytes to (N, 32): low nibbles are elements 0-15, high ones elements 16-31."""
    both = np.empty((len(quants), 32), np.uint8)
    np.bitwise_and(quants, 15, out=both[:, :16])
    np.right_shift(quants, 4, out=both[:, 16:])
    return both


def _signed(quants: Bytes, zero: int) -> NDArray[np.int8]:
    """Quants as they count from `zero`, in place."""
    signed = quants.view(np.int8)
    signed -= zero
    return signed


def _unpack_q4_0(blocks: Bytes, out: Floats) -> None:
    out[...] = _signed(_nibbles(blocks[:, 2:]), 8)
    out *= _half(blocks, 0, 2)


def _unpack_q4_1(blocks: Bytes, out: Floats) -> None:
    out[...] = _nibbles(blocks[:, 4:])
    out *= _half(blocks, 0, 2)
    out += _half(blocks, 2, 4)


def _fifth_bits(packed_bits: Bytes, clear: int) -> NDArray[np.int8]:
    """(N, 4) bytes, a bit per element, to (N, 32) int8: `clear` where it is 0, 16 more where 1."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1  # every byte, spread to eight
    table = ((bits << 4) + clear).astype(np.int8).view(np.int64)[:, 0]
    return np.take(table, packed_bits).view(np.int8)


def _unpack_q5_0(blocks: Bytes, out: Floats) -> None:
    quants = _fifth_bits(blocks[:, 2:6], clear=-16)
    quants += _nibbles(blocks[:, 6:]).view(np.int8)
    out[...] = quants
    out *= _half(blocks, 0, 2)


def _unpack_q5_1(blocks: Bytes, out: Floats) -> None:
    quants = _fifth_bits(blocks[:, 4:8], clear=0)
    quants += _nibbles(blocks[:, 8:]).view(np.int8)
    out[...] = quants
    out *= _half(blocks, 0, 2)
    out += _half(blocks, 2, 4)


def _unpack_q8_0(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0, 2)


def _planes(run: Bytes) -> Bytes:
    """(N, 32 k) bytes to (k, N, 32) contiguous: plane i holds the i-th 32 bytes of every block."""
    return np.ascontiguousarray(run.reshape(len(run), -1, 32).swapaxes(0, 1))


def _shifted(planes: Bytes, *shifts: int) -> Bytes:
    """`planes` (...) shifted right by each amount: (len(shifts), ...)."""
    return planes >> np.array(shifts, np.uint8).reshape(-1, *[1] * planes.ndim)


def _upper_bits(pairs: Bytes) -> Bytes:
    """Bytes (...) of four pairs of bits to the fifth and sixth bits of a number each: (4, ...)."""
    upper = _shifted(pairs, 0, 2, 4, 6)
    upper &= 3
    upper <<= 4
    return upper


def _unpack_q2_k(blocks: Bytes, out: Floats) -> None:
    quants = _shifted(_planes(blocks[:, 16:80]), 0, 2, 4, 6) & 3  # (4, 2, N, 32)
    out.reshape(-1, 2, 4, 32)[...] = quants.transpose(2, 1, 0, 3)
    packed_scales = blocks[:, :16]
    scales = (packed_scales & 15) * _half(blocks, 80, 82)
    minima = (packed_scales >> 4) * _half(blocks, 82, 84)
    groups = out.reshape(-1, 16, 16)
    groups *= scales[:, :, None]
    groups -= minima[:, :, None]


def _unpack_q3_k(blocks: Bytes, out: Floats) -> None:
    quants = _shifted(_planes(blocks[:, 32:96]), 0, 2, 4, 6)  # (4, 2, N, 32)
    quants &= 3
    third = _shifted(blocks[:, :32], *range(8)) & 1  # (8, N, 32), bit 4 half + run
    quants += (third << 2).reshape(2, 4, -1, 32).swapaxes(0, 1)  # a clear bit takes 4 away
    out.reshape(-1, 2, 4, 32)[...] = _signed(quants, 4).transpose(2, 1, 0, 3)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    upper = _upper_bits(high).swapaxes(0, 1).reshape(-1, 16)
    scales = _signed(np.concatenate([low & 15, low >> 4], axis=1) | upper, 32)
    groups = out.reshape(-1, 16, 16)
    groups *= (scales * _half(blocks, 108, 110))[:, :, None]


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minima in bytes 4-15, times d and dmin: two (N, 8, 1) float32.

    The twelve bytes are three little-endian words of four lanes; two more bits of lanes 4-7 sit on
    top of lanes 0-3. Four lanes are worked at once.
    """
    lanes = blocks[:, 4:16].view(np.uint32)
    scale, minimum, rest = lanes[:, 0], lanes[:, 1], lanes[:, 2]
    words = np.stack(
        [
            scale & 0x3F3F3F3F,
            rest & 0x0F0F0F0F | scale >> 2 & 0x30303030,
            minimum & 0x3F3F3F3F,
            rest >> 4 & 0x0F0F0F0F | minimum >> 2 & 0x30303030,
        ],
        axis=1,
    )
    both = words.view(np.uint8).reshape(-1, 2, 8) * _half(blocks, 0, 4)[:, :, None]
    return both[:, 0, :, None], both[:, 1, :, None]


def _unpack_q4_k(blocks: Bytes, out: Floats) -> None:
    pairs = out.reshape(-1, 4, 2, 32)
    pairs[:, :, 0] = (blocks[:, 16:] & 15).reshape(-1, 4, 32)
    pairs[:, :, 1] = (blocks[:, 16:] >> 4).reshape(-1, 4, 32)
    _scale_runs(blocks, out)


def _unpack_q5_k(blocks: Bytes, out: Floats) -> None:
    nibbles = _planes(blocks[:, 48:])  # (4, N, 32)
    quants = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(8, -1, 32)
    quants |= (_shifted(blocks[:, 16:48], *range(8)) & 1) << 4
    out.reshape(-1, 8, 32)[...] = quants.swapaxes(0, 1)
    _scale_runs(blocks, out)


def _scale_runs(blocks: Bytes, out: Floats) -> None:
    """Each run of 32 quants times its scale, less its minimum, in place."""
    scales, minima = _scales_and_minima(blocks)
    runs = out.reshape(-1, 8, 32)
    runs *= scales
    runs -= minima


def _unpack_q6_k(blocks: Bytes, out: Floats) -> None:
    low = _planes(blocks[:, :128]).reshape(2, 2, -1, 32)  # (half, run, N, 32)
    high = _upper_bits(_planes(blocks[:, 128:192])).swapaxes(0, 1)  # (half, 4, N, 32)
    quants = np.concatenate([low & 15, low >> 4], axis=1) | high
    out.reshape(-1, 2, 4, 32)[...] = _signed(quants, 32).transpose(2, 0, 1, 3)
    scales = blocks[:, 192:208].view(np.int8) * _half(blocks, 208, 210)
    groups = out.reshape(-1, 16, 16)
    groups *= scales[:, :, None]


def _unpack_iq4_nl(blocks: Bytes, out: Floats) -> None:
    levels = np.array(IQ4_NL_LEVELS, np.float32)
    out[...] = np.take(levels, _nibbles(blocks[:, 2:]))
    out *= _half(blocks, 0, 2)


IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

UNPACKERS: dict[str, Callable[[Bytes, Floats], None]] = {
    "f32": _unpack_f32,
    "f16": _unpack_f16,
    "bf16": _unpack_bf16,
    "q4_0": _unpack_q4_0,
    "q4_1": _unpack_q4_1,
    "q5_0": _unpack_q5_0,
    "q5_1": _unpack_q5_1,
    "q8_0": _unpack_q8_0,
    "q2_k": _unpack_q2_k,
    "q3_k": _unpack_q3_k,
    "q4_k": _unpack_q4_k,
    "q5_k": _unpack_q5_k,
    "q6_k": _unpack_q6_k,
    "iq4_nl": _unpack_iq4_nl,
}
