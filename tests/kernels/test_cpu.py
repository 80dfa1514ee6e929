"""Every instruction set of this machine, on every format, against the slow obvious products."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest

from gemelo.errors import InputError
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Floats, Format, Packed, pack, unpack
from tests.kernels.matrices import (
    FEW,
    FLOATS,
    assert_close,
    assert_within,
    half_bytes,
    odd_columns,
    random_input,
    random_weight,
    scale_offsets,
)
from tests.native import needs_native

pytestmark = needs_native


# ---- right numbers -------------------------------------------------------------------------------


def test_products_agree_with_the_reference(isa: str, format: Format) -> None:
    for tokens, rows, number in [
        (1, 1, 1), (1, 131, 4), (2, 7, 3), (3, 33, 5), (5, 2, 2), (16, 19, 7),
        (17, 1, 1), (18, 33, 5), (31, 130, 3), (70, 47, 9),
    ]:  # fmt: skip
        weight = random_weight(format, rows, odd_columns(format, number), seed=rows)
        x = random_input(tokens, weight.columns)
        got = cpu.linear(x, weight)
        assert got.shape == (tokens, rows) and got.dtype == np.float32
        assert_close(got, x, weight, isa)


def test_more_columns_than_a_panel_holds(isa: str, format: Format) -> None:
    weight = random_weight(format, 35, 2304 if format.block > 1 else 2301)
    for tokens in (2, 33):
        x = random_input(tokens, weight.columns)
        assert_close(cpu.linear(x, weight), x, weight, isa)


def test_a_token_alone_and_among_sixteen_gives_the_same_bits(isa: str, format: Format) -> None:
    weight = random_weight(format, 21, odd_columns(format))
    x = random_input(FEW, weight.columns)
    alone = np.concatenate([cpu.linear(x[i : i + 1], weight) for i in range(FEW)])
    for count in range(2, FEW + 1):
        assert np.array_equal(cpu.linear(x[:count], weight), alone[:count])


def test_many_tokens_do_not_depend_on_one_another(isa: str, format: Format) -> None:
    weight = random_weight(format, 37, odd_columns(format))
    x = random_input(70, weight.columns)
    together = cpu.linear(x, weight)
    for first, last in [(0, 17), (5, 40), (38, 70)]:
        assert np.array_equal(cpu.linear(x[first:last], weight), together[first:last])


def test_any_number_of_threads_gives_the_same_bits(isa: str, format: Format) -> None:
    weight = random_weight(format, 75, odd_columns(format))
    before = native.extension.threads()
    for tokens in (1, 4, 40):
        x = random_input(tokens, weight.columns)
        want = None
        for threads in (1, 2, 3):
            native.set_threads(threads)
            got = cpu.linear(x, weight)
            want = got if want is None else want
            assert np.array_equal(got, want)
    native.set_threads(before)


def test_gathered_rows_are_exact(isa: str, format: Format) -> None:
    for columns in (odd_columns(format, 1), odd_columns(format, 4)):
        weight = random_weight(format, 29, columns)
        ids = np.array([[28, 0, 3], [3, 7, 28]])
        want = unpack(weight)[ids]
        for kind in (np.int64, np.int32, np.uint8):
            assert np.array_equal(cpu.embedding(ids.astype(kind), weight), want)
        assert np.array_equal(cpu.embedding(ids.T, weight), want.swapaxes(0, 1))


# ---- wherever the blocks lie ---------------------------------------------------------------------


def test_blocks_at_any_address_give_the_same_bits(isa: str, format: Format) -> None:
    weight = random_weight(format, 19, odd_columns(format))
    size = weight.nbytes
    ids = np.arange(19)
    for shift in (1, 2, 7, 33):
        storage = np.full(size + 64, 255, np.uint8)
        moved = Packed(storage[shift : shift + size].reshape(weight.blocks.shape), format)
        moved.blocks[...] = weight.blocks
        for tokens in (1, 4, 20):
            x = random_input(tokens, weight.columns)
            assert np.array_equal(cpu.linear(x, moved), cpu.linear(x, weight))
        assert np.array_equal(cpu.embedding(ids, moved), cpu.embedding(ids, weight))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a page that nobody may read")
def test_nothing_is_read_past_the_last_block(isa: str, format: Format) -> None:
    """The blocks end where a forbidden page begins: reading one byte more would end the process."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    for number in (1, 2, 3):
        weight = random_weight(format, 17, odd_columns(format, number))
        size = weight.nbytes
        room = (size + page - 1) // page * page
        memory = mmap.mmap(-1, room + page)
        whole = np.frombuffer(memory, np.uint8)
        blocks = whole[room - size : room].reshape(weight.blocks.shape)
        blocks[...] = weight.blocks
        forbidden = ctypes.c_void_p(cpu.address_of(whole) + room)
        assert libc.mprotect(forbidden, ctypes.c_size_t(page), 0) == 0
        there = Packed(blocks, format)
        for tokens in (1, 4, 20):
            x = random_input(tokens, weight.columns)
            assert np.array_equal(cpu.linear(x, there), cpu.linear(x, weight))
        assert np.array_equal(cpu.embedding(np.array([16]), there), unpack(weight)[16:])


