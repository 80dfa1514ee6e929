"""Maxima beside scores say what the scores say, and leave with whatever is computed from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.sampler import Sampler, adjust, largest, largest_ids, likeliest
from gemelo.engine.scores import BLOCK, ScoreMemory, Scores, leading, maxima_of
from gemelo.engine.tokens import Tokens
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, cache_of, made


def with_maxima(rows: int, size: int, seed: int = 0) -> Scores:
    """Scores with ties, as coarse numbers have them."""
    scores = Scores.empty(rows, size)
    scores[:] = np.random.default_rng(seed).integers(-200, 200, (rows, size)) / 8
    for index, row in enumerate(np.asarray(scores)):
        blocks = [row[at : at + BLOCK].max() for at in range(0, size, BLOCK)]
        assert scores.maxima is not None
        scores.maxima[index] = blocks
    return scores


@needs_native
def test_blocks_are_the_kernels() -> None:
    assert native.extension.MAXIMA_BLOCK == BLOCK


def test_rows_keep_their_maxima_and_nothing_else_does() -> None:
    scores = with_maxima(3, 1000)
    for index, row in enumerate(scores):
        assert maxima_of(row) is not None
        assert np.array_equal(maxima_of(row), scores.maxima[index])
    assert maxima_of(scores[-1]) is not None and scores[1:].maxima.shape == (2, 16)
    row = scores[0]
    for other in (row + 1, row.copy(), row[:64], row[row > 0], scores.T, np.asarray(row)):
        assert maxima_of(other) is None


@pytest.mark.parametrize("count", [960, 970, 999, 1000])
def test_what_leads_has_the_maxima_of_that(count: int) -> None:
    row = with_maxima(1, 1000)[0]
    row[999], row.maxima[-1] = 1000, 1000  # of padding
    part = leading(row, count)
    expected = [np.asarray(part)[at : at + BLOCK].max() for at in range(0, count, BLOCK)]
    assert len(part) == count and np.array_equal(part.maxima, expected)
    assert row.maxima[-1] == 1000


@pytest.mark.parametrize("size", [64, 100, 4096, 5000])
@pytest.mark.parametrize("count", [1, 7, 64, 2000])
def test_the_largest_are_the_same_with_maxima(size: int, count: int) -> None:
    row, count = with_maxima(1, size, seed=size)[0], min(count, size)
    plain = np.asarray(row)
    assert largest(row) == largest(plain) == plain.argmax()
    assert np.array_equal(largest_ids(row, count), largest_ids(plain, count))
    for found, expected in zip(likeliest(row, count), likeliest(plain, count), strict=True):
        assert np.array_equal(found, expected)


@needs_native
@pytest.mark.parametrize("config", [GEMMA3, GEMMA3N], ids=["gemma3", "gemma3n"])
def test_a_native_step_gives_maxima(config: object) -> None:
    decoder = made(config, "q8_0")  # type: ignore[arg-type]
    cache = cache_of(decoder)
    read = step.prefill(decoder, cache, Tokens(IDS))
    found = [read, *step.verify(decoder, cache, [5, 6, 7], len(IDS))]
    for scores in found:
        plain = np.asarray(scores)
        expected = [plain[at : at + BLOCK].max() for at in range(0, len(plain), BLOCK)]
        assert np.array_equal(maxima_of(scores), expected)


def test_a_sampler_draws_the_same_with_maxima() -> None:
    row = with_maxima(1, 3000)[0]
    plain: Floats = np.array(row)
    for settings in ({"top_k": 5}, {"top_p": 0.5}, {"temperature": 0}, {"logprobs": 4}):
        sample = Sampler(Sampling(seed=3, **settings))  # type: ignore[arg-type]
        assert sample(row, [2], [5]) == sample(plain, [2], [5])


@pytest.mark.parametrize("size", [960, 999])
def test_penalties_make_the_maxima_of_changed_blocks_anew(size: int) -> None:
    row = with_maxima(1, size)[0]
    penalties = Sampling(repetition_penalty=1.5, frequency_penalty=0.5, logit_bias={700: 99.0})
    for prompt, answer in (([], []), ([3, 5000], [size - 1, 3]), (list(range(size)), [64])):
        adjusted = adjust(row, penalties, prompt, answer)
        plain = np.asarray(adjusted)
        assert np.array_equal(plain, adjust(np.array(row), penalties, prompt, answer))
        expected = [plain[at : at + BLOCK].max() for at in range(0, size, BLOCK)]
        assert np.array_equal(maxima_of(adjusted), expected)


LARGE = 262_144  # a vocabulary of which 32 rows are large


def address(scores: Scores) -> int:
    return int(scores.ctypes.data)


def test_scores_that_are_held_keep_their_memory() -> None:
    """Whatever holds them: a row, a plain view, a buffer."""
    memory = ScoreMemory()
    held: list[Any] = []
    holders: list[Callable[[Scores], Any]] = [
        lambda scores: scores[3],
        np.asarray,
        lambda scores: scores.data,
        lambda scores: scores[5, 7:9],
    ]
    for number, hold in enumerate(holders):
        scores = memory.empty(32, LARGE)
        scores[...] = number
        held.append(hold(scores))
        del scores
    memory.empty(32, LARGE)[...] = -1
    assert [np.unique(part).tolist() for part in held] == [[0], [1], [2], [3]]


def test_scores_that_nobody_holds_are_written_over() -> None:
    memory = ScoreMemory()
    first = address(memory.empty(33, LARGE))
    scores = memory.empty(32, LARGE)
    assert address(scores) == first and scores.shape == (32, LARGE)
    assert scores.maxima is not None and scores.maxima.shape == (32, LARGE // BLOCK)
    other = memory.empty(32, LARGE)
    assert address(other) != first
    del scores
    assert address(memory.empty(32, LARGE)) == first


def test_two_lots_of_memory_are_kept_and_small_ones_are_not() -> None:
    memory = ScoreMemory()
    held = [memory.empty(32, LARGE) for _ in range(4)]
    memory.empty(1, LARGE), memory.empty(200, LARGE)
    assert len(memory._lots) == 2 and len({address(scores) for scores in held}) == 4
