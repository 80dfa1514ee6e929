"""Block formats in torch: what `kernels.quants` and `kernels.reference` do, on any device.

The kernels compute on the CPU and know no torch. A model whose layers are torch's (on a CUDA
device, in an export, as the oracle of a native program) expands its blocks here, a few rows at a
time, with operators that every device has. It is a second reading of the formats, and tests compare
the two bit for bit.

    blocks = Blocks(tensor.to("cuda"), FORMATS["q4_k"])
    y = linear(x, blocks.prefix(rows=1024))            # (..., C) -> (..., 1024)

Legend: R rows, C columns, N blocks of a chunk; a trailing number is bytes or elements inside a
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gemelo.errors import InputError
from gemelo.kernels.packed import Format
from gemelo.kernels.unpackers import IQ4_NL_LEVELS

CHUNK_ELEMENTS = 1 << 19  # float32 elements expanded at once: 2 MiB, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix of `kernels.packed.Packed` with its bytes (R, row_bytes) in a uint8 tensor."""

    tensor: Tensor
    format: Format

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in elements."""
        rows, row_bytes = self.tensor.shape
        return rows, row_bytes // self.format.block_bytes * self.format.block

    def prefix(self, rows: int | None = None, columns: int | None = None) -> Blocks:
        """The leading rows and columns as a view; InputError for part of a block, or too many."""
        all_rows, all_columns = self.shape
        rows = all_rows if rows is None else rows
        columns = all_columns if columns is None else columns
        if not (0 <= rows <= all_rows and columns <= all_columns):
            raise InputError(
                f"a prefix of {rows} x {columns} does not fit in {all_rows} x {all_columns}"
            )
        return Blocks(self.tensor[:rows, : self.format.row_bytes(columns)], self.format)


def linear(x: Tensor, weight: Blocks) -> Tensor:
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


def embedding(ids: Tensor, weight: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    rows = chosen_rows(weight, ids.reshape(-1))
    return unpack(rows, dtype).view(*ids.shape, weight.shape[1])


def chosen_rows(weight: Blocks, index: Tensor) -> Blocks:
    """A copy of the rows that integers `index` (N,) name; InputError if one lies outside."""
    if index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"ids must be integers, not {index.dtype}")
    try:
        return Blocks(weight.tensor.index_select(0, index), weight.format)
    except IndexError:
        raise InputError(f"a row outside a matrix of {weight.shape[0]} rows") from None


def unpack(weight: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (R, C) matrix in `dtype`; in float32 every element is exactly what the format defines."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.tensor.device)
    for part, values in unpacked_chunks(weight, out if dtype == torch.float32 else None):
        if dtype != torch.float32:
            out[part] = values
    return out


def unpacked_chunks(weight: Blocks, out: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Expand a few rows at a time: yields (slice of rows, their values (., C) float32).

    Values land in `out` (R, C) where given, else in one buffer that the next step overwrites.
    """
    rows, columns = weight.shape
    if not rows * columns:
        return
    expand = UNPACKERS[weight.format.name]
    step = min(rows, max(1, CHUNK_ELEMENTS // columns))
    scratch = weight.tensor.new_empty(step, columns, dtype=torch.float32) if out is None else out
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        values = scratch[: part.stop - start] if out is None else out[part]
        blocks = weight.tensor[part].reshape(-1, weight.format.block_bytes)
        expand(blocks, values.view(-1, weight.format.block))
        yield part, values


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
