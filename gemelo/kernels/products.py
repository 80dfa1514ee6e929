"""Products over quantised matrices: native where the kernels take them, else by the reference.

This is the one place that picks. Both ways have the same signatures and agree as closely as
activations in bytes allow (docs/kernels.md). Formats that the extension does not know go through
the reference. (`models.quantised` picks for torch's tensors, on any device.)

    y = products.linear(x, packed)                     # (..., C) -> (..., R)
    rows = products.embedding(ids, packed)

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.kernels import cpu, reference
from gemelo.kernels.packed import Floats, Packed


def linear(x: Floats, weight: Packed, index: NDArray[np.int64] | None = None) -> Floats:
    """x (..., C) times weight (R, C) transposed: (..., R), or only the rows that `index` (N) names:
    (..., N)."""
    if cpu.takes(weight):
        return cpu.linear(x, weight, index)
    return reference.linear(x, weight if index is None else reference.chosen_rows(weight, index))


def embedding(ids: NDArray[np.integer[Any]], weight: Packed) -> Floats:
    """The rows of weight (R, C) that integer ids (...) name: (..., C)."""
    return cpu.embedding(ids, weight) if cpu.takes(weight) else reference.embedding(ids, weight)
