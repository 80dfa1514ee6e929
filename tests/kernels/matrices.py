"""Random matrices in every block format, what to multiply them with, and how wrong it may be."""

from __future__ import annotations

import numpy as np

from gemelo.kernels import reference
from gemelo.kernels.quants import Bytes, Floats, Format, Packed, pack, unpack

FLOATS = ("f32", "f16", "bf16")
MINIMA = ("q4_k", "q5_k")
FEW = 16  # up to here a token's result does not depend on the others
# Where many tokens' attention, and products with plain floats, go through bfloat16.
TILES = ("amx", "avx512")


def half_bytes(x: Floats | float) -> Bytes:
    return np.asarray(x, np.float16)[..., None].view(np.uint8)


def scale_offsets(format: Format) -> list[int]:
    """Where a block keeps its half-precision scales (and minima)."""
    if format.name in MINIMA:
        return [0, 2]
    return [208] if format.name == "q6_k" else [0]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_weight(format: Format, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random integers in every block, with scales of a usual size."""
    if format.name in FLOATS:
        return pack(normal(rows, columns, seed=seed) * np.float32(0.05), format)
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, format.row_bytes(columns)), np.uint8)
    each = blocks.reshape(rows, -1, format.block_bytes)
    for at in scale_offsets(format):
        scales = generator.random(each.shape[:2], np.float32) * 0.001 + 0.0001
        each[:, :, at : at + 2] = half_bytes(scales)
    return Packed(blocks, format)


def random_packed(format: Format, rows: int, blocks: int, seed: int = 0) -> Packed:
    """Random bytes: every bit pattern of every field, with infinite and not-a-number scales."""
    shape = (rows, blocks * format.block_bytes)
    return Packed(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), format)


def assert_same_bits(got: Floats, want: Floats) -> None:
    assert got.shape == want.shape and got.dtype == np.float32
    missing = np.isnan(want)
    assert np.array_equal(np.isnan(got), missing)
    assert np.array_equal(got.view(np.uint32)[~missing], want.view(np.uint32)[~missing])


def random_input(*shape: int, seed: int = 1) -> Floats:
    """Activations with columns of very different sizes, as hidden states have them."""
    generator = np.random.default_rng(seed)
    spread = generator.random(shape[-1], np.float32) * 3
    return generator.standard_normal(shape, np.float32) * spread


def odd_columns(format: Format, number: int = 5) -> int:
    """An odd number of blocks; of plain floats, no multiple of any register."""
    return 16 * number - 3 if format.block == 1 else number * format.block


def allowed(x: Floats, weight: Packed, isa: str) -> Floats:
    """How far each output (T, R) may lie from the exact one, from how its path rounds.

    Few tokens of block formats: a byte for every activation, in steps of the largest of 32 / 127,
    so each is off by half a step at most; the weights are exact. Many tokens with AMX, and of plain
    floats with AVX-512: weights and activations each rounded to bfloat16, off by 2^-8 of their
    size. Else plain float sums.
    """
    w, size = np.abs(unpack(weight)), np.abs(x)
    bound: Floats = 2e-6 * size @ w.T
    many = x.shape[0] > FEW and weight.format.name != "f32"
    if many and (isa == "amx" or (isa in TILES and weight.format.block == 1)):
        return bound + 2**-6.9 * size @ w.T
    if weight.format.block > 1:
        tops = size.reshape(x.shape[0], -1, 32).max(axis=2)
        return bound + tops.repeat(32, axis=1) / 253 @ w.T
    return bound


def assert_within(got: Floats, x: Floats, weight: Packed, isa: str, rounded: float = 0.0) -> Floats:
    """No output is further off than `allowed`, and the share of it that it is `rounded` by;
    returns the exact product (T, R)."""
    want = reference.linear(x, weight)
    bound = allowed(x, weight, isa) + rounded * np.abs(want)
    error = np.abs(got - want)
    assert (error <= bound).all(), f"{np.nanmax(error / bound):.2f} of what is allowed"
    return want


def assert_close(got: Floats, x: Floats, weight: Packed, isa: str, rounded: float = 0.0) -> None:
    """And errors have both signs: together they are far smaller than their bounds.

    One percent is twice what steps of 1 / 127 come to on numbers whose largest of 32 is about three
    times their usual size.
    """
    want = assert_within(got, x, weight, isa, rounded)
    if want.size > 100:
        assert np.linalg.norm(got - want) <= 0.01 * np.linalg.norm(want)
