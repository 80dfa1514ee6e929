"""The oracle of the kernels agrees with expanding the matrix first."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.errors import InputError
from gemelo.kernels import quants
from gemelo.kernels.quants import FORMATS, Format, Packed, unpack
from gemelo.kernels.reference import embedding, linear
from tests.kernels.matrices import normal


def finite_packed(format: Format, rows: int, blocks: int) -> Packed:
    """Random bytes of moderate size: the high bits of every scale are cleared."""
    shape = (rows, blocks * format.block_bytes)
    raw = np.random.default_rng(rows + blocks).integers(0, 256, shape, np.uint8)
    packed = Packed(raw, format)
    while not np.isfinite(unpack(packed)).all():
        raw &= 0xBB  # takes exponent bits away wherever a scale may lie
    return packed


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_linear_is_the_product_with_the_expanded_matrix(
    format: Format, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quants, "CHUNK_ELEMENTS", 4 * 2 * format.block)  # several chunks
    weight = finite_packed(format, rows=13, blocks=2)
    x = normal(*shape, 2 * format.block)
    want = x.astype(np.float64) @ unpack(weight).astype(np.float64).T
    got = linear(x, weight)
    assert got.shape == (*shape, 13) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_linear_takes_a_prefix() -> None:
    weight = finite_packed(FORMATS["q4_0"], rows=40, blocks=4)
    part = weight.prefix(rows=17, columns=96)
    x = normal(2, 96)
    want = x.astype(np.float64) @ unpack(weight)[:17, :96].astype(np.float64).T
    np.testing.assert_allclose(linear(x, part), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_linear_without_columns_is_zero() -> None:
    weight = finite_packed(FORMATS["q8_0"], rows=3, blocks=1).prefix(columns=0)
    got = linear(np.zeros((2, 0), np.float32), weight)
    assert np.array_equal(got, np.zeros((2, 3)))


def test_a_broken_weight_shows_in_its_output() -> None:
    weight = finite_packed(FORMATS["f32"], rows=3, blocks=8)
    for value in (np.nan, np.inf):
        weight.blocks.view(np.float32)[1, 2] = value
        found = np.isfinite(linear(normal(2, 8), weight))
        assert found[:, [0, 2]].all() and not found[:, 1].any()


def test_linear_refuses_another_width_and_other_numbers() -> None:
    weight = finite_packed(FORMATS["q8_0"], rows=13, blocks=2)
    with pytest.raises(InputError, match="13 x 64"):
        linear(np.zeros((2, 96), np.float32), weight)
    with pytest.raises(InputError, match="float32"):
        linear(np.zeros((2, 64)), weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_embedding_is_the_rows_of_the_expanded_matrix(format: Format) -> None:
    weight = finite_packed(format, rows=11, blocks=2)
    ids = np.array([[0, 10, 3], [3, 3, 7]])
    got = embedding(ids, weight)
    assert got.shape == (2, 3, 2 * format.block)
    assert np.array_equal(got, unpack(weight)[ids])
    assert np.array_equal(embedding(ids.astype(np.int32), weight.prefix(11)), got)
    assert embedding(ids[:, :0], weight).shape == (2, 0, 2 * format.block)


def test_embedding_refuses_floats_and_rows_outside() -> None:
    weight = finite_packed(FORMATS["q8_0"], rows=4, blocks=1)
    with pytest.raises(InputError, match="integers"):
        embedding(np.zeros(3), weight)  # type: ignore[arg-type]
    for ids in ([4], [-1]):
        with pytest.raises(InputError, match="4 rows"):
            embedding(np.array(ids), weight)