def test_a_prefix_is_a_view_and_right(isa: str, format: Format) -> None:
    weight = random_weight(format, 40, odd_columns(format, 6))
    for rows, blocks in [(40, 5), (17, 6), (33, 3), (1, 1)]:
        part = weight.prefix(rows, blocks * max(format.block, 7))
        assert part.address == weight.address
        alone = Packed(part.blocks.copy(), format)
        for tokens in (1, 3, 21):
            x = random_input(tokens, part.columns)
            assert np.array_equal(cpu.linear(x, part), cpu.linear(x, alone))
            assert_close(cpu.linear(x, part), x, part, isa)
        ids = np.array([rows - 1, 0])
        assert np.array_equal(cpu.embedding(ids, part), unpack(part)[ids])


def test_named_rows_are_those_of_the_whole_product(isa: str, format: Format) -> None:
    weight = random_weight(format, 50, odd_columns(format))
    index = np.array([49, 0, 0, 7, 31, 32, 5])
    for tokens in (1, 6, 24):
        x = random_input(tokens, weight.columns)
        got = cpu.linear(x, weight, index)
        assert np.array_equal(got, cpu.linear(x, weight)[:, index])
        assert np.array_equal(cpu.linear(x, weight, index.astype(np.int32)), got)


def test_inputs_of_any_shape_and_stride(isa: str) -> None:
    weight = random_weight(FORMATS["q4_0"], 9, 96)
    x = random_input(2, 3, 96)
    want = cpu.linear(x.reshape(6, 96), weight)
    assert np.array_equal(cpu.linear(x, weight), want.reshape(2, 3, 9))
    assert np.array_equal(cpu.linear(x[0, 0], weight), want[0])
    turned = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    assert np.array_equal(cpu.linear(turned, weight), want.reshape(2, 3, 9))


# ---- broken and extreme numbers ------------------------------------------------------------------


