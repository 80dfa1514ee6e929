"""The oracle of the kernels agrees with expanding the matrix first."""

import pytest
import torch
from torch.nn import functional

from gemelo.errors import InputError
from gemelo.kernels import quants
from gemelo.kernels.quants import FORMATS, Format, Packed, unpack
from gemelo.kernels.reference import embedding, linear


def finite_packed(format: Format, rows: int, blocks: int) -> Packed:
    """Random bytes of moderate size: the high bits of every scale are cleared."""
    generator = torch.Generator().manual_seed(rows + blocks)
    shape = (rows, blocks, format.block_bytes)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    packed = Packed(raw.view(rows, -1), format)
    while not unpack(packed).isfinite().all():
        raw &= 0xBB  # takes exponent bits away wherever a scale may lie
    return packed


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_linear_is_the_product_with_the_expanded_matrix(
    format: Format, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quants, "CHUNK_ELEMENTS", 4 * 2 * format.block)  # several chunks
    weight = finite_packed(format, rows=13, blocks=2)
    x = torch.randn(*shape, 2 * format.block)
    want = functional.linear(x, unpack(weight))
    got = linear(x, weight)
    assert got.shape == (*shape, 13)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_linear_takes_a_prefix_and_gives_the_dtype_of_its_input() -> None:
    weight = finite_packed(FORMATS["q4_0"], rows=40, blocks=4)
    part = weight.prefix(rows=17, columns=96)
    x = torch.randn(2, 96, dtype=torch.bfloat16)
    got = linear(x, part)
    assert got.dtype == torch.bfloat16
    want = functional.linear(x.float(), unpack(weight)[:17, :96])
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))


def test_linear_without_columns_is_zero() -> None:
    weight = finite_packed(FORMATS["q8_0"], rows=3, blocks=1).prefix(columns=0)
    assert torch.equal(linear(torch.zeros(2, 0), weight), torch.zeros(2, 3))


def test_linear_refuses_another_width() -> None:
    with pytest.raises(InputError, match="13 x 64"):
        linear(torch.zeros(2, 96), finite_packed(FORMATS["q8_0"], rows=13, blocks=2))


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_is_the_rows_of_the_expanded_matrix(format: Format, dtype: torch.dtype) -> None:
    weight = finite_packed(format, rows=11, blocks=2)
    ids = torch.tensor([[0, 10, 3], [3, 3, 7]])
    got = embedding(ids, weight, dtype)
    assert got.shape == (2, 3, 2 * format.block)
    assert torch.equal(got, unpack(weight, dtype)[ids])
    assert torch.equal(embedding(ids.int(), weight.prefix(11), dtype), got)
    assert embedding(ids[:, :0], weight, dtype).shape == (2, 0, 2 * format.block)


def test_embedding_refuses_floats() -> None:
    with pytest.raises(InputError, match="integers"):
        embedding(torch.zeros(3), finite_packed(FORMATS["q8_0"], rows=4, blocks=1))
