"""What a step says of its scores: the largest of every block, and whether all are finite.

Legend: T tokens that are scored, V vocabulary, D width.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gemelo.kernels import native
from tests.native import needs_native

pytestmark = needs_native
Floats = NDArray[np.float32]

D = 32


def address(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)


def maxima_of(scores: Floats) -> Floats:
    """(T, V) -> (T, blocks), slowly."""
    block = native.extension.MAXIMA_BLOCK
    rows = [[row[at : at + block].max() for at in range(0, len(row), block)] for row in scores]
    return np.array(rows, np.float32)


def matrix(x: Floats) -> native.extension.Matrix:
    f32 = native.extension.Format.F32
    return native.extension.Matrix(address(x), x.strides[0], f32, *x.shape)


def scored(
    inputs: Floats, head: Floats, cap: float, with_maxima: bool = True
) -> tuple[Floats, Floats, bool]:
    """The scores (T, V) of embeddings (T, D), their maxima, and whether they are said to be
    finite."""
    extension = native.extension
    tokens, vocabulary = len(inputs), len(head)
    program = extension.Program()
    x = program.buffer(D)
    program.embed(matrix(inputs), 1.0, x)
    program.logits(x, matrix(head), cap)
    scores = np.full((tokens, vocabulary), np.nan, np.float32)
    maxima = np.full((tokens, -(-vocabulary // extension.MAXIMA_BLOCK)), np.nan, np.float32)
    places, slots = np.arange(tokens), np.full(tokens, -1)
    cache = extension.Cache(
        layers=[], slots=[(address(slots), tokens)] * 2, format=extension.CacheFormat.F32,
        kv_heads=1, head_dim=D,
    )  # fmt: skip
    cache.used = [tokens] * 2
    pieces = [extension.Piece(cache, 0, tokens, tokens)]
    beside = address(maxima) if with_maxima else 0
    call = extension.Call(address(places), pieces, None, address(scores), beside)
    return scores, maxima, program.run(call)


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 700, 20_001])
@pytest.mark.parametrize("cap", [0.0, 2.5])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_a_step_writes_the_maxima_of_what_it_scores(
    isa: str, vocabulary: int, cap: float, tokens: int
) -> None:
    generator = np.random.default_rng(vocabulary)
    inputs = generator.standard_normal((tokens, D), np.float32)
    head = generator.standard_normal((vocabulary, D), np.float32)
    scores, maxima, finite = scored(inputs, head, cap)
    assert finite
    assert np.array_equal(maxima, maxima_of(scores))
    exact = inputs.astype(np.float64) @ head.T.astype(np.float64)
    want = cap * np.tanh(exact / cap) if cap else exact
    assert np.abs(scores - want).max() < 1e-4
    plain, untouched, finite = scored(inputs, head, cap, with_maxima=False)
    assert finite and np.array_equal(plain, scores) and np.isnan(untouched).all()


def test_soft_caps_do_not_depend_on_threads(isa: str) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((5, D), np.float32)
    head = generator.standard_normal((1003, D), np.float32)
    before = native.extension.threads()
    found = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        found.append(scored(inputs, head, 2.5)[:2])
    native.set_threads(before)
    for scores, maxima in found[1:]:
        assert np.array_equal(scores, found[0][0]) and np.array_equal(maxima, found[0][1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 63, 64, 699, 700])
@pytest.mark.parametrize("with_maxima", [True, False])
def test_a_broken_score_is_seen(isa: str, value: float, row: int, with_maxima: bool) -> None:
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((2, D), np.float32)
    head = generator.standard_normal((701, D), np.float32)
    assert scored(inputs, head, 0.0, with_maxima)[2]
    head[row, 3] = value
    assert not scored(inputs, head, 0.0, with_maxima)[2]


@pytest.mark.parametrize("count", [1, 15, 64, 65, 1025, 262_144, 262_145])
def test_the_largest_is_found_by_the_maxima(isa: str, count: int) -> None:
    """The first of several, as without them."""
    extension = native.extension
    scores = np.random.default_rng(count).standard_normal(count, np.float32)
    maxima = np.empty(-(-count // extension.MAXIMA_BLOCK), np.float32)
    for place in sorted({0, count // 2, count - 1}, reverse=True):
        scores[place] = 9.0  # and those behind it are as large
        assert extension.block_maxima(address(scores), count, address(maxima))
        assert np.array_equal(maxima, maxima_of(scores[None])[0])
        assert extension.argmax(address(scores), count, address(maxima)) == place
        assert extension.argmax(address(scores), count) == place
    scores[count // 3] = np.nan
    assert not extension.block_maxima(address(scores), count, address(maxima))
