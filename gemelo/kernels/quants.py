"""Quantised block formats (Q8_0, Q4_0, the K-quants ...): how blocks hold numbers, both ways.

A quantised row is a run of blocks; a block holds 32 or 256 elements as small integers with one or
two scales; plain floats are blocks of one. A `Packed` matrix keeps those bytes as the file has them
(usually a view of a memory map), so loading converts nothing and a narrower sub-model is a prefix
of rows or of blocks, without a copy. `unpack` and `pack` are plain torch, exact to the bit against
the format's definition, and work chunk by chunk inside the cache. Other runtimes expand or repack
at load; here the bytes stay as they are.

    packed = pack(torch.randn(4096, 640), FORMATS["q8_0"])
    weight = unpack(packed.prefix(rows=1024))        # (1024, 640) float32

Legend: R rows, C columns, N blocks of a chunk; a trailing number is bytes or elements inside a
block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemelo.errors import InputError, UnsupportedError

CHUNK_ELEMENTS = 1 << 19  # float32 elements expanded at once: 2 MiB, so that they stay in the cache


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
    """A matrix kept in a block format: `blocks` is (R, row_bytes) uint8 with unit inner stride.

    The outer stride may be longer than a row (a prefix view), and the storage may be a memory map.
    Float formats serve too, as blocks of one: a half-precision matrix stays mapped that way.
    """

    blocks: Tensor
    format: Format

    def __post_init__(self) -> None:
        blocks, block_bytes = self.blocks, self.format.block_bytes
        if blocks.dtype != torch.uint8 or blocks.dim() != 2:
            raise InputError(
                f"blocks must be a (rows, row_bytes) uint8 tensor, "
                f"not {blocks.dim()}-dimensional {blocks.dtype}"
            )
        if blocks.shape[1] % block_bytes or (blocks.shape[1] and blocks.stride(1) != 1):
            raise InputError(
                f"rows of {blocks.shape[1]} bytes (stride {blocks.stride(1)}) are not "
                f"{self.format.name} blocks of {block_bytes} bytes, one behind the other"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in elements."""
        rows, row_bytes = self.blocks.shape
        return rows, row_bytes // self.format.block_bytes * self.format.block

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that this view covers."""
        return self.blocks.numel()

    def prefix(self, rows: int | None = None, columns: int | None = None) -> "Packed":
        """The leading rows and columns as a view; InputError for part of a block, or too many."""
        all_rows, all_columns = self.shape
        rows = all_rows if rows is None else rows
        columns = all_columns if columns is None else columns
        if not (0 <= rows <= all_rows and columns <= all_columns):
            raise InputError(
                f"a prefix of {rows} x {columns} does not fit in {all_rows} x {all_columns}"
            )
        return Packed(self.blocks[:rows, : self.format.row_bytes(columns)], self.format)


def unpack(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (R, C) matrix in `dtype`; in float32 every element is exactly what the format defines."""
    rows, columns = packed.shape
    out = torch.empty(rows, columns, dtype=dtype, device=packed.blocks.device)
    for part, values in unpacked_chunks(packed, out if dtype == torch.float32 else None):
        if dtype != torch.float32:
            out[part] = values
    return out


