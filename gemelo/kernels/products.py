"""Products over quantised matrices: native where the kernels take them, else by the reference.

This is the one place that picks. Both ways have the same signatures and agree as closely as
activations in bytes allow (docs/kernels.md). Tensors of a device and formats that the extension
does not know go through the reference; so do torch's fake tensors, which have a shape and no
memory, so that a model can be exported.

    y = products.linear(x, packed)                     # (..., C) -> (..., R)
    rows = products.embedding(ids, packed, torch.bfloat16)

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemelo.kernels import cpu, reference
from gemelo.kernels.quants import Packed


def linear(x: Tensor, weight: Packed, index: Tensor | None = None) -> Tensor:
    """x (..., C) times weight (R, C) transposed: (..., R) in x's dtype, or only the rows that
    `index` (N) names: (..., N)."""
    if cpu.takes(x, weight, x.dtype):
        return cpu.linear(x, weight, index)
    return reference.linear(x, weight if index is None else reference.chosen_rows(weight, index))


def embedding(ids: Tensor, weight: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows of weight (R, C) that integer ids (...) name: (..., C) in `dtype`."""
    if cpu.takes(ids, weight, dtype):
        return cpu.embedding(ids, weight, dtype)
    return reference.embedding(ids, weight, dtype)
