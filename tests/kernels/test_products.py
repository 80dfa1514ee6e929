"""Products are native where the kernels take them, and the reference's everywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gemelo.kernels import cpu, native, products, reference
from gemelo.kernels.quants import FORMATS, Packed, unpack
from tests.kernels.matrices import random_input, random_weight
from tests.native import needs_native


@needs_native
@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=["f32", "bf16"])
def test_what_the_kernels_take_is_native(dtype: torch.dtype) -> None:
    weight, index = random_weight(FORMATS["q4_k"], 6, 512), torch.tensor([5, 0])
    x = random_input(3, 512, dtype=dtype)
    assert cpu.takes(x, weight, dtype)
    assert torch.equal(products.linear(x, weight), cpu.linear(x, weight))
    assert torch.equal(products.linear(x, weight, index), cpu.linear(x, weight, index))
    assert not torch.equal(products.linear(x, weight), reference.linear(x, weight))
    rows = products.embedding(index, weight, dtype)
    assert torch.equal(rows, cpu.embedding(index, weight, dtype))


@needs_native
def test_one_name_leaves_everything_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = random_weight(FORMATS["q8_0"], 6, 64), random_input(3, 64)
    rounded = products.linear(x, weight)
    monkeypatch.setattr(native, "module", None)
    assert native.isa() == native.REFERENCE
    assert torch.equal(products.linear(x, weight), reference.linear(x, weight))
    assert not torch.equal(products.linear(x, weight), rounded)


def test_formats_and_dtypes_without_kernels_go_through_the_reference() -> None:
    other = random_weight(FORMATS["q4_1"], 5, 64)
    x = random_input(3, 64)
    assert not cpu.takes(x, other, x.dtype)
    torch.testing.assert_close(products.linear(x, other), reference.linear(x, other))
    index = torch.tensor([4, 1])
    named: Tensor = products.linear(x, other, index)
    torch.testing.assert_close(named, reference.linear(x, other)[:, index])
    assert torch.equal(products.embedding(index, other), unpack(other)[index])
    known = random_weight(FORMATS["q8_0"], 5, 64)
    assert products.linear(x.double(), known).dtype == torch.float64
    rows = products.embedding(index, known, torch.float16)
    assert torch.equal(rows, reference.embedding(index, known, torch.float16))


def test_shapes_are_known_without_numbers() -> None:
    """As when a model is exported: fake tensors have no memory that a kernel could read."""
    weight = random_weight(FORMATS["q4_k"], 6, 512)
    with FakeTensorMode() as mode:
        fake = Packed(mode.from_tensor(weight.blocks), weight.format)
        y = products.linear(torch.empty(2, 3, 512, dtype=torch.bfloat16), fake)
        assert y.shape == (2, 3, 6) and y.dtype == torch.bfloat16
        index = torch.empty(4, dtype=torch.int64)
        assert products.linear(torch.empty(2, 512), fake, index).shape == (2, 4)
        rows = products.embedding(torch.empty(3, 1, dtype=torch.int64), fake, torch.bfloat16)
        assert rows.shape == (3, 1, 512) and rows.dtype == torch.bfloat16
