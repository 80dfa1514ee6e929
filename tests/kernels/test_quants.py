"""Blocks in, floats out, and back: bit for bit what the format's own package gives."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import quants as gguf_quants
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.errors import InputError, UnsupportedError
from gemelo.kernels import quants
from gemelo.kernels.quants import FORMATS, FORMATS_BY_ID, PACKERS, Format, Packed, pack, unpack

BLOCK_FORMATS = [format for format in FORMATS.values() if format.block > 1]
by_name = pytest.mark.parametrize("format", BLOCK_FORMATS, ids=lambda f: f.name)


def random_packed(format: Format, rows: int, blocks: int, seed: int = 0) -> Packed:
    """Random bytes: every bit pattern of every field, with infinite and not-a-number scales."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, blocks * format.block_bytes)
    return Packed(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), format)


def oracle(packed: Packed) -> np.ndarray:
    blocks = np.ascontiguousarray(packed.blocks.numpy())
    with np.errstate(all="ignore"):
        return gguf_quants.dequantize(blocks, GGMLQuantizationType[packed.format.name.upper()])


def assert_same_bits(got: torch.Tensor, want: np.ndarray) -> None:
    assert tuple(got.shape) == want.shape
    found, missing = got.numpy(), np.isnan(want)
    assert np.array_equal(np.isnan(found), missing)
    assert np.array_equal(found.view(np.uint32)[~missing], want.view(np.uint32)[~missing])


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_table_agrees_with_the_format_definition(format: Format) -> None:
    kind = GGMLQuantizationType[format.name.upper()]
    assert format.ggml_id == kind.value
    assert (format.block, format.block_bytes) == GGML_QUANT_SIZES[kind]
    assert FORMATS_BY_ID[kind.value] is format


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


@by_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_unpack_rounds_once(format: Format, dtype: torch.dtype) -> None:
    packed = random_packed(format, rows=5, blocks=2, seed=2)
    want = unpack(packed).to(dtype)
    assert torch.equal(unpack(packed, dtype).nan_to_num(), want.nan_to_num())


@by_name
def test_prefix_is_a_view_of_the_leading_part(format: Format) -> None:
    packed = random_packed(format, rows=9, blocks=4, seed=3)
    part = packed.prefix(rows=7, columns=3 * format.block)
    assert part.shape == (7, 3 * format.block)
    assert part.blocks.data_ptr() == packed.blocks.data_ptr()
    assert_same_bits(unpack(part), oracle(packed)[:7, : 3 * format.block])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_formats_are_blocks_of_one(dtype: torch.dtype) -> None:
    name = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    weight = torch.randn(6, 10).to(dtype)
    packed = Packed(weight.view(torch.uint8), FORMATS[name])
    assert torch.equal(unpack(packed), weight.float())
    assert torch.equal(unpack(packed.prefix(3, 7)), weight[:3, :7].float())


def test_empty_matrices() -> None:
    packed = random_packed(FORMATS["q4_k"], rows=4, blocks=1)
    assert unpack(packed.prefix(rows=0)).shape == (0, 256)
    assert unpack(packed.prefix(columns=0)).shape == (4, 0)
    assert pack(torch.zeros(0, 64), FORMATS["q8_0"]).shape == (0, 64)


@pytest.mark.parametrize("rows, columns", [(1, 100), (10, 256), (1, 512), (-1, 256), (1, -256)])
def test_prefix_refuses_what_does_not_fit(rows: int, columns: int) -> None:
    with pytest.raises(InputError):
        random_packed(FORMATS["q6_k"], rows=9, blocks=1).prefix(rows, columns)


def test_packed_refuses_wrong_bytes() -> None:
    q8 = FORMATS["q8_0"]
    for blocks in (torch.zeros(2, 35), torch.zeros(34), torch.zeros(2, 33), torch.zeros(34, 2).T):
        with pytest.raises(InputError):
            Packed(blocks.to(torch.uint8), q8)
    with pytest.raises(InputError):
        Packed(torch.zeros(2, 34), q8)


# ---- packing -------------------------------------------------------------------------------------


def oracle_bytes(x: torch.Tensor, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf_quants.quantize(x.float().numpy(), GGMLQuantizationType[name.upper()])


def hard_values() -> torch.Tensor:
    """Blocks on which a quantiser goes wrong: ties, halves, zeros, signed zeros, subnormals."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(64, 64, generator=generator)
    x[0] = 0
    x[1] = -0.0
    x[2, :32] = torch.arange(32) / 2 - 8  # halves, and -8 ties with nothing
    x[3] = torch.tensor([1.0, -1.0]).repeat(32)  # the first of a tie counts
    x[4] = torch.tensor([-1.0, 1.0]).repeat(32)
    x[5, :32] = torch.arange(32) + 0.5
    x[5, 0] = 127.0  # scale 1: all others lie exactly between two integers
    x[6] *= 1e-37
    x[7] *= 1e-6
    x[8] *= 1e5
    x[9, 3] = 8.0
    x[9, 4] = -8.0
    return x


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack_gives_the_reference_bytes(name: str, dtype: torch.dtype) -> None:
    x = hard_values()
    if dtype == torch.float16:
        x = x.clamp(-65504, 65504)
    x = x.to(dtype)
    assert np.array_equal(pack(x, FORMATS[name]).blocks.numpy(), oracle_bytes(x, name))


# Below 1e-30 the reference's own result is undefined (it converts infinities to integers).
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PACKERS)), st.lists(ordinary, min_size=32, max_size=32))
def test_pack_gives_the_reference_bytes_for_any_block(name: str, values: list[float]) -> None:
    x = torch.tensor([values], dtype=torch.float32)
    assert np.array_equal(pack(x, FORMATS[name]).blocks.numpy(), oracle_bytes(x, name))


@pytest.mark.parametrize("name", PACKERS)
def test_packing_across_chunks_and_strides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(37, 96)
    whole = oracle_bytes(x, name)
    monkeypatch.setattr(quants, "CHUNK_ELEMENTS", 5 * 96)
    assert np.array_equal(pack(x, FORMATS[name]).blocks.numpy(), whole)
    strided = torch.zeros(37, 200)[:, 50:146].copy_(x)
    assert np.array_equal(pack(strided, FORMATS[name]).blocks.numpy(), whole)


@pytest.mark.parametrize("name", PACKERS)
def test_values_below_every_scale_become_zero(name: str) -> None:
    x = torch.randn(2, 64) * 1e-39  # one over the scale is infinite
    assert torch.equal(unpack(pack(x, FORMATS[name])), torch.zeros(2, 64))


def test_q8_0_packs_its_own_values_back() -> None:
    once = unpack(pack(torch.randn(8, 64), FORMATS["q8_0"]))
    assert torch.allclose(unpack(pack(once, FORMATS["q8_0"])), once, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e12])
def test_pack_refuses_what_no_scale_can_hold(name: str, value: float) -> None:
    x = torch.randn(4, 64)
    x[2, 40] = value
    with pytest.raises(InputError, match=name):
        pack(x, FORMATS[name])


def test_pack_refuses_other_formats_shapes_and_types() -> None:
    with pytest.raises(UnsupportedError, match="q8_0"):
        pack(torch.zeros(2, 256), FORMATS["q4_k"])
    with pytest.raises(InputError, match="100 columns"):
        pack(torch.zeros(2, 100), FORMATS["q8_0"])
    with pytest.raises(InputError):
        pack(torch.zeros(2, 32, dtype=torch.int32), FORMATS["q8_0"])
    with pytest.raises(InputError):
        pack(torch.zeros(32), FORMATS["q8_0"])


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