def unpacked_chunks(packed: Packed, out: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Expand a few rows at a time: yields (slice of rows, their values (., C) float32).

    Values land in `out` (R, C) where given, else in one buffer that the next step overwrites.
    """
    rows, columns = packed.shape
    if not rows * columns:
        return
    expand = UNPACKERS[packed.format.name]
    step = min(rows, max(1, CHUNK_ELEMENTS // columns))
    scratch = packed.blocks.new_empty(step, columns, dtype=torch.float32) if out is None else out
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        values = scratch[: part.stop - start] if out is None else out[part]
        blocks = packed.blocks[part].reshape(-1, packed.format.block_bytes)
        expand(blocks, values.view(-1, packed.format.block))
        yield part, values


def pack(x: Tensor, format: Format) -> Packed:
    """Quantise a (R, C) float matrix, giving the very bytes that llama.cpp's quantiser gives.

    Raises InputError where a value is not finite or too large for the format's half-precision
    scale, and UnsupportedError for formats that are only read.
    """
    shrink = PACKERS.get(format.name)
    if shrink is None:
        raise UnsupportedError(
            f"cannot quantise to {format.name}; choose one of {', '.join(PACKERS)}"
        )
    if x.dim() != 2 or not x.is_floating_point():
        raise InputError(f"pack takes a float matrix, not {x.dim()}-dimensional {x.dtype}")
    rows, columns = x.shape
    blocks = torch.empty(rows, format.row_bytes(columns), dtype=torch.uint8, device=x.device)
    if blocks.numel():
        step = max(1, CHUNK_ELEMENTS // columns)
        for values, target in zip(torch.split(x, step), torch.split(blocks, step), strict=True):
            shrink(values.float().reshape(-1, format.block), target.view(-1, format.block_bytes))
    return Packed(blocks, format)


# Every reader below takes blocks (N, block_bytes) uint8 and writes out (N, block) float32. Integers
# are put together as bytes in contiguous planes, converted once and scaled in place: a byte pass
# costs a quarter of a float pass, and arithmetic on short strided runs costs more than copying them
# out first.


def _half(blocks: Tensor, start: int, stop: int) -> Tensor:
    """The half-precision numbers stored at bytes [start, stop) of every block, as float32."""
    return blocks[:, start:stop].view(torch.float16).float()


def _unpack_f32(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float32))


def _unpack_f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float16))


def _unpack_bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.bfloat16))


def _nibbles(quants: Tensor) -> Tensor:
    """(N, 16) bytes to (N, 32): low nibbles are elements 0-15, high ones elements 16-31."""
    quants = quants.contiguous()
    return torch.cat([quants & 15, quants >> 4], dim=1)


def _unpack_q4_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 2:]).view(torch.int8).sub_(8)).mul_(_half(blocks, 0, 2))


def _unpack_q4_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_nibbles(blocks[:, 4:])).mul_(_half(blocks, 0, 2)).add_(_half(blocks, 2, 4))


def _fifth_bits(packed_bits: Tensor, clear: int) -> Tensor:
    """(N, 4) bytes, a bit per element, to (N, 32) int8: `clear` where it is 0, 16 more where 1."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1  # every byte, spread to eight
    table = ((bits << 4) + clear).to(torch.int8).view(torch.int64).view(256).to(packed_bits.device)
    spread = table.index_select(0, packed_bits.reshape(-1).int())
    return spread.view(torch.int8).view(-1, 32)


def _unpack_q5_0(blocks: Tensor, out: Tensor) -> None:
    quants = _fifth_bits(blocks[:, 2:6], clear=-16)
    quants += _nibbles(blocks[:, 6:]).view(torch.int8)
    out.copy_(quants).mul_(_half(blocks, 0, 2))


def _unpack_q5_1(blocks: Tensor, out: Tensor) -> None:
    quants = _fifth_bits(blocks[:, 4:8], clear=0)
    quants += _nibbles(blocks[:, 8:]).view(torch.int8)
    out.copy_(quants).mul_(_half(blocks, 0, 2)).add_(_half(blocks, 2, 4))


def _unpack_q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0, 2))


def _planes(run: Tensor) -> Tensor:
    """(N, 32 k) bytes to (k, N, 32) contiguous: plane i holds the i-th 32 bytes of every block."""
    return run.view(len(run), -1, 32).transpose(0, 1).contiguous()


def _shifted(planes: Tensor, *shifts: int) -> Tensor:
    """`planes` (...) shifted right by each amount: (len(shifts), ...)."""
    amounts = torch.tensor(shifts, dtype=torch.uint8, device=planes.device)
    return planes >> amounts.view(-1, *[1] * planes.dim())


def _unpack_q2_k(blocks: Tensor, out: Tensor) -> None:
    quants = _shifted(_planes(blocks[:, 16:80]), 0, 2, 4, 6) & 3  # (4, 2, N, 32)
    out.view(-1, 2, 4, 32).copy_(quants.permute(2, 1, 0, 3))
    packed_scales = blocks[:, :16].contiguous()
    scales = (packed_scales & 15) * _half(blocks, 80, 82)
    minima = (packed_scales >> 4) * _half(blocks, 82, 84)
    out.view(-1, 16, 16).mul_(scales[:, :, None]).sub_(minima[:, :, None])


