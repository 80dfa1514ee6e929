"""Torch's readers of blocks say what the kernels' do; its products are the whole matrix's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from gemelo.errors import InputError, UnsupportedError
from gemelo.kernels import quants
from gemelo.kernels.quants import FORMATS, Bytes, Format, Packed, pack
from gemelo.models import blocks as blocks_module
from gemelo.models.blocks import Blocks, embedding, linear, unpack
from gemelo.models.quantised import FLOATS, bytes_of, packed_of, tensor_of
from tests.kernels.matrices import normal

every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)


def random_bytes(format: Format, rows: int, blocks: int, seed: int = 0) -> Bytes:
    shape = (rows, blocks * format.block_bytes)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def finite_blocks(format: Format, rows: int, blocks: int) -> Blocks:
    """Random bytes of moderate size: the high bits of every scale are cleared."""
    raw = random_bytes(format, rows, blocks)
    while not np.isfinite(quants.unpack(Packed(raw, format))).all():
        raw &= 0xBB  # takes exponent bits away wherever a scale may lie
    return Blocks(torch.from_numpy(raw), format)


@every_format
def test_readers_agree_to_the_bit(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_bytes(format, rows=67, blocks=3)
    want = torch.from_numpy(quants.unpack(Packed(raw, format)))
    number = ~want.isnan()
    for elements in (1, 5 * 3 * format.block, 1 << 19):
        monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", elements)
        got = unpack(Blocks(torch.from_numpy(raw), format))
        assert torch.equal(~got.isnan(), number)
        assert torch.equal(got.view(torch.int32)[number], want.view(torch.int32)[number])


@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_unpack_rounds_once(format: Format, dtype: torch.dtype) -> None:
    weight = Blocks(torch.from_numpy(random_bytes(format, 5, 2, seed=2)), format)
    want = unpack(weight).to(dtype)
    assert torch.equal(unpack(weight, dtype).nan_to_num(), want.nan_to_num())


@every_format
def test_prefix_is_a_view_of_the_leading_part(format: Format) -> None:
    weight = finite_blocks(format, rows=9, blocks=4)
    part = weight.prefix(rows=7, columns=3 * format.block)
    assert part.shape == (7, 3 * format.block)
    assert part.tensor.data_ptr() == weight.tensor.data_ptr()
    assert torch.equal(unpack(part), unpack(weight)[:7, : 3 * format.block])
    for rows, columns in ((10, format.block), (1, 5 * format.block), (-1, format.block)):
        with pytest.raises(InputError):
            weight.prefix(rows, columns)


@every_format
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_linear_is_the_product_with_the_expanded_matrix(
    format: Format, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "CHUNK_ELEMENTS", 4 * 2 * format.block)  # several chunks
    weight = finite_blocks(format, rows=13, blocks=2)
    x = torch.from_numpy(normal(*shape, 2 * format.block))
    want = functional.linear(x, unpack(weight))
    got = linear(x, weight)
    assert got.shape == (*shape, 13)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_linear_takes_a_prefix_and_gives_the_dtype_of_its_input() -> None:
    weight = finite_blocks(FORMATS["q4_0"], rows=40, blocks=4)
    part = weight.prefix(rows=17, columns=96)
    x = torch.from_numpy(normal(2, 96)).bfloat16()
    got = linear(x, part)
    assert got.dtype == torch.bfloat16
    want = functional.linear(x.float(), unpack(weight)[:17, :96])
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))


def test_linear_without_columns_is_zero() -> None:
    weight = finite_blocks(FORMATS["q8_0"], rows=3, blocks=1).prefix(columns=0)
    assert torch.equal(linear(torch.zeros(2, 0), weight), torch.zeros(2, 3))


def test_what_does_not_fit_is_an_input_error() -> None:
    weight = finite_blocks(FORMATS["q8_0"], rows=13, blocks=2)
    with pytest.raises(InputError, match="13 x 64"):
        linear(torch.zeros(2, 96), weight)
    with pytest.raises(InputError, match="integers"):
        embedding(torch.zeros(3), weight)
    with pytest.raises(InputError, match="13 rows"):
        embedding(torch.tensor([13]), weight)


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_is_the_rows_of_the_expanded_matrix(format: Format, dtype: torch.dtype) -> None:
    weight = finite_blocks(format, rows=11, blocks=2)
    ids = torch.tensor([[0, 10, 3], [3, 3, 7]])
    got = embedding(ids, weight, dtype)
    assert got.shape == (2, 3, 2 * format.block)
    assert torch.equal(got, unpack(weight, dtype)[ids])
    assert torch.equal(embedding(ids.int(), weight.prefix(11), dtype), got)
    assert embedding(ids[:, :0], weight, dtype).shape == (2, 0, 2 * format.block)


# ---- torch's tensors and ours --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_the_same_memory_both_ways(name: str, shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(normal(*shape)).to(FLOATS[name])
    packed = packed_of(x)
    assert packed.shape == shape and packed.format.name == name
    assert not x.numel() or packed.address == x.data_ptr()
    assert torch.equal(torch.from_numpy(quants.unpack(packed)), x.float())
    back = tensor_of(packed)
    assert back.dtype == x.dtype and back.shape == x.shape and torch.equal(back, x)
    assert not x.numel() or back.data_ptr() == x.data_ptr()


def test_a_part_of_a_matrix_stays_where_it_is() -> None:
    x = torch.from_numpy(normal(6, 10)).bfloat16()
    part = tensor_of(packed_of(x).prefix(4, 7))
    assert part.data_ptr() == x.data_ptr() and torch.equal(part, x[:4, :7])


def test_memory_lives_as_long_as_its_tensor() -> None:
    held = [tensor_of(Packed.of(np.full((1000, 100), i, np.float32))) for i in range(20)]
    assert all(bool((x == i).all()) for i, x in enumerate(held))


def test_memory_that_may_only_be_read_is_taken_without_a_warning() -> None:
    x = normal(3, 4)
    frozen = np.frombuffer(x.tobytes(), np.uint8).reshape(3, 16)
    assert not frozen.flags.writeable
    packed = Packed(frozen, FORMATS["f32"])
    assert torch.equal(tensor_of(packed), torch.from_numpy(x))
    assert bytes_of(packed).data_ptr() == packed.address


def test_blocks_are_no_floats_and_others_are_not_run() -> None:
    with pytest.raises(UnsupportedError, match="q8_0"):
        tensor_of(pack(normal(2, 32), FORMATS["q8_0"]))
    with pytest.raises(UnsupportedError, match="float64"):
        packed_of(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_rounded_as_torch_rounds_them(name: str) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    x = bits.view(np.float32)
    want, got = torch.from_numpy(x).to(FLOATS[name]), tensor_of(pack(x, FORMATS[name]))
    number = ~want.isnan()
    whole = {4: torch.int32, 2: torch.int16}[got.itemsize]
    assert torch.equal(~got.isnan(), number)
    assert torch.equal(got.view(whole)[number], want.view(whole)[number])
