"""Random matrices in every block format, what to multiply them with, and how wrong it may be."""

from __future__ import annotations

import torch
from torch import Tensor

from gemelo.kernels import reference
from gemelo.kernels.quants import Format, Packed, unpack

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MINIMA = ("q4_k", "q5_k")
FEW = 16  # up to here a token's result does not depend on the others
# Where many tokens' attention, and products with plain floats, go through bfloat16.
TILES = ("amx", "avx512")


def half_bytes(x: Tensor) -> Tensor:
    return x.half()[..., None].view(torch.uint8)


def scale_offsets(format: Format) -> list[int]:
    """Where a block keeps its half-precision scales (and minima)."""
    if format.name in MINIMA:
        return [0, 2]
    return [208] if format.name == "q6_k" else [0]


def random_weight(format: Format, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random integers in every block, with scales of a usual size."""
    generator = torch.Generator().manual_seed(seed)
    if format.name in FLOATS:
        x = torch.randn(rows, columns, generator=generator).mul_(0.05)
        return Packed(x.to(FLOATS[format.name]).view(torch.uint8), format)
    size = (rows, format.row_bytes(columns))
    blocks = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    each = blocks.view(rows, -1, format.block_bytes)
    for at in scale_offsets(format):
        scales = torch.rand(each.shape[:2], generator=generator) * 0.001 + 0.0001
        each[:, :, at : at + 2] = half_bytes(scales)
    return Packed(blocks, format)


def random_input(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Activations with columns of very different sizes, as hidden states have them."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(shape[-1], generator=generator) * 3
    return (torch.randn(*shape, generator=generator) * spread).to(dtype)


def odd_columns(format: Format, number: int = 5) -> int:
    """An odd number of blocks; of plain floats, no multiple of any register."""
    return 16 * number - 3 if format.block == 1 else number * format.block


def allowed(x: Tensor, weight: Packed, isa: str) -> Tensor:
    """How far each output (T, R) may lie from the exact one, from how its path rounds.

    Few tokens of block formats: a byte for every activation, in steps of the largest of 32 / 127,
    so each is off by half a step at most; the weights are exact. Many tokens with AMX, and of plain
    floats with AVX-512: weights and activations each rounded to bfloat16, off by 2^-8 of their
    size. Else plain float sums.
    """
    w, x = unpack(weight).abs(), x.float()
    bound = 2e-6 * x.abs() @ w.T
    many = x.shape[0] > FEW and weight.format.name != "f32"
    if many and (isa == "amx" or (isa in TILES and weight.format.block == 1)):
        return bound + 2**-6.9 * x.abs() @ w.T
    if weight.format.block > 1:
        tops = x.abs().view(x.shape[0], -1, 32).amax(dim=2)
        return bound + tops.repeat_interleave(32, dim=1) / 253 @ w.T
    return bound


def assert_within(got: Tensor, x: Tensor, weight: Packed, isa: str) -> Tensor:
    """No output is further off than `allowed`; returns the exact product (T, R)."""
    want = reference.linear(x.float(), weight)
    bound = allowed(x, weight, isa)
    if got.dtype == torch.bfloat16:
        bound = bound + 2**-8 * want.abs()
    error = (got.float() - want).abs()
    assert bool((error <= bound).all()), f"{float((error / bound).max()):.2f} of what is allowed"
    return want


def assert_close(got: Tensor, x: Tensor, weight: Packed, isa: str) -> None:
    """And errors have both signs: together they are far smaller than their bounds.

    One percent is twice what steps of 1 / 127 come to on numbers whose largest of 32 is about three
    times their usual size.
    """
    want = assert_within(got, x, weight, isa)
    if want.numel() > 100:
        assert float((got.float() - want).norm()) <= 0.01 * float(want.norm())
