"""Blocks in, floats out, and back: bit for bit what the format's own package gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf import quants as gguf_quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gemelo.errors import InputError, UnsupportedError
from gemelo.kernels import cpu, native, quants
from gemelo.kernels.quants import (
    FORMATS,
    PACKERS,
    Bytes,
    Floats,
    Format,
    Packed,
    converted,
    pack,
    unpack,
)
from tests.kernels.matrices import assert_same_bits, normal, random_packed
from tests.native import needs_native

NUMPY = "numpy"
Numbers = NDArray[np.floating[Any]]
BLOCK_FORMATS = [format for format in FORMATS.values() if format.block > 1]
BLOCK_PACKERS = [name for name in PACKERS if FORMATS[name].block > 1]
by_name = pytest.mark.parametrize("format", BLOCK_FORMATS, ids=lambda f: f.name)


@pytest.fixture(params=[NUMPY, *native.instruction_sets()], autouse=True)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything here holds of the definition in NumPy and of every instruction set."""
    if request.param == NUMPY:
        monkeypatch.setattr(native, "module", None)
        yield request.param
        return
    before = native.isa()
    native.use(request.param)
    yield request.param
    native.use(before)


def oracle(packed: Packed) -> Floats:
    blocks = np.ascontiguousarray(packed.blocks)
    with np.errstate(all="ignore"):
        return gguf_quants.dequantize(blocks, GGMLQuantizationType[packed.format.name.upper()])


@by_name
def test_unpack_is_exact(format: Format) -> None:
    packed = random_packed(format, rows=67, blocks=3)
    assert packed.shape == (67, 3 * format.block)
    assert packed.nbytes == packed.blocks.nbytes
    assert_same_bits(unpack(packed), oracle(packed))


@by_name
def test_unpack_is_exact_across_chunks(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_packed(format, rows=29, blocks=2, seed=1)
    whole = oracle(packed)
    for elements in (1, 3 * 2 * format.block, 100 * format.block):
        monkeypatch.setattr(quants, "CHUNK_ELEMENTS", elements)
        assert_same_bits(unpack(packed), whole)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_float_formats_are_blocks_of_one(name: str) -> None:
    """Every pattern of sixteen bits, at any address."""
    kind = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}[name]
    bits = np.arange(1 << 16, dtype=kind).reshape(256, 256)
    if name == "f32":
        bits = bits * np.uint32(65537)
        want = bits.view(np.float32)
    elif name == "bf16":
        want = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        want = bits.view(np.float16).astype(np.float32)
    packed = Packed(bits.view(np.uint8), FORMATS[name])
    assert_same_bits(unpack(packed), want)
    assert_same_bits(unpack(packed.prefix(3, 7)), want[:3, :7])
    room = np.empty(packed.nbytes + 1, np.uint8)[1:].reshape(packed.blocks.shape)
    room[...] = packed.blocks
    assert_same_bits(unpack(Packed(room, FORMATS[name])), want)


def test_empty_matrices() -> None:
    packed = random_packed(FORMATS["q4_k"], rows=4, blocks=1)
    assert unpack(packed.prefix(rows=0)).shape == (0, 256)
    assert unpack(packed.prefix(columns=0)).shape == (4, 0)
    assert pack(np.zeros((0, 64)), FORMATS["q8_0"]).shape == (0, 64)
    assert converted(packed.prefix(columns=0), FORMATS["bf16"]).shape == (4, 0)


# ---- packing -------------------------------------------------------------------------------------


def oracle_bytes(x: Numbers, name: str) -> Bytes:
    with np.errstate(all="ignore"):
        return gguf_quants.quantize(x.astype(np.float32), GGMLQuantizationType[name.upper()])


def hard_values() -> Floats:
    """Blocks on which a quantiser goes wrong: ties, halves, zeros, signed zeros, subnormals."""
    x = normal(64, 64, seed=4)
    x[0] = 0
    x[1] = -0.0
    x[2, :32] = np.arange(32) / 2 - 8  # halves, and -8 ties with nothing
    x[3] = np.tile([1.0, -1.0], 32)  # the first of a tie counts
    x[4] = np.tile([-1.0, 1.0], 32)
    x[5, :32] = np.arange(32) + 0.5
    x[5, 0] = 127.0  # scale 1: all others lie exactly between two integers
    x[6] *= 1e-37
    x[7] *= 1e-6
    x[8] *= 1e5
    x[9, 3] = 8.0
    x[9, 4] = -8.0
    return x


