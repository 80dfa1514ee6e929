"""Decoder steps: pieces of many sequences in one; and what a sequence alone asks for.

All are one `forward`. `run` takes a work to its end, alone; `prefill`, `write`, `decode`, `verify`
and `score` are works of one sequence. They take Python integers and give float32 arrays. `score` is
for evaluation: every position's logits.

    scores = prefill(decoder, cache, Tokens(ids), start=0)        # (V,)
    scores = decode(decoder, cache, id=506, position=6)           # (V,)

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemelo.engine.decoder import Decoder, StepPiece
from gemelo.engine.kv import KVCache
from gemelo.engine.tokens import Tokens
from gemelo.engine.work import Work
from gemelo.errors import FileFormatError
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import listen, lost
from gemelo.weights.tensors import Weights

Held = Callable[[int], None]  # a position, up to which a cache holds tokens


def prefill(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    start: int = 0,
    held: Held = lambda position: None,
) -> Floats:
    """Write tokens from `start` on to the cache, and score what follows the last: (V,).

    `held` is called with the position reached after every step, when the cache holds it.
    """
    # Only the prompt's last token is asked for; the others stop at the last keys written.
    last: Floats = run(Work(decoder, cache, tokens[start:], start, 1, held))[-1]
    return last


def write(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    position: int,
    held: Held = lambda position: None,
) -> None:
    """Write tokens from `position` on to the cache, and score nothing; `held` as for `prefill`."""
    run(Work(decoder, cache, tokens, position, 0, held))


def decode(decoder: Decoder, cache: KVCache, id: int, position: int) -> Floats:
    """One token at its position: scores (V,) of what follows it."""
    scores: Floats = run(Work(decoder, cache, Tokens([id]), position, 1))[0]
    return scores


def verify(decoder: Decoder, cache: KVCache, ids: Sequence[int], position: int) -> Floats:
    """Tokens from `position` on, a draft's guesses: scores (T, V) after each."""
    return run(Work(decoder, cache, Tokens(ids), position, None))


def score(decoder: Decoder, cache: KVCache, ids: Sequence[int] | Tokens) -> Floats:
    """Next-token scores at every position, (T, V) float32; 1 MB a token at Gemma's vocabulary."""
    return run(Work(decoder, cache, Tokens.of(ids), 0, None))


def run(work: Work) -> Floats:
    """A work alone, to its end: its scores (logits_to_keep, V)."""
    chunk = work.cache.chunk
    while not work.done:
        pieces = work.pieces(chunk)
        ahead = work.read + sum(len(piece.ids) for piece in pieces)
        if ahead < len(work.tokens):  # while these are computed
            work.decoder.prefetch(work.tokens.ids[ahead : ahead + chunk])
        work.wrote(pieces, forward(work.decoder, pieces))
    return work.scores


def forward(decoder: Decoder, pieces: Sequence[StepPiece]) -> list[Floats]:
    """The scores of every piece, (T or logits_to_keep, V), in one step.

    Scores that are not finite raise the name of the weight that spoilt them: the step tells, and
    looking at load would read the whole file.
    """
    listen()
    scores, finite = decoder.step(pieces)
    check_result(decoder.weights, finite)
    return scores


def check_result(weights: Weights, finite: bool) -> None:
    """Raise the names of weights that are gone, or of the first that spoilt a step's scores."""
    if not lost() and finite:
        return
    if missing := list(weights.lost()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileFormatError(
            f"the model's file was cut short while it was in use: {missing[0]}{more} cannot be "
            "read any longer; load it again"
        )
    if not finite:
        name, kind = next(weights.broken(), ("", ""))
        cause = f"{name} holds {kind}" if name else "no weight is broken; the activations overflow"
        raise FileFormatError(f"the model's scores are not finite: {cause}")
