"""Quantised layers: the kernels' numbers on the CPU, in both dtypes, and torch's elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gemelo.errors import InputError
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Format, Packed, unpack
from gemelo.models import blocks as reference
from gemelo.models import quantised
from gemelo.models.blocks import Blocks
from gemelo.models.quantised import (
    DTYPES,
    QuantEmbedding,
    QuantLinear,
    bytes_of,
    module_bytes,
    packed_of,
)
from tests.kernels.matrices import FEW, assert_close, odd_columns, random_input, random_weight
from tests.native import needs_native

both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16"])


@pytest.fixture(params=sorted(cpu.FORMATS))
def format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(random_input(*shape)).to(dtype)


def linear(x: Tensor, weight: Packed, index: Tensor | None = None) -> Tensor:
    return quantised.linear(x, Blocks(bytes_of(weight), weight.format), index)


# ---- by address ----------------------------------------------------------------------------------


@both_dtypes
def test_products_agree_with_the_reference(isa: str, format: Format, dtype: torch.dtype) -> None:
    for tokens, rows, number in [
        (1, 1, 1), (1, 131, 4), (2, 7, 3), (3, 33, 5), (5, 2, 2), (16, 19, 7),
        (17, 1, 1), (18, 33, 5), (31, 130, 3), (70, 47, 9),
    ]:  # fmt: skip
        weight = random_weight(format, rows, odd_columns(format, number), seed=rows)
        x = activations(tokens, weight.columns, dtype=dtype)
        got = QuantLinear(weight)(x)
        assert got.shape == (tokens, rows) and got.dtype == dtype
        rounded = 2**-8 if dtype == torch.bfloat16 else 0.0
        assert_close(got.float().numpy(), x.float().numpy(), weight, isa, rounded)


def test_float32_has_the_bits_of_the_kernels(isa: str, format: Format) -> None:
    weight = random_weight(format, 21, odd_columns(format))
    index = torch.tensor([20, 0, 3])
    for tokens in (1, 6, 24):
        x = activations(tokens, weight.columns)
        assert np.array_equal(linear(x, weight).numpy(), cpu.linear(x.numpy(), weight))
        want = cpu.linear(x.numpy(), weight, index.numpy())
        assert np.array_equal(linear(x, weight, index).numpy(), want)
        assert np.array_equal(linear(x, weight, index.int()).numpy(), want)


@both_dtypes
def test_a_token_alone_and_among_sixteen_gives_the_same_bits(
    isa: str, format: Format, dtype: torch.dtype
) -> None:
    weight = random_weight(format, 21, odd_columns(format))
    x = activations(FEW, weight.columns, dtype=dtype)
    alone = torch.cat([linear(x[i : i + 1], weight) for i in range(FEW)])
    for count in range(2, FEW + 1):
        assert torch.equal(linear(x[:count], weight), alone[:count])


@both_dtypes
def test_gathered_rows_are_exact(isa: str, format: Format, dtype: torch.dtype) -> None:
    for columns in (odd_columns(format, 1), odd_columns(format, 4)):
        weight = random_weight(format, 29, columns)
        ids = torch.tensor([[28, 0, 3], [3, 7, 28]])
        want = torch.from_numpy(unpack(weight)).to(dtype)[ids]
        layer = QuantEmbedding(weight, dtype)
        assert torch.equal(layer(ids), want)
        assert torch.equal(layer(ids.int()), want)
        assert torch.equal(layer(ids.T), want.transpose(0, 1))


@both_dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_activation_shows_in_its_token_alone(
    isa: str, format: Format, dtype: torch.dtype, value: float
) -> None:
    weight = random_weight(format, 20, odd_columns(format))
    for tokens in (1, 4, 20):
        x = activations(tokens, weight.columns, dtype=dtype)
        before = linear(x, weight)
        x[-1, -2] = value
        got = linear(x, weight)
        assert not got[-1].isfinite().any()
        assert torch.equal(got[:-1], before[:-1])


@both_dtypes
def test_inputs_of_any_shape_and_stride(isa: str, dtype: torch.dtype) -> None:
    weight = random_weight(FORMATS["q4_0"], 9, 96)
    x = activations(2, 3, 96, dtype=dtype)
    want = linear(x.reshape(6, 96), weight)
    assert torch.equal(linear(x, weight), want.view(2, 3, 9))
    assert torch.equal(linear(x[0, 0], weight), want[0])
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(linear(turned, weight), want.view(2, 3, 9))
    assert linear(x[:0], weight).shape == (0, 3, 9)
    assert linear(x, weight.prefix(rows=0)).shape == (2, 3, 0)
    assert not linear(x[..., :0], weight.prefix(columns=0)).any()


def test_bad_input_is_an_input_error() -> None:
    layer = QuantLinear(random_weight(FORMATS["q8_0"], 5, 64))
    table = QuantEmbedding(layer.weight, torch.float32)
    with pytest.raises(InputError, match="5 x 64"):
        layer(torch.zeros(2, 96))
    with pytest.raises(InputError, match="row"):
        linear(torch.zeros(2, 64), layer.weight, torch.tensor([0, 5]))
    if native.module is not None:
        with pytest.raises(InputError, match="one dimension"):
            linear(torch.zeros(2, 64), layer.weight, torch.tensor([[0, 4]]))
    for ids in (torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(InputError, match="integers"):
            table(ids)
    with pytest.raises(InputError, match="row"):
        table(torch.tensor([5]))


# ---- which way -----------------------------------------------------------------------------------


@needs_native
@both_dtypes
def test_what_the_kernels_take_is_native(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    x = activations(3, 512, dtype=dtype)
    stored = Blocks(bytes_of(weight), weight.format)
    assert quantised.takes(x, stored, dtype)
    rounded = linear(x, weight)
    assert not torch.equal(rounded, reference.linear(x, stored))
    monkeypatch.setattr(native, "module", None)
    assert torch.equal(linear(x, weight), reference.linear(x, stored))


def test_formats_and_dtypes_without_kernels_go_through_torch() -> None:
    other = random_weight(FORMATS["q4_1"], 5, 64)
    layer, x, index = QuantLinear(other), activations(3, 64), torch.tensor([4, 1])
    want = reference.linear(x, layer.stored)
    assert torch.equal(layer(x), want)
    torch.testing.assert_close(linear(x, other, index), want[:, index])
    rows = QuantEmbedding(other, torch.float32)(index)
    assert torch.equal(rows, torch.from_numpy(unpack(other))[index])
    known = random_weight(FORMATS["q8_0"], 5, 64)
    assert linear(x.double(), known).dtype == torch.float64
    table = QuantEmbedding(known, torch.float16)
    assert torch.equal(table(index), reference.embedding(index, table.stored, torch.float16))


def test_shapes_are_known_without_numbers() -> None:
    """As when a model is exported: fake tensors have no memory that a kernel could read."""
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    with FakeTensorMode() as mode:
        fake = Blocks(mode.from_tensor(bytes_of(weight)), weight.format)
        y = quantised.linear(torch.empty(2, 3, 512, dtype=torch.bfloat16), fake)
        assert y.shape == (2, 3, 6) and y.dtype == torch.bfloat16
        index = torch.empty(4, dtype=torch.int64)
        assert quantised.linear(torch.empty(2, 512), fake, index).shape == (2, 4)
        ids = torch.empty(3, 1, dtype=torch.int64)
        rows = quantised.embedding(ids, fake, torch.bfloat16)
        assert rows.shape == (3, 1, 512) and rows.dtype == torch.bfloat16


# ---- layers --------------------------------------------------------------------------------------


def test_a_layer_refers_to_the_memory_of_its_weight() -> None:
    weight = random_weight(FORMATS["q8_0"], 6, 64)
    layer = QuantLinear(weight)
    assert layer.weight.address == weight.address and layer.weight.shape == (6, 64)
    assert layer.stored.tensor.data_ptr() == weight.address
    assert module_bytes(layer) == weight.nbytes
    assert not layer.state_dict()
    table = QuantEmbedding(weight, torch.bfloat16)
    assert table.weight.address == weight.address and table.dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_layer_on_a_device_gives_a_copy_of_its_weight() -> None:
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    layer = QuantLinear(weight, "cuda")
    assert layer.stored.tensor.device.type == "cuda"
    assert np.array_equal(layer.weight.blocks, weight.blocks)
    x = activations(3, 512)
    want = reference.linear(x, Blocks(bytes_of(weight), weight.format))
    torch.testing.assert_close(layer(x.cuda()).cpu(), want, rtol=1e-4, atol=1e-3)


def test_leading_parts_and_chosen_ones(exact_products: None) -> None:
    whole = torch.from_numpy(random_input(6, 96))
    layer = QuantLinear(packed_of(whole))
    x = activations(2, 96)
    close = torch.testing.assert_close
    close(layer(x, rows=3), x @ whole[:3].T)
    close(layer(x[:, :64], columns=64), x[:, :64] @ whole[:, :64].T)
    index = torch.tensor([5, 0])
    close(linear(x, layer.weight, index), x @ whole[index].T)
    close(QuantEmbedding(packed_of(whole), torch.float32).project(x), x @ whole.T)


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)


# ---- after a fork --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_torch_computes_in_the_child_of_a_fork() -> None:
    """Its OpenMP would wait there for threads that only the parent has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["child", "parent"]


FORKING = """
import os, signal, torch
import gemelo.models.layers

x = torch.randn(2000, 2000)
torch.set_num_threads(3)
want = float(x.exp().sum())
child = os.fork()
if not child:
    signal.alarm(20)
    found = float(torch.randn(2000, 2000).exp().sum())
    os._exit(0 if found > 0 and torch.get_num_threads() == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("child")
assert float(x.exp().sum()) == want
print("parent")
"""