def _unpack_q3_k(blocks: Tensor, out: Tensor) -> None:
    quants = _shifted(_planes(blocks[:, 32:96]), 0, 2, 4, 6) & 3  # (4, 2, N, 32)
    third = _shifted(blocks[:, :32].contiguous(), *range(8)) & 1  # (8, N, 32), bit 4 half + run
    quants += (third << 2).view(2, 4, -1, 32).transpose(0, 1)  # a clear bit takes 4 away
    out.view(-1, 2, 4, 32).copy_(quants.view(torch.int8).sub_(4).permute(2, 1, 0, 3))
    low, high = blocks[:, 96:104].contiguous(), blocks[:, 104:108].contiguous()
    high = torch.cat([high << 4, high << 2, high, high >> 2], dim=1) & 48
    scales = (torch.cat([low & 15, low >> 4], dim=1) | high).view(torch.int8).sub_(32)
    out.view(-1, 16, 16).mul_((scales * _half(blocks, 108, 110))[:, :, None])


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima in bytes 4-15, times d and dmin: two (N, 8, 1) float32.

    The twelve bytes are three little-endian words of four lanes; two more bits of lanes 4-7 sit on
    top of lanes 0-3. Four lanes are worked at once.
    """
    lanes = blocks[:, 4:16].view(torch.int32)
    scale, minimum, rest = lanes[:, 0], lanes[:, 1], lanes[:, 2]
    words = torch.stack(
        [
            scale & 0x3F3F3F3F,
            rest & 0x0F0F0F0F | scale >> 2 & 0x30303030,
            minimum & 0x3F3F3F3F,
            rest >> 4 & 0x0F0F0F0F | minimum >> 2 & 0x30303030,
        ],
        dim=1,
    )
    both = words.view(torch.uint8).view(-1, 2, 8) * _half(blocks, 0, 4)[:, :, None]
    return both[:, 0, :, None], both[:, 1, :, None]


def _unpack_q4_k(blocks: Tensor, out: Tensor) -> None:
    pairs = out.view(-1, 4, 2, 32)
    pairs[:, :, 0] = (blocks[:, 16:] & 15).view(-1, 4, 32)
    pairs[:, :, 1] = (blocks[:, 16:] >> 4).view(-1, 4, 32)
    scales, minima = _scales_and_minima(blocks)
    out.view(-1, 8, 32).mul_(scales).sub_(minima)


def _unpack_q5_k(blocks: Tensor, out: Tensor) -> None:
    nibbles = _planes(blocks[:, 48:])  # (4, N, 32)
    quants = torch.stack([nibbles & 15, nibbles >> 4], dim=1).flatten(0, 1)  # (8, N, 32)
    quants |= (_shifted(blocks[:, 16:48].contiguous(), *range(8)) & 1) << 4
    scales, minima = _scales_and_minima(blocks)
    out.view(-1, 8, 32).copy_(quants.transpose(0, 1)).mul_(scales).sub_(minima)


def _unpack_q6_k(blocks: Tensor, out: Tensor) -> None:
    low = _planes(blocks[:, :128]).view(2, 2, -1, 32)  # (half, run, N, 32)
    high = _planes(blocks[:, 128:192])  # (half, N, 32)
    high = torch.stack([high << 4, high << 2, high, high >> 2], dim=1) & 48  # (half, 4, N, 32)
    quants = torch.cat([low & 15, low >> 4], dim=1) | high
    out.view(-1, 2, 4, 32).copy_(quants.view(torch.int8).sub_(32).permute(2, 0, 1, 3))
    scales = blocks[:, 192:208].view(torch.int8) * _half(blocks, 208, 210)
    out.view(-1, 16, 16).mul_(scales[:, :, None])


def _unpack_iq4_nl(blocks: Tensor, out: Tensor) -> None:
    levels = torch.tensor(IQ4_NL_LEVELS, dtype=torch.float32, device=blocks.device)
    torch.index_select(levels, 0, _nibbles(blocks[:, 2:]).view(-1).int(), out=out.view(-1))
    out.mul_(_half(blocks, 0, 2))


IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

UNPACKERS: dict[str, Callable[[Tensor, Tensor], None]] = {
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


# The writers take values (N, block) float32 and fill blocks (N, block_bytes).


def _pack_q8_0(values: Tensor, blocks: Tensor) -> None:
    scale = values.abs().amax(dim=1, keepdim=True).div_(127)
    scaled = values * _inverse(scale)
    quants = scaled.trunc()
    quants += scaled.sub_(quants).mul_(2).trunc_()  # C's roundf: halves away from zero
    blocks[:, :2] = _stored_scale(scale, "q8_0")
    blocks[:, 2:] = quants.to(torch.int8).view(torch.uint8)


def _pack_q4_0(values: Tensor, blocks: Tensor) -> None:
    high, low = values.amax(dim=1, keepdim=True), values.amin(dim=1, keepdim=True)
    peak = torch.where(high > -low, high, low)  # the value of largest magnitude, with its sign
    tied = (high == -low).view(-1).nonzero().view(-1)  # then the earlier one in the block counts
    first = values[tied].abs().argmax(dim=1, keepdim=True)
    peak[tied] = values[tied].gather(1, first)
    scale = peak / -8
    quants = (values * _inverse(scale)).add_(8.5).trunc_().clamp_(0, 15).to(torch.uint8)
    blocks[:, :2] = _stored_scale(scale, "q4_0")
    blocks[:, 2:] = quants[:, :16] | quants[:, 16:] << 4


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where that is infinite (an empty block, or one below the normal numbers)."""
    inverse = scale.reciprocal()
    return inverse.masked_fill_(inverse.isinf(), 0)


def _stored_scale(scale: Tensor, name: str) -> Tensor:
    """The (N, 1) scale as two bytes of half precision."""
    half = scale.half()
    if not half.isfinite().all():
        raise InputError(
            f"cannot quantise to {name}: a value is infinite, not a number or above 8e6"
        )
    return half.view(torch.uint8)


PACKERS: dict[str, Callable[[Tensor, Tensor], None]] = {"q8_0": _pack_q8_0, "q4_0": _pack_q4_0}