def as_halves(x: Floats) -> NDArray[np.float16]:
    return x.clip(-65504, 65504).astype(np.float16)


def in_bfloat16(x: Floats) -> Floats:
    return unpack(pack(x, FORMATS["bf16"]))


@pytest.mark.parametrize("name", BLOCK_PACKERS)
@pytest.mark.parametrize("stored", [np.asarray, in_bfloat16, as_halves])
def test_pack_gives_the_reference_bytes(name: str, stored: Callable[[Floats], Numbers]) -> None:
    x = stored(hard_values())
    assert np.array_equal(pack(x, FORMATS[name]).blocks, oracle_bytes(x, name))
    wide = x.astype(np.float64)
    assert np.array_equal(pack(wide, FORMATS[name]).blocks, oracle_bytes(x, name))


# Below 1e-30 the reference's own result is undefined (it converts infinities to integers).
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(BLOCK_PACKERS), st.lists(ordinary, min_size=32, max_size=32))
def test_pack_gives_the_reference_bytes_for_any_block(name: str, values: list[float]) -> None:
    x = np.array([values], np.float32)
    assert np.array_equal(pack(x, FORMATS[name]).blocks, oracle_bytes(x, name))


@pytest.mark.parametrize("name", BLOCK_PACKERS)
def test_packing_across_chunks_and_strides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(37, 96)
    whole = oracle_bytes(x, name)
    monkeypatch.setattr(quants, "CHUNK_ELEMENTS", 5 * 96)
    assert np.array_equal(pack(x, FORMATS[name]).blocks, whole)
    strided = np.zeros((37, 200), np.float32)[:, 50:146]
    strided[...] = x
    assert np.array_equal(pack(strided, FORMATS[name]).blocks, whole)
    assert np.array_equal(pack(x.T.copy().T, FORMATS[name]).blocks, whole)
    assert np.array_equal(converted(Packed.of(strided), FORMATS[name]).blocks, whole)


@pytest.mark.parametrize("name", BLOCK_PACKERS)
def test_values_below_every_scale_become_zero(name: str) -> None:
    x = normal(2, 64) * np.float32(1e-39)  # one over the scale is infinite
    assert np.array_equal(unpack(pack(x, FORMATS[name])), np.zeros((2, 64)))


