"""The packed type: what a format's table says, views of leading parts, tensors of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gemelo.errors import InputError
from gemelo.kernels.quants import (
    FORMATS,
    FORMATS_BY_ID,
    Format,
    Packed,
    converted,
    pack,
    unpack,
)
from tests.kernels.matrices import assert_same_bits, normal, random_packed


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_table_agrees_with_the_format_definition(format: Format) -> None:
    kind = GGMLQuantizationType[format.name.upper()]
    assert format.ggml_id == kind.value
    assert (format.block, format.block_bytes) == GGML_QUANT_SIZES[kind]
    assert FORMATS_BY_ID[kind.value] is format


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_prefix_is_a_view_of_the_leading_part(format: Format) -> None:
    packed = random_packed(format, rows=9, blocks=4, seed=3)
    part = packed.prefix(rows=7, columns=3 * format.block)
    assert part.shape == (7, 3 * format.block)
    assert part.address == packed.address and part.stride == packed.stride
    assert_same_bits(unpack(part), unpack(packed)[:7, : 3 * format.block])


@pytest.mark.parametrize("rows, columns", [(1, 100), (10, 256), (1, 512), (-1, 256), (1, -256)])
def test_prefix_refuses_what_does_not_fit(rows: int, columns: int) -> None:
    with pytest.raises(InputError):
        random_packed(FORMATS["q6_k"], rows=9, blocks=1).prefix(rows, columns)


def test_packed_refuses_wrong_bytes() -> None:
    q8, some = FORMATS["q8_0"], np.zeros((2, 68), np.uint8)
    for blocks in (some[:, :35], some[0, :34], some[:, :33], some[:, ::2], some.T, some[::-1]):
        with pytest.raises(InputError):
            Packed(blocks, q8)
    with pytest.raises(InputError):
        Packed(np.zeros((2, 34), np.float32), q8)  # type: ignore[arg-type]
    for dims in ((2, 64, 1), (128,), (2, 32), ()):
        with pytest.raises(InputError, match="2 x 64"):
            Packed(some, q8, dims)


# ---- tensors of any shape ------------------------------------------------------------------------

SHAPES = [(), (0,), (5,), (2, 3), (0, 3), (3, 0), (2, 3, 4), (2, 0, 3), (1, 2, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_a_tensor_keeps_its_shape(shape: tuple[int, ...], name: str) -> None:
    x = np.round(normal(*shape) * 8)  # which every format holds
    packed = pack(x, FORMATS[name])
    assert packed.shape == shape and packed.rows * packed.columns == x.size
    assert_same_bits(unpack(packed), x)
    assert_same_bits(unpack(converted(packed, FORMATS["f16"])), x)
    whole = Packed.of(x)
    assert whole.shape == shape and whole.format.name == "f32"
    assert_same_bits(unpack(whole), x)
    if len(shape) == 2:
        assert packed.dims is None
    else:
        with pytest.raises(InputError, match="no matrix"):
            packed.prefix(rows=0)


def test_floats_are_viewed_where_they_lie() -> None:
    x = normal(6, 10)
    assert Packed.of(x).address == x.ctypes.data
    assert_same_bits(unpack(Packed.of(x.T)), x.T)
    assert_same_bits(unpack(Packed.of(x[:, ::2])), x[:, ::2])
    for other in (x.astype(np.float64), x.astype(np.float16), x.astype(np.int32)):
        with pytest.raises(InputError, match="float32"):
            Packed.of(other)  # type: ignore[arg-type]


def test_unpacked_numbers_are_ones_own() -> None:
    x = normal(4, 4)
    unpack(Packed.of(x))[...] = 0
    assert x.any()


# ---- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.block > 1])
def test_a_format_that_does_not_fit_is_never_recommended(name: str) -> None:
    for columns in (16, 32):
        if columns % FORMATS[name].block == 0:
            continue
        with pytest.raises(InputError) as caught:
            FORMATS[name].row_bytes(columns)
        told, _, cure = str(caught.value).partition("; choose ")
        assert told.startswith(f"{columns} columns cannot be {name}, ")
        assert "bf16 or f32" in cure and ("q8_0" in cure) == (columns % FORMATS["q8_0"].block == 0)
