"""The linear map: whole, and its leading rows and columns alone."""

from __future__ import annotations

import pytest
import torch

from gemelo.models.layers import Embedding, Linear

# Sums of 96 products of numbers below 1, as the dtype rounds them.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float64: 1e-12}


def linear(dtype: torch.dtype = torch.float32) -> Linear:
    """A map from 96 to 40 with weights in [0, 1)."""
    made = Linear(96, 40)
    made.weight.data = torch.rand(40, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    return made


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "columns"), [(None, None), (32, None), (None, 64), (7, 33)])
@pytest.mark.parametrize("tokens", [0, 1, 2, 65])
def test_leading_rows_and_columns(
    tokens: int, rows: int | None, columns: int | None, dtype: torch.dtype
) -> None:
    layer = linear(dtype)
    kept = layer.weight[:rows, :columns].clone()
    layer.weight[40 if rows is None else rows :] = float("nan")
    layer.weight[:, 96 if columns is None else columns :] = float("nan")
    x = torch.rand(1, tokens, kept.shape[1]).to(dtype)
    y = layer(x, rows=rows, columns=columns)
    wanted = x.double() @ kept.double().T
    assert y.dtype == dtype and y.shape == wanted.shape
    assert torch.allclose(y.double(), wanted, rtol=TOLERANCES[dtype], atol=0)


@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (1, 5, 96), (2, 3, 4, 96), (1, 0, 96)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, layer = torch.rand(shape), linear()
    head = Embedding(40, 96)
    head.weight = layer.weight
    wanted = torch.einsum("...i,oi->...o", x, layer.weight)
    assert torch.allclose(layer(x), wanted, rtol=1e-5)
    assert torch.allclose(head.project(x), wanted, rtol=1e-5)


def test_gradients_pass() -> None:
    x, layer = torch.rand(8, 96, requires_grad=True), linear()
    layer(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and torch.allclose(x.grad, layer.weight.sum(0).expand(8, 96))
