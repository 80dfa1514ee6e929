"""Works: the same scores and caches in any steps, and what is told after each."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.engine import step
from gemelo.engine.decoder import StepPiece
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.scores import maxima_of
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.engine.work import Work
from gemelo.errors import InputError
from gemelo.kernels.quants import Floats
from tests.kernels.matrices import normal
from tests.native import needs_native
from tests.quantised import GEMMA3, made

IDS = [3 + at * 7 % 490 for at in range(230)]


@pytest.fixture(scope="module")
def decoder() -> NativeDecoder:
    return made(GEMMA3, "q8_0")


def work_of(decoder: NativeDecoder, tokens: int = 230, keep: int | None = 1) -> Work:
    return Work(decoder, decoder.cache(256, 128), Tokens(IDS[:tokens]), 0, keep)


def in_steps(work: Work, limit: int) -> Floats:
    while not work.done:
        pieces = work.pieces(limit)
        work.wrote(pieces, step.forward(work.decoder, pieces))
    return work.scores


@needs_native
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 70, 150, 230])
@pytest.mark.parametrize("keep", [1, 3, 20, None])
def test_scores_do_not_depend_on_the_steps(
    decoder: NativeDecoder, tokens: int, keep: int | None
) -> None:
    keep = keep and min(keep, tokens)
    expected = step.run(work_of(decoder, tokens, keep))
    assert len(expected) == (tokens if keep is None else keep)
    for limit in (1, 64, 100):
        assert np.array_equal(in_steps(work_of(decoder, tokens, keep), limit), expected)


@needs_native
def test_works_of_several_run_together_as_alone(decoder: NativeDecoder) -> None:
    lengths = (230, 40, 1)
    expected = [step.run(work_of(decoder, tokens)) for tokens in lengths]
    works = [work_of(decoder, tokens) for tokens in lengths]
    while live := [work for work in works if not work.done]:
        parts = [work.pieces(64) for work in live]
        scores = iter(step.forward(decoder, [piece for part in parts for piece in part]))
        for work, part in zip(live, parts, strict=True):
            work.wrote(part, [next(scores) for _ in part])
    for work, wanted in zip(works, expected, strict=True):
        assert np.array_equal(work.scores, wanted)


def test_what_is_held_is_told_after_every_step(decoder: NativeDecoder) -> None:
    told: list[int] = []
    cache = decoder.cache(256, 128)
    step.write(decoder, cache, Tokens(IDS[:64]), 0)
    work = Work(decoder, cache, Tokens(IDS[64:230]), 64, 0, told.append)
    assert step.run(work).shape == (0, 512) and told == [192, 230]
    assert (work.remaining, work.done, work.read) == (0, True, 166)


def test_a_last_token_keeps_its_maxima(decoder: NativeDecoder) -> None:
    assert (maxima_of(step.run(work_of(decoder))[-1]) is not None) == decoder.is_native


def test_few_tokens_are_one_piece_of_all_scores(decoder: NativeDecoder) -> None:
    """Guesses of a draft, across a line of the grid."""
    cache = decoder.cache(256)
    step.write(decoder, cache, Tokens(IDS[:60]), 0)
    work = Work(decoder, cache, Tokens(IDS[60:70]), 60, None)
    assert work.is_exact and work.pieces(128) == [StepPiece(cache, IDS[60:70], 60, None)]
    assert not work_of(decoder).is_exact


def test_a_picture_behind_what_is_held_is_one_piece(decoder: NativeDecoder) -> None:
    embeds = normal(80, decoder.config.hidden_size)
    spans = [EmbeddingSpan(10, embeds, b"x", bidirectional=True)]
    cache = decoder.cache(256, 100)
    work = Work(decoder, cache, Tokens(IDS[30:200], spans), 30, 0)
    found = [(piece.position, piece.end) for piece in work.pieces(100)]
    assert found == [(30, 40), (40, 120), (120, 128)]
    inputs = work.pieces(100)[1].inputs
    assert inputs is not None and np.array_equal(inputs.inputs_embeds, embeds)
    assert inputs.attend_until is not None and set(inputs.attend_until.tolist()) == {119}
    moved = Tokens(IDS[40:200], [spans[0].moved(-10)])
    with pytest.raises(InputError, match="a picture of 80 tokens has to be read in one step"):
        Work(decoder, decoder.cache(256, 79), moved, 40)