def test_q8_0_packs_its_own_values_back() -> None:
    once = unpack(pack(normal(8, 64), FORMATS["q8_0"]))
    assert np.allclose(unpack(pack(once, FORMATS["q8_0"])), once, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", BLOCK_PACKERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e12])
def test_pack_refuses_what_no_scale_can_hold(name: str, value: float) -> None:
    x = normal(4, 64)
    x[2, 40] = value
    with pytest.raises(InputError, match=name):
        pack(x, FORMATS[name])
    with pytest.raises(InputError, match=name):
        converted(Packed.of(x), FORMATS[name])


def test_pack_refuses_other_formats_shapes_and_types() -> None:
    for quantise in (lambda x, f: pack(x, f), lambda x, f: converted(Packed.of(x), f)):
        with pytest.raises(UnsupportedError, match="q8_0"):
            quantise(np.zeros((2, 256), np.float32), FORMATS["q4_k"])
        with pytest.raises(InputError, match="100 columns"):
            quantise(np.zeros((2, 100), np.float32), FORMATS["q8_0"])
        with pytest.raises(InputError):
            quantise(np.zeros((2, 32), np.int32), FORMATS["q8_0"])


# ---- half precision and bfloat16 -----------------------------------------------------------------


def every_rounding() -> Floats:
    """Numbers about every boundary of both types: each upper half of a float32, with lower halves
    that are least, about the middle, and greatest."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001], np.uint32)
    return (upper[:, None] | lower).view(np.float32)


def test_bfloat16_rounds_to_the_nearest_and_at_a_tie_to_even() -> None:
    x = every_rounding()
    x = x[np.isfinite(x)]
    low = x.view(np.uint32) >> 16  # towards zero
    high = low + 1  # past the largest is infinity, which lies where the next number would
    towards, away = ((bits << 16).view(np.float32).astype(np.float64) for bits in (low, high))
    away = np.where(np.isinf(away), np.sign(away) * 2.0**128, away)
    size = np.abs(x.astype(np.float64))
    nearer_away = np.abs(away) - size < size - np.abs(towards)
    tie = np.abs(away) - size == size - np.abs(towards)
    want = np.where(nearer_away | (tie & (low % 2 == 1)), high, low)
    assert tie.sum() > 60000 and nearer_away.sum() > 60000
    assert np.array_equal(pack(x, FORMATS["bf16"]).blocks.view(np.uint16)[0], want)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_what_is_no_number_stays_that(name: str) -> None:
    x = every_rounding()
    missing = np.isnan(x)
    got = unpack(pack(x, FORMATS[name]))
    assert np.array_equal(np.isnan(got), missing)
    assert np.array_equal(np.signbit(got)[~missing], np.signbit(x)[~missing])
    infinite = np.isinf(x)
    assert np.array_equal(got[infinite], x[infinite])


def test_half_precision_is_numpys() -> None:
    """Rounded to the nearest, ties to even; what is too large becomes infinite."""
    x = every_rounding()
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    assert np.array_equal(pack(x, FORMATS["f16"]).blocks.view(np.float16)[0], want)
    ties = np.array([2049.0, 2051.0, 65519.0, 65520.0, 2**-25, 1.5 * 2**-24], np.float32)
    expected = [2048.0, 2052.0, 65504.0, np.inf, 0.0, 2**-23]
    assert unpack(pack(ties, FORMATS["f16"])).tolist() == expected


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_floats_pack_their_own_values_back(name: str) -> None:
    packed = random_packed(FORMATS[name], rows=31, blocks=67)
    values = unpack(packed)
    sound = ~np.isnan(values)
    again = converted(Packed.of(values), FORMATS[name])
    kind = {"f32": np.uint32}.get(name, np.uint16)
    assert np.array_equal(again.blocks.view(kind)[sound], packed.blocks.view(kind)[sound])


@pytest.mark.parametrize("name", PACKERS)
def test_conversion_is_unpacking_and_packing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quants, "CHUNK_ELEMENTS", 3 * 96)
    packed = pack(normal(2, 10, 96), FORMATS["q8_0"])
    got = converted(packed, FORMATS[name])
    assert got.shape == (2, 10, 96) and got.format.name == name
    assert np.array_equal(got.blocks, pack(unpack(packed), FORMATS[name]).blocks)
    assert (got is packed) == (name == "q8_0")
    assert converted(got, got.format) is got


# ---- natively ------------------------------------------------------------------------------------


def in_numpy(function: Callable[[], Packed | Floats]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "module", None)
        return function()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native.extension.threads()
    native.set_threads(request.param)
    yield
    native.set_threads(before)


@needs_native
@pytest.mark.parametrize("name", sorted(cpu.FORMATS))
def test_native_numbers_are_those_of_the_definition(name: str, threads: None) -> None:
    """Wherever the blocks lie, and in parts of rows."""
    format = FORMATS[name]
    packed = random_packed(format, rows=203, blocks=max(5, 320 // format.block))
    room = np.empty(packed.nbytes + 1, np.uint8)[1:].reshape(packed.blocks.shape)
    room[...] = packed.blocks
    for weight in (packed, Packed(room, format), packed.prefix(101, 3 * format.block)):
        assert_same_bits(unpack(weight), in_numpy(partial(unpack, weight)))


@needs_native
@pytest.mark.parametrize("name", PACKERS)
def test_native_bytes_are_those_of_the_definition(name: str, threads: None) -> None:
    """Rows of every size, every third of which are whole numbers; ties are above."""
    generator = np.random.default_rng(7)
    sizes = (10 ** generator.uniform(-44, 5, (999, 1))).astype(np.float32)
    x = normal(999, 160, seed=8) * sizes
    x[::3] = np.round(x[::3])
    want = in_numpy(partial(pack, x, FORMATS[name]))
    assert np.array_equal(pack(x, FORMATS[name]).blocks, want.blocks)
    stored = in_numpy(partial(pack, hard_values(), FORMATS[name]))
    assert np.array_equal(pack(hard_values(), FORMATS[name]).blocks, stored.blocks)


def test_only_formats_that_it_knows_are_native(by: str) -> None:
    known = {name for name, format in FORMATS.items() if quants._native_format(format) is not None}
    assert known == (set() if by == NUMPY else cpu.FORMATS)
    assert by == NUMPY or known >= set(PACKERS)
