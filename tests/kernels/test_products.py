"""Products are native where the kernels take them, and the reference's everywhere else."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.kernels import cpu, native, products, reference
from gemelo.kernels.quants import FORMATS, unpack
from tests.kernels.matrices import random_input, random_weight
from tests.native import needs_native


@needs_native
def test_what_the_kernels_take_is_native() -> None:
    weight, index = random_weight(FORMATS["q4_k"], 6, 512), np.array([5, 0])
    x = random_input(3, 512)
    assert cpu.takes(weight)
    assert np.array_equal(products.linear(x, weight), cpu.linear(x, weight))
    assert np.array_equal(products.linear(x, weight, index), cpu.linear(x, weight, index))
    assert not np.array_equal(products.linear(x, weight), reference.linear(x, weight))
    assert np.array_equal(products.embedding(index, weight), cpu.embedding(index, weight))


@needs_native
def test_one_name_leaves_everything_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = random_weight(FORMATS["q8_0"], 6, 64), random_input(3, 64)
    rounded = products.linear(x, weight)
    monkeypatch.setattr(native, "module", None)
    assert native.isa() == native.REFERENCE and not cpu.takes(weight)
    assert np.array_equal(products.linear(x, weight), reference.linear(x, weight))
    assert not np.array_equal(products.linear(x, weight), rounded)


def test_formats_without_kernels_go_through_the_reference() -> None:
    other = random_weight(FORMATS["q4_1"], 5, 64)
    x = random_input(3, 64)
    assert not cpu.takes(other)
    assert np.array_equal(products.linear(x, other), reference.linear(x, other))
    index = np.array([4, 1])
    named = products.linear(x, other, index)
    np.testing.assert_allclose(named, reference.linear(x, other)[:, index], rtol=1e-5, atol=1e-5)
    assert np.array_equal(products.embedding(index, other), unpack(other)[index])