def break_row(weight: Packed, row: int, value: float, which: int = 0) -> None:
    """Write `value` into a scale in the last block of a row (the last number, of plain floats)."""
    format = weight.format
    if format.name in FLOATS:
        spoilt = pack(np.array([value], np.float32), format).blocks
        weight.blocks[row, -format.block_bytes :] = spoilt
        return
    at = weight.blocks.shape[1] - format.block_bytes + scale_offsets(format)[which]
    weight.blocks[row, at : at + 2] = half_bytes(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_scale_shows_in_its_row_alone(isa: str, format: Format, value: float) -> None:
    for which in range(len(scale_offsets(format))):
        weight = random_weight(format, 20, odd_columns(format))
        sound = {tokens: cpu.linear(random_input(tokens, weight.columns), weight)
                 for tokens in (1, 4, 20)}  # fmt: skip
        break_row(weight, 13, value, which)
        for tokens, before in sound.items():
            got = cpu.linear(random_input(tokens, weight.columns), weight)
            assert not np.isfinite(got[:, 13]).any()
            others = [row for row in range(20) if row != 13]
            assert np.array_equal(got[:, others], before[:, others])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_activation_shows_in_its_token_alone(
    isa: str, format: Format, value: float
) -> None:
    weight = random_weight(format, 20, odd_columns(format))
    for tokens in (1, 4, 20):
        x = random_input(tokens, weight.columns)
        before = cpu.linear(x, weight)
        x[-1, -2] = value
        got = cpu.linear(x, weight)
        assert not np.isfinite(got[-1]).any()
        assert np.array_equal(got[:-1], before[:-1])


def test_huge_and_vanishing_numbers_stay_right(isa: str, format: Format) -> None:
    weight = random_weight(format, 20, odd_columns(format))
    break_row(weight, 3, 60000.0)
    break_row(weight, 4, 0.0)
    for tokens in (1, 20):
        x = random_input(tokens, weight.columns)
        assert_within(cpu.linear(x, weight), x, weight, isa)
        huge = x * np.float32(1e12)
        assert_within(cpu.linear(huge, weight), huge, weight, isa)
        assert not cpu.linear(x * 0, weight).any()
        tiny = cpu.linear(np.full_like(x, 1e-42), weight)
        assert (np.abs(tiny) < 1e-30).all()


# ---- nothing to do, and what cannot be done ------------------------------------------------------


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


def test_products_of_nothing(isa: str) -> None:
    weight = random_weight(FORMATS["q8_0"], 5, 64)
    assert cpu.linear(zeros(0, 64), weight).shape == (0, 5)
    assert cpu.linear(zeros(2, 64), weight.prefix(rows=0)).shape == (2, 0)
    assert np.array_equal(cpu.linear(zeros(2, 0), weight.prefix(columns=0)), zeros(2, 5))
    nothing = np.zeros(0, np.int64)
    assert cpu.linear(zeros(2, 64), weight, nothing).shape == (2, 0)
    assert cpu.embedding(nothing, weight).shape == (0, 64)
    assert cpu.embedding(np.array([1]), weight.prefix(columns=0)).shape == (1, 0)


def test_bad_input_is_an_input_error() -> None:
    weight = random_weight(FORMATS["q8_0"], 5, 64)
    with pytest.raises(InputError, match="5 x 64"):
        cpu.linear(zeros(2, 96), weight)
    with pytest.raises(InputError):
        cpu.linear(zeros(), weight)
    for other in (np.float64, np.float16, np.int32):
        with pytest.raises(InputError, match="float32"):
            cpu.linear(zeros(2, 64).astype(other), weight)
    for index in (np.array([0, 5]), np.array([-1]), np.array([2**64 - 1], np.uint64)):
        with pytest.raises(InputError, match="5 rows"):
            cpu.linear(zeros(2, 64), weight, index)
        with pytest.raises(InputError, match="5 rows"):
            cpu.embedding(index, weight)
    with pytest.raises(InputError, match="one dimension"):
        cpu.linear(zeros(2, 64), weight, np.array([[0, 1]]))
    for ids in (zeros(2), np.zeros(2, np.bool_)):
        with pytest.raises(InputError, match="integers"):
            cpu.embedding(ids, weight)


@pytest.mark.parametrize("size", [1, 15, 64, 1025, 5000, 262_145])
def test_the_largest_is_the_first_of_its_kind(isa: str, size: int) -> None:
    scores = np.random.default_rng(size).standard_normal(size, np.float32)
    for place in {0, size // 2, size - 1}:
        scores[place] = 9.0
        assert cpu.argmax(scores) == int(scores.argmax())
        scores[place:] -= 20
    assert cpu.argmax(np.full(size, -np.inf, np.float32)) == 0
    assert cpu.argmax(np.full(size, np.nan, np.float32)) < size
    assert cpu.argmax(scores[::2]) == int(scores[::2].argmax())
