"""A product with few rows: every way that it takes gives what the definition says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gemelo.models.product import FEW_ROWS, product

ROWS = (0, 1, 2, 3, 4, 48, 49, 64, 65, 130)
# Sums of 96 products of numbers below 1, as the dtype rounds them.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "a-view-with-gaps"])
@pytest.mark.parametrize("num_rows", ROWS)
def test_any_number_of_rows(num_rows: int, gaps: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    weight = torch.rand(40, 128, generator=generator).to(dtype)
    weight = weight[:, :96] if gaps else weight[:, :96].contiguous()
    x = torch.rand(num_rows, 96, generator=generator).to(dtype)
    y = product(x, weight)
    wanted = x.double() @ weight.double().T
    assert y.dtype == dtype and y.shape == wanted.shape and y.is_contiguous()
    assert torch.allclose(y.double(), wanted, rtol=TOLERANCES[dtype], atol=0)


@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (1, 5, 96), (2, 3, 4, 96), (1, 0, 96)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, weight = torch.rand(shape), torch.rand(40, 96)
    y = product(x, weight)
    assert y.shape == (*shape[:-1], 40)
    assert torch.allclose(y, F.linear(x, weight), rtol=1e-5)


@pytest.mark.parametrize("num_rows", [2, 4, 33])
def test_inputs_need_not_lie_together(num_rows: int) -> None:
    x, weight = torch.rand(96, num_rows).t(), torch.rand(40, 96)
    assert torch.allclose(product(x[None], weight)[0], x @ weight.t(), rtol=1e-5)


def test_gradients_pass() -> None:
    x, weight = torch.rand(8, 96, requires_grad=True), torch.rand(40, 96)
    assert 8 in FEW_ROWS[torch.float32]
    product(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and torch.allclose(x.grad, weight.sum(0).expand(8, 96), rtol=1e-5)
