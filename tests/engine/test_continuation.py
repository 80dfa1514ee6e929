"""What may be shown, and when to stop: rows are driven by scores that leave no choice."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.engine.continuation import Continuation, Piece, overlap
from gemelo.engine.sampler import Sampling
from gemelo.inputs.tokenizer.tokenizer import Tokenizer


def run(tokenizer: Tokenizer, ids: list[int], **settings: object) -> list[Piece]:
    row = Continuation(tokenizer, [2], Sampling.of({"temperature": 0, **settings}))
    pieces = []
    for token in ids:
        scores = np.full(512, -10.0, np.float32)
        scores[token] = 10.0
        pieces.append(row.choose(scores))
        if row.finish_reason:
            break
    return pieces


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("said", ["the capital", "a🦙b", "日本", "é\n\nx", "naïve", "👨‍👩‍👧"])
def test_pieces_join_to_the_text_and_hold_no_half_character(
    tiny_tokenizer: Tokenizer, said: str
) -> None:
    ids = tiny_tokenizer.encode(said, bos=False)
    pieces = run(tiny_tokenizer, ids, max_tokens=len(ids))
    assert text(pieces) == said
    assert all("�" not in piece.text for piece in pieces)
    assert pieces[-1].finish_reason == "length"


def test_half_a_character_at_the_end_is_not_lost(tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("本", bos=False)[:2]
    assert "�" in text(run(tiny_tokenizer, ids, max_tokens=2))


@pytest.mark.parametrize("stop", ["ca", "cap", "capi", "p", "the capital"])
def test_text_ends_before_a_stop_text_and_never_shows_it(
    tiny_tokenizer: Tokenizer, stop: str
) -> None:
    ids = tiny_tokenizer.encode("the capital", bos=False)
    pieces = run(tiny_tokenizer, ids, stop=stop)
    assert text(pieces) == "the capital"[: "the capital".index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_the_beginning_of_a_stop_text_is_shown_when_it_goes_on_otherwise(
    tiny_tokenizer: Tokenizer,
) -> None:
    ids = tiny_tokenizer.encode("ababac", bos=False)
    pieces = run(tiny_tokenizer, ids, stop="abac!", max_tokens=len(ids))
    assert text(pieces) == "ababac"


def test_the_end_of_turn_is_no_text_and_no_token(tiny_tokenizer: Tokenizer) -> None:
    ids = [*tiny_tokenizer.encode("hi", bos=False), 106]
    pieces = run(tiny_tokenizer, ids)
    assert text(pieces) == "hi" and pieces[-1].token_ids == ()
    assert pieces[-1].finish_reason == "stop"
    assert run(tiny_tokenizer, ids, ignore_eos=True)[-1].finish_reason is None


def test_overlap() -> None:
    assert [overlap("xab", stop) for stop in ("abc", "b", "bc", "zz", "xabc")] == [2, 0, 1, 0, 3]
